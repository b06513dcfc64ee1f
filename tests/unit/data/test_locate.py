"""Which images a run uses, and that it never uses phantoms by mistake."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from popmi_core.data import DERMOSCOPY_CLASSES, PHANTOM_SITES, load_site, locate
from popmi_core.data.federation import cache_folder
from popmi_core.data.prepare.dermoscopy import SHA256, SITES, prepare_dermoscopy
from popmi_core.data.spec import SiteSpec
from popmi_core.errors import DataError

MakeHospital = Callable[..., Path]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder with an empty cache and no POPMI_DATA."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("POPMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("POPMI_DATA", raising=False)


@pytest.fixture
def raw(raw_dermoscopy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the miniature archives, their checksums taken for the published ones."""
    monkeypatch.setattr("popmi_core.data.federation.SHA256", _sums(raw_dermoscopy))
    return raw_dermoscopy


def test_where_nothing_lies_the_phantom_stands_in_and_says_so() -> None:
    found = locate("auto", image_size=64)

    assert (found.name, found.phantom, found.external, found.classes) == ("phantom", True, None, DERMOSCOPY_CLASSES)
    assert sorted(found.sites) == sorted(PHANTOM_SITES)
    assert found == locate("phantom", image_size=64)


def test_a_phantom_site_is_drawn_from_its_spec() -> None:
    site, spec = next(iter(locate("phantom", image_size=16).sites.items()))

    data = load_site(site, spec, image_size=16, phantom_images=40, seed=3)

    assert (data.site, data.phantom, data.train.images.shape[1:]) == (site, True, (16, 16, 3))


