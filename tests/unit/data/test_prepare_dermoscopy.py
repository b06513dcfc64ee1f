"""The archives as five sites and an external test set."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from popmi_core.data import read_site
from popmi_core.data.card import read_card
from popmi_core.data.prepare import dermoscopy
from popmi_core.data.prepare.dermoscopy import EXTERNAL, SHA256, SITES, prepare_dermoscopy
from popmi_core.errors import DataError

REAL = os.environ.get("POPMI_DATA", "")
needs_real_data = pytest.mark.skipif(
    not (REAL and (Path(REAL) / dermoscopy.INDEX).is_file()), reason="POPMI_DATA names no raw dermoscopy archives"
)


def _sums(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SHA256}


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_every_site_becomes_a_hospital_s_folder(raw_dermoscopy: Path, tmp_path: Path) -> None:
    target = tmp_path / "made"

    card = prepare_dermoscopy(raw_dermoscopy, target, image_size=32, sha256=_sums(raw_dermoscopy))

    assert sorted(child.name for child in target.iterdir()) == sorted([*SITES, EXTERNAL, "dataset.json"])
    assert (target / "msk" / "labels.csv").read_text().splitlines()[:2] == [
        "image,lesion_id,diagnosis,age,sex,localization,split",
        "ISIC_0000016.png,L16,nv,45,female,back,train",
    ]
    for site in SITES:
        data = read_site(target / site, image_size=32)
        assert [len(data.train), len(data.val), len(data.test), len(data.external)] == [2, 1, 1, 0]
    assert len(read_site(target / EXTERNAL, image_size=32).external) == 4
    assert read_card(target) == card
    assert card.source_sha256 == _sums(raw_dermoscopy)
    assert "CC BY-NC" in card.licence
    assert any("HAM10000" in source for source in card.citation)


@pytest.mark.parametrize(("site", "archive"), [("rosendahl", 0), ("msk", 1), (EXTERNAL, 2)])
def test_every_archive_comes_to_one_geometry(raw_dermoscopy: Path, tmp_path: Path, site: str, archive: int) -> None:
    prepare_dermoscopy(raw_dermoscopy, tmp_path / "made", image_size=32, sha256=_sums(raw_dermoscopy))
    made = sorted((tmp_path / "made" / site / "images").iterdir())[0]
    name = sorted(raw_dermoscopy.glob("*.zip"), key=lambda path: ["ham", "msk", "isi"].index(path.name[:3]))[archive]

    with zipfile.ZipFile(name) as packed, Image.open(packed.open(f"{made.stem}.jpg")) as picture:
        if site == "rosendahl":
            square = picture.crop((25, 0, 175, 150))
        elif site == "msk":
            square = picture.resize((341, 256), Image.Resampling.BILINEAR).crop((42, 0, 298, 256))
        else:
            square = picture.copy()
    expected = np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(np.asarray(Image.open(made)), expected)


def test_a_second_time_nothing_is_done(raw_dermoscopy: Path, tmp_path: Path) -> None:
    target, sums = tmp_path / "made", _sums(raw_dermoscopy)
    first = prepare_dermoscopy(raw_dermoscopy, target, image_size=16, sha256=sums)
    before = _snapshot(target)
    calls: list[tuple[int, int]] = []

    second = prepare_dermoscopy(
        raw_dermoscopy, target, image_size=16, sha256=sums, progress=lambda *done: calls.append(done)
    )

    assert (second, _snapshot(target), calls) == (first, before, [])


def test_progress_ends_at_all_images(raw_dermoscopy: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    prepare_dermoscopy(
        raw_dermoscopy,
        tmp_path / "made",
        image_size=16,
        sha256=_sums(raw_dermoscopy),
        progress=lambda *done: calls.append(done),
    )

    assert calls[-1] == (24, 24)


def test_a_differing_source_file_is_named_with_both_sums(raw_dermoscopy: Path, tmp_path: Path) -> None:
    sums = _sums(raw_dermoscopy)
    (raw_dermoscopy / "msk_isic2017_256x256.zip").write_bytes(b"cut")
    wanted, got = sums["msk_isic2017_256x256.zip"], hashlib.sha256(b"cut").hexdigest()

    with pytest.raises(DataError, match=f"msk_isic2017_256x256.zip has SHA-256 {got}, expected {wanted}"):
        prepare_dermoscopy(raw_dermoscopy, tmp_path / "made", sha256=sums)

    assert not (tmp_path / "made").exists()


def test_a_missing_source_file_is_named(raw_dermoscopy: Path, tmp_path: Path) -> None:
    sums = _sums(raw_dermoscopy)
    (raw_dermoscopy / "ham10000_200x150.zip").unlink()

    with pytest.raises(DataError, match=r"ham10000_200x150.zip cannot be read \(No such file"):
        prepare_dermoscopy(raw_dermoscopy, tmp_path / "made", sha256=sums)


def test_a_checksum_list_that_disagrees_is_told(raw_dermoscopy: Path, tmp_path: Path) -> None:
    (raw_dermoscopy / "SHA256SUMS").write_text(f"{'0' * 64}  dermoscopy_index.csv\n")

    with pytest.raises(DataError, match=f"SHA256SUMS gives {'0' * 64} for dermoscopy_index.csv, expected"):
        prepare_dermoscopy(raw_dermoscopy, tmp_path / "made", sha256=_sums(raw_dermoscopy))


def test_what_lies_at_the_target_is_never_overwritten(raw_dermoscopy: Path, tmp_path: Path) -> None:
    sums = _sums(raw_dermoscopy)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    prepare_dermoscopy(raw_dermoscopy, tmp_path / "made", image_size=16, sha256=sums)

    with pytest.raises(DataError, match="thesis holds something that is no prepared data set"):
        prepare_dermoscopy(raw_dermoscopy, tmp_path / "thesis", sha256=sums)
    with pytest.raises(DataError, match=r"made holds dermoscopy at 16 pixels .* asked for is 64 pixels"):
        prepare_dermoscopy(raw_dermoscopy, tmp_path / "made", image_size=64, sha256=sums)

    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_told(raw_dermoscopy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match=r"cannot be written: .*Choose a place with room"):
        prepare_dermoscopy(raw_dermoscopy, tmp_path / "file" / "made", sha256=_sums(raw_dermoscopy))


def _prepare_slowly(raw: Path, target: Path, sums: dict[str, str], started: Path) -> None:
    def stall(done: int, total: int) -> None:
        started.touch()
        time.sleep(60)

    prepare_dermoscopy(raw, target, image_size=16, sha256=sums, progress=stall)


def test_a_killed_preparation_leaves_nothing_half_made_and_the_next_one_succeeds(
    raw_dermoscopy: Path, tmp_path: Path
) -> None:
    target, started, sums = tmp_path / "made", tmp_path / "started", _sums(raw_dermoscopy)
    child = multiprocessing.get_context("fork").Process(
        target=_prepare_slowly, args=(raw_dermoscopy, target, sums, started)
    )
    child.start()
    while not started.exists():
        time.sleep(0.01)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    assert not target.exists()

    prepare_dermoscopy(raw_dermoscopy, target, image_size=16, sha256=sums)

    assert read_card(target).sites == SITES
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_two_processes_that_prepare_at_once_do_it_once(raw_dermoscopy: Path, tmp_path: Path) -> None:
    target, sums, log = tmp_path / "made", _sums(raw_dermoscopy), tmp_path / "log"

    def work() -> None:
        def note(done: int, total: int) -> None:
            with log.open("a") as stream:
                stream.write(f"{done}/{total}\n")

        prepare_dermoscopy(raw_dermoscopy, target, image_size=16, sha256=sums, progress=note)

    children = [multiprocessing.get_context("fork").Process(target=work) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()

    assert [child.exitcode for child in children] == [0, 0]
    assert log.read_text() == "24/24\n"


@needs_real_data
def test_the_real_sites_have_the_published_counts(tmp_path: Path) -> None:
    prepare_dermoscopy(Path(REAL), tmp_path / "made", image_size=28)

    found = {}
    for site in (*SITES, EXTERNAL):
        data = read_site(tmp_path / "made" / site, image_size=28)
        sets = (data.train, data.val, data.test, data.external)
        found[site] = ([len(part) for part in sets], sum(part.counts(7) for part in sets).tolist())
        assert data.skipped == ()
    # Images per split and class as counted when the index was assembled.
    assert found == {
        "vidir_molemax": ([2768, 395, 791, 0], [0, 2, 124, 30, 24, 3720, 54]),
        "vidir_modern": ([2343, 337, 683, 0], [32, 211, 475, 51, 680, 1832, 82]),
        "rosendahl": ([1573, 225, 461, 0], [295, 296, 490, 30, 342, 803, 3]),
        "vienna_dias": ([306, 51, 82, 0], [0, 5, 10, 4, 67, 350, 3]),
        "msk": ([572, 81, 166, 0], [0, 0, 189, 0, 215, 415, 0]),
        "isic2018_test": ([0, 0, 0, 1512], [43, 93, 217, 44, 171, 909, 35]),
    }
    _assert_pixels_are_dermamnist(tmp_path / "made")


def _assert_pixels_are_dermamnist(made: Path) -> None:
    """The rebuilt DermaMNIST was made by others' code from the same archive: the same pixels must come out."""
    rebuilt = Path(REAL) / "dermamnist_rebuilt_28.npz"
    if not rebuilt.is_file():
        return
    with np.load(rebuilt, allow_pickle=False) as archive:
        images, names, sites = (archive[f"test_{key}"][:200] for key in ("images", "image_id", "site"))
        site_names = archive["site_names"]
    for image, name, site in zip(images, names, sites, strict=True):
        pixels = np.asarray(Image.open(made / str(site_names[site]) / "images" / f"{name}.png"))
        # One grey level: another version of the JPEG decoder rounds differently.
        assert np.abs(pixels.astype(int) - image).max() <= 1
