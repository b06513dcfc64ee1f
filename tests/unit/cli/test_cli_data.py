"""`popmi data` as a person types it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from popmi_core.cli.data import app
from popmi_core.errors import ConfigError, DataError

RUN = CliRunner()


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    content: dict[str, np.ndarray] = {}
    for split, number in (("train", 60), ("val", 20), ("test", 30)):
        content[f"{split}_images"] = rng.integers(0, 256, (number, 9, 9), dtype=np.uint8)
        content[f"{split}_labels"] = (np.arange(number) % 2)[:, None]
    np.savez(tmp_path / "bloodmnist.npz", **content)
    return tmp_path / "bloodmnist.npz"


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    folder = tmp_path / "north"
    (folder / "images").mkdir(parents=True)
    rows = ["image,diagnosis,split"]
    for number in range(40):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "images" / f"P{number}.png")
        rows.append(f"P{number},{'mel' if number < 3 else 'nv'},{'test' if number % 4 == 0 else 'train'}")
    (folder / "labels.csv").write_text("\n".join([*rows, "anna_meier,nv,train", ""]))
    return folder


def _say(*arguments: str | Path) -> str:
    result = RUN.invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_split_writes_sites_and_says_the_licence(npz: Path, tmp_path: Path) -> None:
    said = _say("split", npz, "--to", tmp_path / "cut", "--sites", "2", "--dirichlet", "10", "--seed", "1")

    assert "sites site_1, site_2" in said
    assert "Licence: CC BY 4.0" in said
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["dataset.json", "site_1", "site_2"]


@pytest.mark.parametrize(
    "options", [[], ["--sites", "2"], ["--dirichlet", "1"], ["--sites", "2", "--dirichlet", "1", "--by", "site"]]
)
def test_split_needs_one_way_to_cut(npz: Path, tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(ConfigError, match="needs either --sites N with --dirichlet ALPHA, or --by COLUMN"):
        _say("split", npz, "--to", tmp_path / "cut", *options)


def test_split_by_column(hospital: Path, tmp_path: Path) -> None:
    assert "sites mel, nv" in _say("split", hospital, "--to", tmp_path / "cut", "--by", "diagnosis")


def test_check_hides_small_counts_and_tells_skipped_rows_without_names(hospital: Path) -> None:
    said = _say("check", hospital, "--image-size", "8")

    cells = next(line for line in said.splitlines() if "north" in line and "│" in line).split("│")
    assert [cell.strip() for cell in cells[2:10]] == ["40", "0", "0", "0", "0", "<5", "*", "0"]
    assert "north, row 42: skipped, image file is missing" in said
    assert "anna" not in said


def test_check_shows_all_counts_when_asked(hospital: Path) -> None:
    said = _say("check", hospital, "--image-size", "8", "--exact")

    cells = next(line for line in said.splitlines() if "north" in line and "│" in line).split("│")
    assert [cell.strip() for cell in cells[2:10]] == ["40", "0", "0", "0", "0", "3", "37", "0"]


def test_check_names_every_broken_site(hospital: Path) -> None:
    broken = hospital.parent / "south"
    broken.mkdir()
    (broken / "labels.csv").write_text("image,diagnosis\nP1,nv\nP2,mel\n")

    with pytest.raises(DataError, match=r"site south: no usable image in 2 row\(s\)"):
        _say("check", hospital.parent, "--image-size", "8")


def test_check_refuses_a_site_whose_images_are_all_external(hospital: Path) -> None:
    table = hospital / "labels.csv"
    table.write_text(table.read_text().replace("train", "external").replace("test", "external"))

    with pytest.raises(DataError, match="site north: every usable image is of split external"):
        _say("check", hospital, "--image-size", "8")


def test_check_calls_the_phantom_a_phantom() -> None:
    assert "phantom (phantom: no image shows a patient)" in _say("check", "phantom", "--image-size", "16")


def test_fetch_of_a_file_that_is_there_says_licence_and_citation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dermamnist.npz").write_bytes(b"x")
    monkeypatch.setattr("popmi_core.data.fetch._checksum", lambda *_: hashlib.md5(b"x").hexdigest())

    said = _say("fetch", "medmnist", "dermamnist", "--to", tmp_path)

    assert "MD5 checked" in said
    assert "Licence: CC BY-NC 4.0" in said
    assert "doi:10.1038/s41597-022-01721-8" in said


def test_prepare_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dermoscopy_index.csv cannot be read \(No such file"):
        _say("prepare", "dermoscopy", "--from", tmp_path, "--to", tmp_path / "made")


def test_the_command_loads_neither_torch_nor_pillow_before_it_needs_them() -> None:
    code = "import sys, popmi_core.cli.data; assert not {'torch', 'PIL', 'flwr'} & set(sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)
