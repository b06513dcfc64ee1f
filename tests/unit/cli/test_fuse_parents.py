"""The models that `popmi fuse` is given: how they are called, and what timm can make of the arguments."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from popmi_core.cli.main import commands
from popmi_core.data import load_site
from popmi_core.errors import ConfigError, ModelError
from popmi_core.fusion.path import evaluate

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


@pytest.mark.parametrize(
    "rule", ["git-rebasin", "git-rebasin-activations", "ot-fusion", "ot-fusion-soft", "fedma", "opm", "average"]
)
def test_models_in_other_number_formats_are_fused(model_file: Write, cells: Path, tmp_path: Path, rule: str) -> None:
    single, half, double = model_file("single"), tmp_path / "half.safetensors", tmp_path / "double.safetensors"
    for path, dtype in ((half, torch.float16), (double, torch.float64)):
        state = load_file(model_file("other", 1))
        save_file({name: tensor.to(dtype) for name, tensor in state.items()}, path)

    losses = []
    for other in (model_file("other", 1), double, half):
        figures = json.loads(_say(single, other, *MICRO, "--rule", rule, "--data", cells, "--json"))
        losses.append(figures["judged"]["scores"]["fused"]["loss"])

    # The same model but for its spelling; half precision rounds each weight by up to 0.05 %.
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=0.02)


def test_a_loss_that_is_no_number_is_null_in_json_and_in_the_file(
    model_file: Write, cells: Path, tmp_path: Path
) -> None:
    huge = tmp_path / "huge.safetensors"
    save_file({name: tensor * 1e18 for name, tensor in load_file(model_file("other", 1)).items()}, huge)
    out = tmp_path / "out.safetensors"

    said = _say(model_file("a"), huge, *MICRO, "--rule", "best-single", "--data", cells, "--json", "--out", out)
    with safe_open(out, framework="pt") as opened:
        kept = opened.metadata()["lineage"]

    for text in (said, kept):
        figures = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert None in {loss for losses in figures["validation_losses"].values() for loss in losses.values()}


def test_the_reference_is_never_written_over(model_file: Write) -> None:
    a, b, third = (model_file(label, seed) for seed, label in enumerate("abc"))

    with pytest.raises(ConfigError, match="is one of the models that are read"):
        _say(a, b, *MICRO, "--reference", third, "--out", third, "--force")


def test_a_command_that_fails_leaves_no_folder_behind(model_file: Write, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "out.safetensors"
    with pytest.raises(ConfigError, match="does not say which model it is"):
        _say(model_file("a"), model_file("b", 1), "--out", out)
    assert not (tmp_path / "new").exists()

    _say(model_file("a"), model_file("b", 1), *MICRO, "--out", out)
    assert out.is_file()


def test_a_gate_without_a_name_is_refused(model_file: Write, cells: Path) -> None:
    with pytest.raises(ConfigError, match="no rule is named"):
        _say(model_file("a"), model_file("b", 1), *MICRO, "--gate", ",", "--data", cells)


def test_candidates_are_judged_as_the_result_will_be(model_file: Write, cells: Path, tmp_path: Path) -> None:
    paths = [model_file(label, seed, name="popmi_resnet20") for seed, label in enumerate("ab")]
    out = tmp_path / "out.safetensors"
    options = ("--model", "popmi_resnet20", "--gate", "fedma", "--repair", "--data", cells, "--out", out, "--json")

    figures = json.loads(_say(*paths, *options))
    model = timm.create_model("popmi_resnet20", num_classes=8)
    seen = load_site("bloodmnist", str(cells), image_size=28, phantom_images=None, seed=0)
    loss, _ = evaluate(model, load_file(out), seen.val)

    assert figures["repaired"]
    assert figures["images"] == {"bloodmnist": {"train": 48, "val": 24, "test": 32, "external": 0}}
    assert figures["validation_losses"][figures["rule"]]["bloodmnist"] == pytest.approx(loss, rel=1e-5)


def test_the_model_is_known_where_any_file_knows_it(model_file: Write, tmp_path: Path) -> None:
    fused = tmp_path / "fused.safetensors"
    _say(model_file("a"), model_file("b", 1), *MICRO, "--out", fused)

    figures = json.loads(_say(model_file("c", 2), fused, "--json"))

    assert figures["model"] == "popmi_vit_micro"


@pytest.mark.parametrize("command", [("fuse",), ("barrier", "--data", "nowhere")])
def test_one_file_given_twice_is_refused(command: tuple[str, ...], model_file: Write, tmp_path: Path) -> None:
    path = model_file("a")
    (tmp_path / "link.safetensors").symlink_to(path)
    with pytest.raises(ConfigError, match=r"a\.safetensors is given 2 times, expected different files\. Name every"):
        CliRunner().invoke(commands, [*command, str(path), str(tmp_path / "link.safetensors")], catch_exceptions=False)


def test_a_folder_is_no_model(model_file: Write, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Is a directory, expected a safetensors file\. Check the path"):
        _say(model_file("a"), tmp_path, *MICRO)


def test_a_device_is_not_written_over_even_if_forced(model_file: Write, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe is a folder or a device, expected a file's name"):
        _say(model_file("a"), model_file("b", 1), *MICRO, "--out", tmp_path / "pipe", "--force")
    assert (tmp_path / "pipe").is_fifo()
