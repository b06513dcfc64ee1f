"""`popmi fuse` on models under PREA: the adapter is asked for or told, kept in the lineage, the same in all parents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from popmi_core.adapters import attach
from popmi_core.cli.main import commands
from popmi_core.cli.parents import architecture_of, read_parents
from popmi_core.errors import ModelError

MICRO = ("--model", "popmi_vit_micro")


def _say(*arguments: str | Path) -> str:
    result = CliRunner().invoke(commands, ["fuse", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def _prea(path: Path, seed: int, block: int = 1) -> Path:
    torch.manual_seed(seed)
    model = attach(timm.create_model("popmi_vit_micro", num_classes=8), group="C4", merge_block=block, rank=4)
    save_file({n: t + 0.1 * torch.rand_like(t) for n, t in model.state_dict().items()}, path)
    return path


def test_models_under_prea_are_fused_with_their_adapter(tmp_path: Path) -> None:
    paths = [_prea(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1)]
    out = tmp_path / "fused.safetensors"

    assert "popmi_vit_micro under C4 with strict=True" in _say(*paths, *MICRO, "--adapter", "C4", "--out", out)
    assert "prea.down.weight" in load_file(out)
    with pytest.raises(ModelError, match="has PREA inside: say which with --adapter"):
        _say(*paths, *MICRO)


def test_the_merge_block_is_asked_for_and_goes_into_the_lineage(tmp_path: Path) -> None:
    paths = [_prea(tmp_path / f"{seed}.safetensors", seed, block=2) for seed in (0, 1)]
    fused = {name: tmp_path / f"{name}.safetensors" for name in ("one", "two", "more")}

    for (name, out), block, rule in zip(fused.items(), (1, 2, 2), ("opm", "opm", "average"), strict=True):
        options = (*MICRO, "--adapter", f"C4:{block}", "--rule", rule, "--out", out, "--json")
        assert json.loads(_say(*paths, *options))["merge_block"] == block, name

    found = architecture_of(read_parents([fused["two"], fused["more"]]), name=None, arguments={})
    assert found.model.merge_block == found.merge_block == 2
    # What a fused file says of itself counts, and models that differ in it are not of one architecture.
    again = json.loads(_say(fused["two"], fused["more"], "--rule", "average", "--json"))
    assert again["merge_block"] == 2
    with pytest.raises(ModelError, match=r"after different blocks: one\.safetensors 1, two\.safetensors 2\. Take"):
        _say(fused["one"], fused["two"], "--rule", "average")
    with pytest.raises(ModelError, match=r"after different blocks: --adapter 1, two\.safetensors 2, more"):
        _say(fused["two"], fused["more"], "--adapter", "C4:1", "--rule", "average")
    with pytest.raises(ModelError, match=r"--adapter C4:x: 'x' is no merge block"):
        _say(*paths, *MICRO, "--adapter", "C4:x")
