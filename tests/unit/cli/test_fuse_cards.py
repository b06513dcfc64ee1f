"""What files of POPMI say of themselves: contradictions are refused, and a run's model is made as the run made it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from popmi_core.adapters import attach
from popmi_core.cli.main import commands
from popmi_core.cli.parents import architecture_of, fitted, read_parents
from popmi_core.config import ModelConfig
from popmi_core.errors import ModelError
from popmi_core.models import build_model

MICRO = ("--model", "popmi_vit_micro")
Write = Callable[..., Path]


def _say(*arguments: str | Path) -> str:
    result = CliRunner().invoke(commands, ["fuse", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def _with_notes(path: Path, target: Path, **notes: Any) -> Path:
    target.parent.mkdir(exist_ok=True)
    save_file(load_file(path), target, {key: json.dumps(value) for key, value in notes.items()})
    return target


def _run_file(path: Path, seed: int, *, group: str = "C4", **changes: Any) -> Path:
    """Write what a run leaves: weights with the run's own description of the model."""
    config = ModelConfig.model_validate(
        {"backbone": "popmi_vit_micro", "image_size": 32, "adapter": {"group": group, "rank": 4}, **changes}
    )
    state = build_model(config, 8, seed=seed).state_dict()
    path.parent.mkdir(exist_ok=True)
    save_file(dict(state), path, {"card": json.dumps({"model": config.model_dump(mode="json")})})
    return path


def test_files_of_one_group_are_not_fused_with_those_of_another(tmp_path: Path) -> None:
    # C4 and D4 have the same tensors in the same shapes.
    four, eight = _run_file(tmp_path / "four.safetensors", 0), _run_file(tmp_path / "eight.safetensors", 1, group="D4")
    plain = tmp_path / "plain.safetensors"
    save_file(load_file(four), plain)

    with pytest.raises(ModelError, match=r"different adapters: four\.safetensors C4, eight\.safetensors D4\. Take"):
        _say(four, eight, "--rule", "average")
    with pytest.raises(ModelError, match=r"different adapters: --adapter D4, four\.safetensors C4"):
        _say(four, plain, "--rule", "average", "--adapter", "D4")
    with pytest.raises(ModelError, match=r"different adapters: the models C4, reference eight\.safetensors D4"):
        _say(four, plain, "--rule", "average", "--reference", eight)
    assert json.loads(_say(four, plain, "--rule", "average", "--adapter", "C4", "--json"))["adapter"] == "C4"


def test_files_that_are_called_alike_are_told_apart_in_a_contradiction(tmp_path: Path) -> None:
    one = _run_file(tmp_path / "one" / "model.safetensors", 0)
    two = _run_file(tmp_path / "two" / "model.safetensors", 1, group="D4")

    with pytest.raises(ModelError, match="different adapters: model-1 C4, model-2 D4"):
        _say(one, two, "--rule", "average")


def test_files_made_with_other_arguments_are_refused(model_file: Write, tmp_path: Path) -> None:
    a, b, c = (model_file(label, seed) for seed, label in enumerate("abc"))
    relu, none = tmp_path / "relu.safetensors", tmp_path / "none.safetensors"
    _say(a, b, *MICRO, "--rule", "average", "--model-arg", "act_layer=relu", "--out", relu)
    _say(a, b, *MICRO, "--rule", "average", "--out", none)

    with pytest.raises(ModelError, match=r'arguments: relu\.safetensors act_layer="relu", none\.safetensors none'):
        _say(relu, none, "--rule", "average")
    with pytest.raises(ModelError, match=r'--model-arg act_layer="gelu", relu\.safetensors act_layer="relu"'):
        _say(relu, a, "--rule", "average", "--model-arg", "act_layer=gelu")
    with pytest.raises(ModelError, match=r'the models act_layer="relu", reference none\.safetensors none'):
        _say(relu, a, "--rule", "average", "--reference", none)
    # A file without a card says nothing against it.
    assert json.loads(_say(relu, c, "--rule", "average", "--json"))["model_arguments"] == {"act_layer": "relu"}


