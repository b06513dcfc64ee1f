"""`popmi fuse --reference mean`: the basis of all is looked for the way models are to be matched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from popmi_core.cli.main import commands
from popmi_core.fusion.opm import Basis, Search
from popmi_core.matching import Symmetry

MICRO = ("--model", "popmi_vit_micro", "--model-arg", "depth=1")


@pytest.fixture
def asked(model_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Symmetry, Search]]:
    """Fuse two files with these options and return what the basis of all was looked for with."""
    choose, seen = Basis.choose, []

    def watched(*updates: Any, symmetry: Symmetry, search: Search, **rest: Any) -> Basis:
        seen.append((symmetry, search))
        return choose(*updates, symmetry=symmetry, search=search, **rest)

    def say(*options: str) -> tuple[Symmetry, Search]:
        monkeypatch.setattr(Basis, "choose", watched)
        paths = [str(model_file(label, seed, depth=1)) for seed, label in enumerate("ab")]
        arguments = ["fuse", *paths, *MICRO, "--reference", "mean", *options]
        result = CliRunner().invoke(commands, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return seen[0]

    return say


@pytest.mark.parametrize(("method", "kind"), [("weights", "orthogonal"), ("permutations", "permutation")])
def test_nothing_is_rotated_where_no_rotation_is_wanted(asked, method: str, kind: str) -> None:
    symmetry, _ = asked("--match", method)

    assert symmetry.spaces["stream"].kind == kind


def test_as_many_descents_are_made_as_were_asked_for(asked) -> None:
    _, search = asked("--starts", "3")

    assert search.restarts == 2
