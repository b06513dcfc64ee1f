"""`popmi fuse` and `popmi barrier` on files with low-rank adapters: read from the files, averaged as products, told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from popmi_core.adapters import add_lora, attach
from popmi_core.checkpoints import save_state
from popmi_core.cli.main import commands
from popmi_core.cli.parents import architecture_of, read_parents
from popmi_core.errors import ConfigError, ModelError

MICRO = ("--model", "popmi_vit_micro")
QKV = "blocks.0.attn.qkv"


def _say(*arguments: str | Path, command: str = "fuse") -> str:
    result = CliRunner().invoke(commands, [command, *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def _file(path: Path, seed: int, *targets: str, rank: int = 2, group: str = "none", card: Any = None) -> Path:
    """Write a model whose adapters and head alone differ by seed, as after training over one frozen backbone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("popmi_vit_micro", num_classes=8)
        model = model if group == "none" else attach(model, group=group, merge_block=1)
        model = add_lora(model, targets or ("attn.qkv", "attn.proj"), rank=rank)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn_like(parameter)
    if card is None:
        save_file(model.state_dict(), path)
    else:
        save_state(path, model.state_dict(), {"card": json.dumps({"model": card})})
    return path


def _product(state: dict[str, Tensor], layer: str = QKV) -> Tensor:
    return state[f"{layer}.lora_B.weight"].double() @ state[f"{layer}.lora_A.weight"].double()