def test_raw_archives_are_prepared_once_into_the_cache(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPMI_DATA", str(raw))
    calls: list[tuple[int, int]] = []

    first = locate("auto", image_size=16, progress=lambda *done: calls.append(done))
    second = locate("auto", image_size=16, progress=lambda *done: calls.append(done))

    assert first == second
    assert calls == [(24, 24)]
    assert list(first.sites) == sorted(SITES)
    assert (first.name, first.phantom) == ("dermoscopy", False)
    assert "CC BY-NC" in first.licence
    assert all(Path(spec).parent.parent == cache_folder() for spec in first.sites.values())
    external = load_site("isic2018_test", first.external or "", image_size=16, phantom_images=35, seed=0)
    assert len(external.external) == 4


def test_another_image_size_is_another_copy(raw: Path) -> None:
    small, large = locate(str(raw), image_size=16), locate(str(raw), image_size=32)

    assert small.sites["msk"] != large.sites["msk"]
    assert len(list(cache_folder().iterdir())) == 2


def test_the_environment_may_name_a_relative_path(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPMI_DATA", "../raw")

    found = locate("auto", image_size=16)
    monkeypatch.chdir("/")

    assert len(load_site("msk", found.sites["msk"], image_size=16, phantom_images=35, seed=0).train) == 2


@pytest.mark.parametrize("content", ["missing", "empty", "unrelated"])
def test_a_useless_popmi_data_is_an_error_and_never_the_phantom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    if content != "missing":
        (tmp_path / "given").mkdir()
    if content == "unrelated":
        (tmp_path / "given" / "notes.txt").write_text("x")
    monkeypatch.setenv("POPMI_DATA", str(tmp_path / "given"))

    message = "does not exist" if content == "missing" else "holds no data set: neither dataset.json"
    with pytest.raises(DataError, match=f"POPMI_DATA=.*given {message}"):
        locate("auto", image_size=16)


def test_popmi_data_may_ask_for_the_phantom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPMI_DATA", "phantom")

    assert locate("auto", image_size=16).phantom


def test_the_folder_data_is_used_where_it_holds_images(raw: Path) -> None:
    shutil.copytree(raw, "data")

    assert locate("auto", image_size=16).name == "dermoscopy"


def test_a_prepared_set_one_folder_down_is_found(raw: Path) -> None:
    prepare_dermoscopy(raw, Path("data/derm"), image_size=16, sha256=_sums(raw))

    found = locate("auto", image_size=16)

    assert found.sites["msk"] == str(Path("data/derm/msk").absolute())


def test_a_folder_data_without_images_does_not_stop_the_phantom() -> None:
    Path("data/notes").mkdir(parents=True)

    assert locate("auto", image_size=16).phantom


@pytest.mark.parametrize("shape", ["one hospital", "class folders", "an npz file"])
def test_whatever_lies_in_data_is_used_rather_than_the_phantom(
    make_hospital: MakeHospital, make_npz: Callable[..., Path], shape: str
) -> None:
    if shape == "an npz file":
        Path("data").mkdir()
        shutil.move(make_npz(), "data/blobs.npz")
    else:
        shutil.copytree(make_hospital(), "data")
    if shape == "class folders":
        Path("data/labels.csv").unlink()
        Path("data/images").rename("data/nv")
        shutil.copytree("data/nv", "data/mel")

    found = locate("auto", image_size=16)

    assert not found.phantom
    assert list(found.sites) == ["blobs" if shape == "an npz file" else "data"]


def test_several_sets_in_one_folder_must_be_told_apart(raw: Path) -> None:
    for name in ("one", "two"):
        prepare_dermoscopy(raw, Path("data") / name, image_size=16, sha256=_sums(raw))

    with pytest.raises(DataError, match=r"the folder data/ holds several data sets: one, two. Name one of them"):
        locate("auto", image_size=16)


def test_a_set_prepared_smaller_than_its_source_allows_is_not_enlarged(raw: Path) -> None:
    prepare_dermoscopy(raw, Path("made"), image_size=16, sha256=_sums(raw))

    with pytest.raises(DataError, match=r"was prepared at 16 pixels, the run wants 32.*--image-size 32"):
        locate("made", image_size=32)
    assert locate("made", image_size=8).sites  # reducing is fine


def test_a_folder_of_hospitals_shares_the_union_of_their_classes(make_hospital: MakeHospital, tmp_path: Path) -> None:
    for name, words in (("all/north", ("cyst", "scar, old")), ("all/south", ("wart", "cyst"))):
        make_hospital(
            [{"image": f"P{n}", "diagnosis": words[n % 2], "lesion_id": f"L{n}"} for n in range(12)], name=name
        )

    found = locate(str(tmp_path / "all"), image_size=8)
    data = load_site("south", found.sites["south"], image_size=8, phantom_images=35, seed=0)

    assert found.classes == data.classes == ("cyst", "scar, old", "wart")
    assert set(data.train.targets) == {0, 2}


def test_two_hospitals_spellings_of_a_class_are_one_class(make_hospital: MakeHospital, tmp_path: Path) -> None:
    for name, words in (("all/north", ("Cyst", "scar")), ("all/south", ("cyst", "Scar"))):
        make_hospital(
            [{"image": f"P{n}", "diagnosis": words[n % 2], "lesion_id": f"L{n}"} for n in range(12)], name=name
        )

    found = locate(str(tmp_path / "all"), image_size=8)
    north, south = (
        load_site(site, found.sites[site], image_size=8, phantom_images=35, seed=0) for site in ("north", "south")
    )

    assert found.classes == ("Cyst", "Scar")
    assert set(north.train.targets) == set(south.train.targets) == {0, 1}


def test_images_of_one_class_are_no_study(make_hospital: MakeHospital) -> None:
    alone = make_hospital([{"image": f"P{n}", "diagnosis": "cyst", "lesion_id": f"L{n}"} for n in range(12)])

    with pytest.raises(DataError, match=r"has images of 1 class.*expected at least 2"):
        locate(str(alone), image_size=8)


def test_dermoscopy_hospitals_keep_all_seven_classes(make_hospital: MakeHospital, tmp_path: Path) -> None:
    make_hospital(name="all/north")
    make_hospital(name="all/south")

    assert locate(str(tmp_path / "all"), image_size=8).classes == DERMOSCOPY_CLASSES
    assert list(locate(str(tmp_path / "all" / "north"), image_size=8).sites) == ["north"]


def test_a_spec_that_leads_nowhere_is_told() -> None:
    with pytest.raises(DataError, match="site north: there are no images where its data are said to lie"):
        load_site("north", "/nowhere", image_size=8, phantom_images=35, seed=0)


@pytest.mark.parametrize(
    "spec",
    [
        SiteSpec(Path("/data/north")),
        SiteSpec(Path("/data/a#b.npz"), part="west"),
        SiteSpec(Path("/data/north"), classes=("cyst", "scar, old", "50%")),
        SiteSpec.phantom_of("phantom_slide"),
    ],
)
def test_a_spec_survives_being_text(spec: SiteSpec) -> None:
    assert SiteSpec.parse(str(spec)) == spec


def test_the_cache_follows_the_user_s_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("POPMI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert cache_folder() == Path("/scratch/popmi")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/anna")
    assert cache_folder() == Path("/home/anna/.cache/popmi")


def _sums(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SHA256}


def test_a_site_whose_table_is_broken_does_not_keep_the_others_from_a_study(
    make_hospital: MakeHospital, tmp_path: Path
) -> None:
    make_hospital(name="all/north")
    twice = [{"image": f"P{n // 2}", "lesion_id": f"L{n}", "diagnosis": "nv"} for n in range(8)]
    make_hospital(twice, name="all/south")

    found = locate(str(tmp_path / "all"), image_size=8)

    assert sorted(found.sites) == ["north", "south"]
    assert len(load_site("north", found.sites["north"], image_size=8, phantom_images=0, seed=0).train) > 0
    with pytest.raises(DataError, match="site south"):
        load_site("south", found.sites["south"], image_size=8, phantom_images=0, seed=0)


def test_where_every_table_is_broken_the_first_reason_is_told(make_hospital: MakeHospital, tmp_path: Path) -> None:
    make_hospital([{"image": "P", "lesion_id": "L", "diagnosis": "nv"}] * 2, name="all/north")

    with pytest.raises(DataError, match="site north"):
        locate(str(tmp_path / "all"), image_size=8)