def test_files_of_other_architectures_or_image_sizes_are_refused(model_file: Write, tmp_path: Path) -> None:
    plain, cards = model_file("plain", name="popmi_resnet20"), {}
    for name, backbone, size in (("a", "popmi_resnet20", 32), ("b", "popmi_resnet20", 64), ("c", "popmi_resnet32", 32)):
        card = {"model": {"backbone": backbone, "image_size": size}}
        cards[name] = _with_notes(plain, tmp_path / f"{name}.safetensors", card=card)

    with pytest.raises(
        ModelError, match=r"architectures: a\.safetensors popmi_resnet20, c\.safetensors popmi_resnet32"
    ):
        architecture_of(read_parents([cards["a"], cards["c"]]), name=None, arguments={})
    with pytest.raises(ModelError, match=r"architectures: --model resnet18, a\.safetensors popmi_resnet20"):
        architecture_of(read_parents([cards["a"], plain]), name="resnet18", arguments={})
    with pytest.raises(ModelError, match=r"sizes: a\.safetensors 32, b\.safetensors 64\. .* say with --image-size"):
        architecture_of(read_parents([cards["a"], cards["b"]]), name=None, arguments={})
    asked = architecture_of(read_parents([cards["a"], cards["b"]]), name=None, arguments={}, image_size=48)
    assert asked.image_size == 48


def test_a_reference_merged_after_another_block_is_refused(tmp_path: Path) -> None:
    paths = [_run_file(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1)]
    other = _run_file(tmp_path / "other.safetensors", 2, adapter={"group": "C4", "rank": 4, "merge_block": 2})

    with pytest.raises(ModelError, match=r"blocks: the models 1, reference other\.safetensors 2"):
        _say(*paths, "--rule", "average", "--reference", other)


@pytest.mark.parametrize("backbone", ["deit_tiny_patch16_224", "efficientvit_b0"])
def test_a_run_s_model_is_made_as_the_run_made_it(backbone: str, tmp_path: Path) -> None:
    # One takes an image size without being called 'vit' in front, the other is called so and takes none.
    paths = [
        _run_file(tmp_path / f"{seed}.safetensors", seed, group="none", backbone=backbone, image_size=64)
        for seed in (0, 1)
    ]

    found = architecture_of(read_parents(paths), name=None, arguments={})

    assert fitted(read_parents(paths), found)
    assert found.image_size == 64
    assert found.arguments == ({"img_size": 64} if backbone.startswith("deit") else {})
    with torch.inference_mode():
        assert found.model(torch.zeros(1, 3, 64, 64)).shape == (1, 8)


def test_arguments_that_only_a_file_gives_are_not_blamed_on_the_caller(model_file: Write, tmp_path: Path) -> None:
    lineage = {"model": "popmi_vit_micro", "model_arguments": {"depths": 3}}
    paths = [_with_notes(model_file(n), tmp_path / f"told-{n}.safetensors", lineage=lineage) for n in "ab"]

    with pytest.raises(ModelError, match=r"with depths=3: .* The files say so; give other arguments with --model-arg"):
        _say(*paths)


def test_a_mistyped_tag_is_refused_with_those_there_are(model_file: Write) -> None:
    paths = [model_file("a"), model_file("b", 1)]

    with pytest.raises(
        ModelError, match=r"'resnet18' has no weights called 'a1_in1' .* one of a1_in1k, a2_in1k, .* or"
    ):
        _say(*paths, "--model", "resnet18.a1_in1")
    with pytest.raises(ModelError, match=r"'popmi_vit_micro' has no weights called 'x' .* expected none\."):
        _say(*paths, "--model", "popmi_vit_micro.x")
    with pytest.raises(ModelError, match="has no weights called 'x'"):
        build_model(ModelConfig(backbone="popmi_vit_micro.x", image_size=32), 8, seed=0)


