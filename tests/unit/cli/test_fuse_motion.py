"""What `popmi fuse` says of moves by rules that have no table of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from popmi_core.cli.fuse_tables import units_told
from popmi_core.cli.main import commands

MICRO = ("--model", "popmi_vit_micro", "--model-arg", "depth=1")
Write = Callable[..., Path]


def _say(*arguments: str | Path) -> str:
    result = CliRunner().invoke(commands, ["fuse", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def pair(model_file: Write) -> tuple[Path, Path]:
    return model_file("a", depth=1), model_file("b", 1, depth=1)


@pytest.mark.parametrize("rule", ["git-rebasin", "fedma"])
def test_rules_that_move_units_say_how_many_of_how_many(rule: str, pair: tuple[Path, Path]) -> None:
    figures = json.loads(_say(*pair, *MICRO, "--rule", rule, "--json"))

    # The stream's 32 units, 64 of queries, keys and values inside heads, 128 of the hidden layer.
    assert set(figures["notes"]) == {"stream", "blocks.0.heads", "blocks.0.mlp"}
    counts = [int(note.rpartition(" ")[2]) for note in figures["notes"].values()]
    assert figures["motion"].startswith(f"{rule} moves units and turns nothing")
    assert figures["motion"].endswith(f"moved: a 0 of 224, b {sum(counts)} of 224")
    assert sum(counts) > 100


def test_the_line_stands_where_the_tables_would(pair: tuple[Path, Path]) -> None:
    said = _say(*pair, *MICRO, "--rule", "git-rebasin")

    assert said.startswith("git-rebasin moves units and turns nothing, so no layer has a gain or an angle; moved: a 0")


def test_transport_says_that_it_tells_no_move(pair: tuple[Path, Path], cells: Path) -> None:
    said = _say(*pair, *MICRO, "--rule", "ot-fusion", "--data", cells)

    assert "ot-fusion moves units by transport plans, which may mix several into one: no move of a layer" in said


@pytest.mark.parametrize("rule", ["average", "circuit", "median", "best-single"])
def test_rules_that_move_nothing_say_so(rule: str, pair: tuple[Path, Path], cells: Path) -> None:
    said = _say(*pair, *MICRO, "--rule", rule, "--data", cells)

    assert f"{rule} moves nothing: the models are taken in the bases they came in; rules that match: opm," in said


def test_opm_has_its_table_instead(pair: tuple[Path, Path]) -> None:
    said = _say(*pair, *MICRO)

    assert "b, matched to a" in said
    assert "moves nothing" not in said
    assert json.loads(_say(*pair, *MICRO, "--json"))["motion"] is None


def test_units_are_counted_under_any_file_name() -> None:
    notes = {"stream": "units moved of 32: a, b 3 0, (x) 31", "mlp": "units moved of 8: a, b 3 1, (x) 8", "other": "no"}

    assert units_told(notes, ["a, b 3", "(x)"]) == {"a, b 3": (1, 40), "(x)": (39, 40)}
    assert units_told({"all": "the model of a as it is"}, ["a"]) == {}
