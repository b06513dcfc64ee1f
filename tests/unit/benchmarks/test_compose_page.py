"""The page of the containers' time and memory says what was measured (benchmarks/federation/compose.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from popmi_core.data.card import DatasetCard, write_card

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results" / "compose.json"


@pytest.fixture(scope="module")
def measuring() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measuring", ROOT / "benchmarks" / "federation" / "compose.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_the_one_of_the_raw_figures(measuring: ModuleType) -> None:
    rows = json.loads(RESULTS.read_text())
    assert RESULTS.with_suffix(".md").read_text() == measuring.page(rows)
    assert all(row["status"] == "finished" for row in rows)


def test_memory_is_read_by_service_and_of_this_project_only(
    measuring: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "popmi-measure-site-1-1 1.5GiB / 3GiB\npopmi-measure-keeper-1 512KiB / 1GiB\nother-keeper-1 9MiB / 1GiB\n"
    monkeypatch.setattr(measuring.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=told))
    assert measuring.memory() == {"site-1": 3 * 2**29, "keeper": 512 * 2**10}


def prepared(folder: Path, *sites: str) -> Path:
    for name in (*sites, "kept_aside"):
        (folder / name).mkdir(parents=True)
        (folder / name / "labels.csv").write_text("image,diagnosis\na.png,mel\n")
    write_card(
        folder,
        DatasetCard(
            name="moles", classes=("mel", "nv"), image_size=64, source_image_size=64, sites=sites,
            external="kept_aside", licence="CC0", recipe="test-1",
        ),
    )  # fmt: skip
    return folder


def test_sites_and_classes_are_those_of_the_prepared_set(measuring: ModuleType, tmp_path: Path) -> None:
    told = measuring.environment(prepared(tmp_path, "south", "north"))
    assert told["SITE_1"] == "north"
    assert told["SITE_2_DATA"] == str(tmp_path / "south")
    assert told["CLASSES"] == "mel,nv"
    assert "SITE_3" not in told
    assert told["DASHBOARD_PORT"] == measuring.PORT


def test_of_more_sites_the_first_five_are_measured(measuring: ModuleType, tmp_path: Path) -> None:
    told = measuring.environment(prepared(tmp_path, *"gfedcba"))
    assert [told.get(f"SITE_{number}") for number in range(1, 7)] == [*"abcde", None]


def test_real_images_are_called_by_their_folder_s_name_and_their_own_size(
    measuring: ModuleType, tmp_path: Path
) -> None:
    folder = prepared(tmp_path / "moles", "north") / "north"
    Image.new("RGB", (96, 64)).save(folder / "a.png")
    assert measuring.label(tmp_path / "moles") == "moles, 96 x 64 px"
    Image.new("RGB", (128, 128)).save(folder / "b.jpg")
    assert measuring.label(tmp_path / "moles") == "moles, 96 x 64 to 128 x 128 px"
    assert measuring.label(None) == "phantom"


def test_a_data_set_without_pictures_is_refused(measuring: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"its sites hold no .*, expected prepared images"):
        measuring.label(prepared(tmp_path, "north"))


def test_the_page_says_how_a_run_ended_also_one_without_a_round(measuring: ModuleType) -> None:
    row = json.loads(RESULTS.read_text())[0]
    seconds = {**row["seconds"], "up_to_first_round": None, "rounds": [], "train": []}
    page = measuring.page([row, {**row, "status": "failed", "reason": "no site came", "seconds": seconds}])
    assert "| how it ended | finished | **failed**: no site came |" in page
    assert f"| from `up` to the start of the first round, s | {row['seconds']['up_to_first_round']:.0f} | - |" in page


def test_a_run_takes_the_place_of_an_earlier_one_with_the_same_images(measuring: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "compose.json"
    for measured in ({"data": "phantom", "n": 1}, {"data": "moles", "n": 2}, {"data": "phantom", "n": 3}):
        measuring.add(file, measured)
    assert json.loads(file.read_text()) == [{"data": "moles", "n": 2}, {"data": "phantom", "n": 3}]
