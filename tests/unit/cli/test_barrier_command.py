"""`popmi barrier` as a person types it: tables, JSON, pictures, and what it refuses."""

from __future__ import annotations

import errno
import importlib
import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from popmi_core.cli.main import commands
from popmi_core.errors import ConfigError, DataError, ModelError, PopmiError, RunError, UpdateError

SMALL = ("--model", "popmi_vit_micro", "--model-arg", "depth=1", "--points", "5")
PICTURES = ("bound", "cka", "features", "heads", "line")
Write = Callable[..., Path]


@pytest.fixture
def pair(model_file: Write) -> tuple[Path, Path]:
    return model_file("first", depth=1), model_file("second", 1, depth=1)


def _say(*arguments: str | Path) -> str:
    result = CliRunner().invoke(commands, ["barrier", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_path_is_told_before_and_after_matching(pair: tuple[Path, Path], cells: Path) -> None:
    figures = json.loads(_say(*pair, *SMALL, "--data", cells, "--json"))

    before, after = figures["before"], figures["after"]
    assert before["alpha"] == after["alpha"] == [0, 0.25, 0.5, 0.75, 1]
    # Matching changes no function: both lines have the same ends, to float32 rounding.
    assert before["loss"][-1] == pytest.approx(after["loss"][-1], abs=1e-4)
    assert before["loss"][0] == after["loss"][0]
    assert after["distance"] < before["distance"]
    chord = np.linspace(before["loss"][0], before["loss"][-1], 5)
    assert before["barrier"] == pytest.approx(np.max(before["loss"] - chord), abs=1e-12)
    assert figures["images"] == {"bloodmnist": 32}
    assert set(figures["scores"]) == {"A", "B", "plain average", "aligned average", "OPM", "ensemble (two models)"}
    assert figures["scores"]["plain average"]["loss"] == before["loss"][2]


def test_a_model_that_overflows_is_named(pair: tuple[Path, Path], cells: Path, tmp_path: Path) -> None:
    huge = tmp_path / "huge.safetensors"
    save_file({name: tensor * 1e18 for name, tensor in load_file(pair[1]).items()}, huge)

    with pytest.raises(UpdateError, match=r"model B, huge.safetensors: its loss on these images is (nan|inf)"):
        _say(pair[0], huge, *SMALL, "--data", cells)


def test_learning_a_map_leaves_a_model_of_the_same_origin_alone(
    pair: tuple[Path, Path], cells: Path, tmp_path: Path
) -> None:
    near = tmp_path / "near.safetensors"
    save_file({name: tensor * 1.001 for name, tensor in load_file(pair[0]).items()}, near)

    figures = json.loads(_say(pair[0], near, *SMALL, "--match", "learned", "--data", cells, "--json"))

    assert "learned" not in figures["note"]
    assert figures["after"] == figures["before"]


def test_matching_brings_heads_closer_and_leaves_features_alike(pair: tuple[Path, Path], cells: Path) -> None:
    figures = json.loads(_say(*pair, *SMALL, "--data", cells, "--json"))

    before, after = (np.array(figures["heads"][when]["blocks.0.attn"]["query_key"]) for when in ("before", "after"))
    assert before.shape == after.shape == (2, 2)
    assert after.diagonal().mean() > before.diagonal().mean()
    assert set(figures["cka"]["blocks.0"]) == {"A, B", "A, plain average", "B, plain average", "A, OPM", "B, OPM"}
    assert all(0 <= value <= 1 for value in figures["cka"]["blocks.0"].values())


def test_the_provable_bounds_hold_at_every_point(pair: tuple[Path, Path], cells: Path) -> None:
    bound = json.loads(_say(*pair, *SMALL, "--data", cells, "--json"))["bound"]

    assert set(bound) == {"steepest_step", "largest_gradient"}
    assert bound["steepest_step"]["provable"]["broken_points"] == 0
    assert bound["steepest_step"]["tight"]["broken_points"] == 0
    # A gradient counts every direction: on a smooth line it is at least the slope along the line, to sampling.
    assert bound["largest_gradient"]["lipschitz"] > 0.9 * bound["steepest_step"]["lipschitz"]


def test_the_screen_shows_every_table_and_says_where_the_bound_is_worth_nothing(
    pair: tuple[Path, Path], cells: Path
) -> None:
    said = _say(*pair, *SMALL, "--data", cells)

    for part in ("Barriers", "Likeness of heads", "linear CKA", "Proposition 2", "A: first.safetensors", "ln 8"):
        assert part in said
    assert "K from the largest gradient" in said


def test_out_holds_the_figures_and_pictures_in_two_formats(
    pair: tuple[Path, Path], cells: Path, tmp_path: Path
) -> None:
    other = shutil.copy(cells, tmp_path / "elsewhere.npz")
    out = tmp_path / "out"
    said = _say(*pair, *SMALL, "--data", cells, "--data", other, "--out", out)

    names = {"barrier.json", *(f"{name}.{kind}" for name in PICTURES for kind in ("png", "svg"))}
    assert {path.name for path in out.iterdir()} == names
    assert all(name in said for name in names)
    assert set(json.loads((out / "barrier.json").read_text())["images"]) == {"bloodmnist", "elsewhere"}
    for name in PICTURES:
        with Image.open(out / f"{name}.png") as picture:
            # A picture without ink has one colour.
            assert len(picture.convert("L").getcolors()) > 10
        assert ElementTree.parse(out / f"{name}.svg").getroot().tag.endswith("svg")


def test_one_model_twice_has_no_line(pair: tuple[Path, Path], cells: Path, tmp_path: Path) -> None:
    copied = shutil.copy(pair[0], tmp_path / "copy.safetensors")
    said = _say(pair[0], copied, *SMALL, "--data", cells, "--out", tmp_path / "out")

    assert "The two models are the same" in said
    assert not (tmp_path / "out" / "bound.png").exists()


def test_a_net_without_attention_has_no_picture_of_heads(model_file: Write, cells: Path, tmp_path: Path) -> None:
    small = {"name": "popmi_mlp", "hidden": 16}
    paths = [model_file(label, seed, **small) for seed, label in enumerate("ab")]
    options = ("--model", "popmi_mlp", "--model-arg", "hidden=16", "--points", "3", "--data", cells)

    said = _say(*paths, *options, "--images", "16", "--out", tmp_path / "out")

    assert "16 test images" in said
    assert "Likeness of heads" not in said
    assert not (tmp_path / "out" / "heads.png").exists()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (("--split", "tests"), ConfigError, "--split tests: expected one of train, val, test, external"),
        (("--split", "external"), DataError, "no site has an image in the split external"),
        (("--match", "guess"), ConfigError, "--match guess"),
        (("--model-arg", "depth=2"), ModelError, "is not a popmi_vit_micro"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: tuple[str, ...], error: type[PopmiError], match: str, pair: tuple[Path, Path], cells: Path
) -> None:
    with pytest.raises(error, match=match):
        _say(*pair, *SMALL, "--data", cells, *options)


def test_an_architecture_nobody_described_is_refused(model_file: Write, cells: Path) -> None:
    paths = [model_file(label, name="ghostnet_050") for label in "ab"]
    with pytest.raises(ModelError, match="GhostNet"):
        _say(*paths, "--model", "ghostnet_050", "--image-size", "32", "--data", cells)


def test_a_folder_that_cannot_be_written_is_told(pair: tuple[Path, Path], cells: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="nothing can be written in"):
        _say(*pair, *SMALL, "--data", cells, "--out", tmp_path / "file" / "out")


def test_a_folder_that_fills_while_the_work_goes_on_is_told(
    pair: tuple[Path, Path], cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("popmi_core.atomic.replace_atomically", full)

    with pytest.raises(RunError, match=r"cannot write .*barrier\.json: No space left"):
        _say(*pair, *SMALL, "--data", cells, "--out", tmp_path / "out")


def test_no_figure_is_cut_off_on_a_narrow_screen(
    pair: tuple[Path, Path], cells: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    said = _say(*pair, *SMALL, "--data", cells)

    assert "Proposition 2" in said
    assert "…" not in said


def test_without_the_drawing_packages_the_tables_are_offered(
    pair: tuple[Path, Path], cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def absent(name: str, *rest: Any) -> ModuleType:
        if name == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"'matplotlib', which is not installed. Install popmi\[analysis\]"):
        _say(*pair, *SMALL, "--data", cells, "--out", tmp_path / "out")
