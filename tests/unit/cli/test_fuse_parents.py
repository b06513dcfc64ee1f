"""The models that `popmi fuse` is given: how they are called, and what timm can make of the arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from popmi_core.cli.main import commands
from popmi_core.errors import ModelError

MICRO = ("--model", "popmi_vit_micro")
Write = Callable[..., Path]


def _say(*arguments: str | Path) -> str:
    result = CliRunner().invoke(commands, ["fuse", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_parent_has_a_label_and_none_is_called_like_the_result(model_file: Write, tmp_path: Path) -> None:
    files = []
    for seed, name in enumerate(("s1/m", "s2/m", "s3/m-1", "s4/fused")):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir()
        files.append(model_file("x", seed).rename(path))

    figures = json.loads(_say(*files, *MICRO, "--rule", "opm", "--json"))

    assert len(figures["weights"]) == 4
    assert "fused" not in figures["weights"]


def test_models_of_grey_images_are_fused(tmp_path: Path) -> None:
    files = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=1, in_chans=1, num_classes=3)
        files.append(tmp_path / f"{seed}.safetensors")
        save_file(model.state_dict(), files[-1])
    given = ("img_size=16", "patch_size=8", "depth=1", "in_chans=1")
    options = [part for argument in given for part in ("--model-arg", argument)]

    figures = json.loads(_say(*files, "--model", "vit_tiny_patch16_224", *options, "--json"))

    assert figures["loads_strictly"]


def test_an_argument_that_timm_looks_up_in_vain_is_told(model_file: Write) -> None:
    with pytest.raises(ModelError, match="timm cannot make"):
        _say(model_file("a"), model_file("b", 1), *MICRO, "--model-arg", "act_layer=foo")