@pytest.mark.parametrize(("prefix", "extra"), [("module.", {}), ("model.", {"criterion.weight": torch.ones(8)})])
def test_a_wrapper_s_prefix_is_named_with_the_line_that_drops_it(
    prefix: str, extra: dict[str, torch.Tensor], model_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [model_file("a"), model_file("b", 1)]
    wrapped = [tmp_path / f"wrapped-{path.name}" for path in paths]
    for path, target in zip(paths, wrapped, strict=True):
        save_file({f"{prefix}{name}": tensor for name, tensor in load_file(path).items()} | extra, target)

    with pytest.raises(ModelError, match=rf"wrapped-a\.safetensors: its names begin with '{prefix}'.* strip") as told:
        _say(*wrapped, *MICRO)

    monkeypatch.chdir(tmp_path)
    exec(str(told.value).split('python -c "')[1].rstrip('"'))
    assert load_file("plain-wrapped-a.safetensors").keys() == load_file(paths[0]).keys()


def test_a_wrapper_around_prea_is_named_too(tmp_path: Path) -> None:
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = attach(timm.create_model("popmi_vit_micro", num_classes=8), group="C4", merge_block=1, rank=4)
        paths.append(tmp_path / f"{seed}.safetensors")
        save_file({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, paths[-1])

    with pytest.raises(ModelError, match=r"0\.safetensors: its names begin with 'module\.', which"):
        _say(*paths, *MICRO)


@pytest.mark.parametrize(
    ("down", "got"), [(None, "is missing"), (torch.tensor(1.0), r"has shape \(\)")], ids=["none", "a number"]
)
def test_a_part_of_prea_is_refused(down: torch.Tensor | None, got: str, tmp_path: Path) -> None:
    path = _run_file(tmp_path / "whole.safetensors", 0)
    state = {name: tensor for name, tensor in load_file(path).items() if name != "prea.down.weight"}
    save_file(state | ({} if down is None else {"prea.down.weight": down}), tmp_path / "part.safetensors")

    with pytest.raises(ModelError, match=rf"part\.safetensors has PREA inside, but its 'prea\.down\.weight' {got}"):
        _say(tmp_path / "part.safetensors", path, "--adapter", "C4")


def test_whole_numbers_in_the_place_of_weights_are_refused(model_file: Write, tmp_path: Path) -> None:
    path, quantised = model_file("a"), tmp_path / "quantised.safetensors"
    state = load_file(path)
    save_file(state | {"norm.weight": state["norm.weight"].mul(10).to(torch.int8)}, quantised)

    with pytest.raises(ModelError, match=r"quantised\.safetensors .* 'norm\.weight' is of int8, expected a floating"):
        _say(path, quantised, *MICRO, "--rule", "average")


def test_models_of_other_classes_or_another_order_are_not_fused(model_file: Write, tmp_path: Path) -> None:
    names = [f"class {letter}" for letter in "abcdefgh"]
    told = {"a": names, "b": names[::-1], "places": [str(place) for place in range(8)], "few": names[:7]}
    files = {
        name: _with_notes(model_file(name), tmp_path / f"{name}.safetensors", lineage={"class_names": classes})
        for name, classes in told.items()
    }

    with pytest.raises(ModelError, match=r"in another order: a\.safetensors class a, .*; b\.safetensors class h, "):
        _say(files["a"], files["b"], *MICRO)
    with pytest.raises(ModelError, match=r"few\.safetensors names 7 classes .*, its head has 8"):
        _say(files["few"], files["a"], *MICRO)
    # Classes without names contradict none; the file that is written tells those of the other.
    found = architecture_of(read_parents([files["places"], files["a"]]), name=MICRO[1], arguments={})
    assert found.class_names == tuple(names)
    out = tmp_path / "fused.safetensors"
    _say(files["places"], files["a"], *MICRO, "--rule", "average", "--out", out)
    assert architecture_of(read_parents([out, files["a"]]), name=None, arguments={}).class_names == tuple(names)