def test_what_the_adapters_add_is_averaged_and_the_lineage_tells_of_them(tmp_path: Path) -> None:
    paths = [_file(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    out, plain = tmp_path / "fused.safetensors", tmp_path / "plain.safetensors"

    said = _say(*paths, *MICRO, "--rule", "lowrank", "--weights", "3,1", "--out", out)
    _say(*paths, *MICRO, "--rule", "average", "--weights", "3,1", "--out", plain)

    mean = 0.75 * _product(load_file(paths[0])) + 0.25 * _product(load_file(paths[1]))
    left, values, right = torch.linalg.svd(mean)
    best = left[:, :2] * values[:2] @ right[:2]
    # Two factors stored in float32: 1e-7 each.
    assert (_product(load_file(out)) - best).norm() < 1e-6 * best.norm()
    assert (_product(load_file(plain)) - best).norm() > 0.1 * best.norm()
    assert "timm's popmi_vit_micro with low-rank adapters with strict=True" in said
    assert "low-rank adapters of rank 2 on 4 layers, alpha is their rank (no file says it; else give --lora" in said
    layers = [f"blocks.{block}.attn.{part}" for block in (0, 1) for part in ("proj", "qkv")]
    assert json.loads(_say(out, plain, "--json"))["lora"] == {"ranks": dict.fromkeys(layers, 2), "alpha": None}


def test_adapters_are_fused_beside_prea_and_by_rules_that_match(tmp_path: Path) -> None:
    paths = [_file(tmp_path / f"{seed}.safetensors", seed, group="C4") for seed in (1, 2)]

    figures = json.loads(_say(*paths, *MICRO, "--adapter", "C4:1", "--rule", "opm", "--lora-alpha", "4", "--json"))

    assert set(figures["lora"]["ranks"]) == {
        f"backbone.blocks.{block}.attn.{part}" for block in (0, 1) for part in ("proj", "qkv")
    }
    assert figures["lora"]["alpha"] == 4
    assert {f"backbone.{QKV}.lora", "prea.hidden"} <= {move["layer"] for move in figures["matching"]["1"]}


def test_every_layer_may_have_a_rank_of_its_own(tmp_path: Path) -> None:
    paths = []
    for seed in (1, 2):
        wide, thin = (
            load_file(_file(tmp_path / "part.safetensors", seed, target, rank=rank))
            for target, rank in (("attn.qkv", 3), ("mlp.fc1", 1))
        )
        paths.append(tmp_path / f"{seed}.safetensors")
        save_file({**wide, **thin}, paths[-1])

    found = architecture_of(read_parents(paths), name="popmi_vit_micro", arguments={}, lora_alpha=6)

    assert found.low_rank is not None
    assert found.low_rank.ranks == {
        f"blocks.{n}.{on}": r for on, r in (("attn.qkv", 3), ("mlp.fc1", 1)) for n in (0, 1)
    }
    assert (found.model.blocks[0].attn.qkv.scaling, found.model.blocks[0].mlp.fc1.scaling) == (2, 6)


def test_models_with_other_adapters_are_refused_by_name(tmp_path: Path) -> None:
    two, four = _file(tmp_path / "two.safetensors", 1), _file(tmp_path / "four.safetensors", 2, rank=4)
    few = _file(tmp_path / "few.safetensors", 3, "attn.qkv")

    with pytest.raises(
        ModelError, match=r"on 'blocks\.0\.attn\.proj': two\.safetensors rank 2, four\.safetensors rank 4"
    ):
        _say(two, four, *MICRO, "--rule", "lowrank")
    with pytest.raises(ModelError, match=r"on 'blocks\.0\.attn\.proj': two\.safetensors rank 2, few\.safetensors none"):
        _say(two, few, *MICRO, "--rule", "lowrank")


def test_an_adapter_on_a_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    state = load_file(_file(tmp_path / "a.safetensors", 1))
    paths = []
    for name in "bc":
        paths.append(tmp_path / f"{name}.safetensors")
        save_file({**state, "nose.lora_A.weight": torch.zeros(2, 3)}, paths[-1])

    with pytest.raises(
        ModelError, match=r"b\.safetensors has a low-rank adapter of rank 2 on 'nose', which is no linear"
    ):
        _say(*paths, *MICRO)


def test_products_are_asked_for_in_vain_where_there_is_no_adapter(model_file: Any) -> None:
    paths = model_file("a"), model_file("b", 1)

    with pytest.raises(
        ConfigError, match="rule lowrank averages low-rank adapters as products, and the models have none"
    ):
        _say(*paths, *MICRO, "--rule", "lowrank")
    with pytest.raises(ConfigError, match=r"--lora-alpha 3: a\.safetensors has no low-rank adapter\. Leave it out"):
        _say(*paths, *MICRO, "--lora-alpha", "3")


def test_alpha_is_told_by_the_files_of_runs_and_must_agree(tmp_path: Path) -> None:
    def card(alpha: Any) -> dict[str, Any]:
        return {"backbone": "popmi_vit_micro", "image_size": 32, "lora": {"rank": 2, "alpha": alpha}}

    made = {"plain": None, "other": None, "eight": card(8), "rank": card(None), "two": card(2), "odd": card("x")}
    paths = {name: _file(tmp_path / f"{name}.safetensors", 1, card=told) for name, told in made.items()}

    def alpha_of(*names: str, asked: float | None = None) -> tuple[float | None, bool]:
        parents = read_parents([paths[name] for name in names])
        found = architecture_of(parents, name="popmi_vit_micro", arguments={}, lora_alpha=asked).low_rank
        assert found is not None
        return found.alpha, found.told

    assert alpha_of("plain", "eight") == (8, True)
    assert alpha_of("rank", "two") == alpha_of("plain", "two") == alpha_of("plain", "other", asked=2) == (None, True)
    assert alpha_of("plain", "odd") == (None, False)
    with pytest.raises(
        ModelError, match=r"by different alpha: eight\.safetensors 8, rank\.safetensors the rank\. Merge"
    ):
        alpha_of("eight", "rank")
    with pytest.raises(ModelError, match=r"by different alpha: --lora-alpha 5, eight\.safetensors 8"):
        alpha_of("plain", "eight", asked=5)
    for wrong in (0.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=r"--lora-alpha (0|inf|nan): expected a number above 0"):
            alpha_of("plain", "other", asked=wrong)


def test_files_that_are_called_alike_are_told_apart_by_alpha(tmp_path: Path) -> None:
    paths = []
    for alpha in (8, 5):
        (tmp_path / str(alpha)).mkdir()
        card = {"backbone": "popmi_vit_micro", "image_size": 32, "lora": {"rank": 2, "alpha": alpha}}
        paths.append(_file(tmp_path / str(alpha) / "model.safetensors", 1, card=card))

    with pytest.raises(ModelError, match=r"by different alpha: model-1 8, model-2 5\. Merge"):
        architecture_of(read_parents(paths), name=None, arguments={})


def test_the_line_between_two_models_runs_through_their_adapters(tmp_path: Path, cells: Path) -> None:
    paths = [_file(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    options = ("--data", cells, "--points", "3", "--images", "16")

    one, other = (
        json.loads(_say(*paths, *MICRO, *options, "--lora-alpha", alpha, "--json", command="barrier"))
        for alpha in ("2", "20")
    )
    said = _say(*paths, *MICRO, *options, command="barrier")

    # Scaled up, the same adapters make another model.
    assert one["before"]["loss"] != other["before"]["loss"]
    assert "low-rank adapters of rank 2 on 4 layers" in said
