"""`popmi fuse` as a person types it: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from popmi_core.checkpoints import file_sha256, load_state, save_state
from popmi_core.cli import aligning
from popmi_core.cli.main import commands
from popmi_core.errors import ConfigError, DataError, ModelError, PopmiError
from popmi_core.matching import apply, describe_model, random_element

MICRO = ("--model", "popmi_vit_micro")
Write = Callable[..., Path]


def _say(*arguments: str | Path) -> str:
    result = CliRunner().invoke(commands, ["fuse", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def _outputs(name: str, state: dict[str, Tensor], classes: int = 8) -> Tensor:
    model = timm.create_model(name, num_classes=classes).eval()
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        return model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)))


def _moved(path: Path, target: Path) -> Path:
    model = timm.create_model("popmi_vit_micro", num_classes=8)
    symmetry = describe_model(model)
    state = load_file(path)
    save_state(target, apply(state, symmetry, random_element(symmetry, torch.Generator().manual_seed(5))))
    return target


def test_a_model_and_its_moved_copy_fuse_to_the_same_function(model_file: Write, tmp_path: Path) -> None:
    first = model_file("first")
    second, out = _moved(first, tmp_path / "second.safetensors"), tmp_path / "fused.safetensors"

    said = _say(first, second, *MICRO, "--out", out)

    before, after = _outputs("popmi_vit_micro", load_file(first)), _outputs("popmi_vit_micro", load_file(out))
    # Weights are float32 and pass through folding and unfolding.
    assert (before - after).norm() < 1e-4 * before.norm()
    assert "second, matched to first: distance" in said
    assert "first: in the basis of first already; nothing moved" in said
    assert "loads into timm's popmi_vit_micro with strict=True" in said


def test_the_table_tells_gain_angle_and_moved_units_of_every_layer(model_file: Write, tmp_path: Path) -> None:
    first = model_file("first")
    figures = json.loads(_say(first, _moved(first, tmp_path / "second.safetensors"), *MICRO, "--json"))

    rows = {row["layer"]: row for row in figures["matching"]["second"]}
    assert set(rows) == {"stream", *(f"blocks.{i}.{part}" for i in (0, 1) for part in ("heads", "mlp"))}
    # The planted copy is the reference in another basis: each move takes off all of its layer's distance.
    assert all(row["gain"] > 0.99 for row in rows.values())
    assert rows["stream"]["angle"] > 45
    assert rows["blocks.0.mlp"]["moved"] > 100
    assert rows["blocks.0.mlp"]["of"] == 128
    assert rows["blocks.0.mlp"]["angle"] is None


def test_the_file_carries_its_lineage_without_folders(model_file: Write, tmp_path: Path) -> None:
    first, second, out = model_file("first"), model_file("second", 1), tmp_path / "fused.safetensors"

    _say(first, second, *MICRO, "--rule", "average", "--weights", "3,1", "--out", out)

    state, notes = load_state(out)
    lineage = json.loads(notes["lineage"])
    assert [parent["file"] for parent in lineage["parents"]] == ["first.safetensors", "second.safetensors"]
    assert lineage["parents"][1]["sha256"] == file_sha256(second)
    assert lineage["rule"] == "average"
    assert lineage["weights"] == {"first": 0.75, "second": 0.25}
    assert str(tmp_path) not in notes["lineage"]
    expected = 0.75 * load_file(first)["head.weight"].double() + 0.25 * load_file(second)["head.weight"].double()
    assert torch.equal(state["head.weight"], expected.float())


def test_a_fused_file_says_itself_which_model_it_is(model_file: Write, tmp_path: Path) -> None:
    paths = [model_file("a", img_size=24), model_file("b", 1, img_size=24)]
    out = tmp_path / "fused.safetensors"
    _say(*paths, *MICRO, "--model-arg", "img_size=24", "--rule", "average", "--out", out)

    figures = json.loads(_say(out, paths[0], "--rule", "average", "--json"))

    assert figures["model"] == "popmi_vit_micro"
    assert figures["model_arguments"] == {"img_size": 24}


def test_without_out_nothing_is_written(model_file: Write, tmp_path: Path) -> None:
    paths = [model_file("first"), model_file("second", 1)]
    before = sorted(tmp_path.iterdir())

    assert "nothing was written: give --out" in _say(*paths, *MICRO)
    assert sorted(tmp_path.iterdir()) == before


def test_images_judge_parents_and_result(model_file: Write, cells: Path) -> None:
    figures = json.loads(_say(model_file("first"), model_file("second", 1), *MICRO, "--data", cells, "--json"))

    assert figures["judged"]["images"] == 32
    assert figures["judged"]["split"] == "test"
    assert set(figures["judged"]["scores"]) == {"first", "second", "fused"}


def test_the_gate_takes_the_best_on_validation_and_tells_all_scores(model_file: Write, cells: Path) -> None:
    paths = [model_file("first"), model_file("second", 1)]
    figures = json.loads(_say(*paths, *MICRO, "--gate", "circuit,opm,best-single", "--data", cells, "--json"))

    losses = {name: row["bloodmnist"] for name, row in figures["validation_losses"].items()}
    assert {"average", "circuit", "opm", "best_single"} <= set(losses)
    assert losses[figures["rule"]] == min(losses.values())
    assert figures["regret"] >= 0
    assert "Validation loss" in _say(*paths, *MICRO, "--gate", "circuit,opm", "--data", cells)


@pytest.mark.parametrize("rule", ["regmean", "opm-regmean", "opm-greedy-soup", "git-rebasin-activations"])
def test_rules_that_look_at_images_work_with_them(rule: str, model_file: Write, cells: Path) -> None:
    paths = [model_file("first"), model_file("second", 1)]
    figures = json.loads(_say(*paths, *MICRO, "--rule", rule, "--data", cells, "--json"))

    assert figures["rule"] == rule.replace("-", "_")


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("greedy-soup", "chooses by validation loss"),
        ("opm-regmean", "Gram matrices"),
        ("git-rebasin-activations", "matches by activations"),
    ],
)
def test_rules_that_look_at_images_say_so_without_them(rule: str, why: str, model_file: Write) -> None:
    with pytest.raises(ConfigError, match=f"rule {rule} .*{why}.*give images with --data"):
        _say(model_file("first"), model_file("second", 1), *MICRO, "--rule", rule)


@pytest.mark.parametrize("method", ["permutations", "probes", "activations", "learned"])
def test_models_can_be_matched_in_other_ways_than_by_all_weights(
    method: str, model_file: Write, cells: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What learning is worth is tested where it lives; here it only has to be reached.
    monkeypatch.setattr(aligning, "LEARNING_STEPS", 3)
    paths = [model_file(label, seed, depth=1) for seed, label in enumerate("ab")]
    common = (*paths, *MICRO, "--model-arg", "depth=1", "--match", method, "--json")
    figures = json.loads(_say(*common, *(() if method == "permutations" else ("--data", cells))))

    assert figures["match"] == method
    stream = next(row for row in figures["matching"]["b"] if row["layer"] == "stream")
    assert (stream["kind"] == "permutation") == (method == "permutations")
    assert ("learned: loss half way" in figures["notes"].get("match.b", "")) == (method == "learned")


@pytest.mark.parametrize("reference", ["medoid", "mean"])
def test_whose_basis_counts_can_be_chosen(reference: str, model_file: Write) -> None:
    paths = [model_file(label, seed, depth=1) for seed, label in enumerate("abc")]
    figures = json.loads(_say(*paths, *MICRO, "--model-arg", "depth=1", "--reference", reference, "--json"))

    assert reference in figures["reference"]


def test_a_file_can_give_the_basis(model_file: Write) -> None:
    paths = [model_file("a"), model_file("b", 1)]
    third = model_file("c", 2)
    figures = json.loads(_say(*paths, *MICRO, "--reference", third, "--json"))

    assert figures["reference"] == "c.safetensors"
    assert figures["reference_sha256"] == file_sha256(third)
    assert len(figures["matching"]) == 2


def test_files_of_one_name_are_told_apart(model_file: Write, tmp_path: Path) -> None:
    first, second = model_file("model"), tmp_path / "other" / "model.safetensors"
    second.parent.mkdir()
    save_file(load_file(first), second)

    assert set(json.loads(_say(first, second, *MICRO, "--json"))["weights"]) == {"model-1", "model-2"}


def test_an_architecture_nobody_described_is_averaged_and_says_so(model_file: Write) -> None:
    name, options = "ghostnet_050", ("--model-arg", "drop_rate=0.1", "--image-size", "32")
    paths = [model_file(label, seed, name=name) for seed, label in enumerate("ab")]

    figures = json.loads(_say(*paths, "--model", name, *options, "--rule", "average", "--json"))

    assert "GhostNet" in figures["notes"]["architecture"]
    with pytest.raises(ModelError):
        _say(*paths, "--model", name, *options, "--rule", "opm")


def test_batchnorm_is_measured_anew_and_counters_are_filled_in(model_file: Write, cells: Path, tmp_path: Path) -> None:
    paths = [model_file(label, seed, name="popmi_resnet20") for seed, label in enumerate("ab")]
    for path in paths:
        save_file({n: t for n, t in load_file(path).items() if not n.endswith("num_batches_tracked")}, path)
    common = (*paths, "--model", "popmi_resnet20", "--rule", "average", "--data", cells)
    plain, repaired = tmp_path / "plain.safetensors", tmp_path / "repaired.safetensors"

    _say(*common, "--out", plain)
    _say(*common, "--repair", "--out", repaired)

    plain_state, state = load_file(plain), load_file(repaired)
    assert not torch.equal(plain_state["bn1.running_var"], state["bn1.running_var"])
    assert torch.equal(plain_state["bn1.weight"], state["bn1.weight"])
    assert "bn1.num_batches_tracked" in state


def test_a_file_that_is_there_is_kept_unless_forced(model_file: Write, tmp_path: Path) -> None:
    paths, out = [model_file("first"), model_file("second", 1)], tmp_path / "fused.safetensors"
    out.write_bytes(b"mine")

    with pytest.raises(ConfigError, match="is there already"):
        _say(*paths, *MICRO, "--rule", "average", "--out", out)
    assert out.read_bytes() == b"mine"
    _say(*paths, *MICRO, "--rule", "average", "--out", out, "--force")
    assert load_file(out)


def test_a_parent_is_never_written_over(model_file: Write) -> None:
    paths = [model_file("first"), model_file("second", 1)]
    with pytest.raises(ConfigError, match="is one of the models that are read"):
        _say(*paths, *MICRO, "--out", paths[1], "--force")


def test_a_folder_that_cannot_be_written_is_told(model_file: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    # Before the models are looked at: they are not even there.
    with pytest.raises(ConfigError, match="nothing can be written in"):
        _say(tmp_path / "a", tmp_path / "b", *MICRO, "--out", tmp_path / "file" / "fused.safetensors")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (("--model", "popmi_vit_mikro"), ModelError, "popmi_vit_mikro.*Did you mean"),
        ((), ConfigError, "does not say which model it is"),
        ((*MICRO, "--model-arg", "img_size"), ConfigError, "expected NAME=VALUE"),
        ((*MICRO, "--model-arg", "checkpoint_path=x"), ConfigError, "weights and classes come from the files"),
        ((*MICRO, "--model-arg", "depths=3"), ModelError, "timm cannot make popmi_vit_micro with depths=3"),
        ((*MICRO, "--model-arg", "img_size=64"), ModelError, "first.safetensors is not a popmi_vit_micro: 'pos_embed'"),
        ((*MICRO, "--adapter", "C4"), ModelError, "has no PREA inside"),
        ((*MICRO, "--adapter", "X9"), ModelError, "group 'X9' is not exact on a square grid, expected one of"),
        ((*MICRO, "--image-size", "40"), ConfigError, "--image-size 40: popmi_vit_micro .* --model-arg img_size=40"),
        ((*MICRO, "--out", 300 * "x"), ConfigError, "File name too long"),
        (
            (*MICRO, "--reference", 300 * "x"),
            ConfigError,
            "expected first, in-turn, medoid, mean or a safetensors file",
        ),
        ((*MICRO, "--rule", "avarage"), ConfigError, "avarage"),
        ((*MICRO, "--rule", "ensemble"), ConfigError, "gives answers, not a model"),
        ((*MICRO, "--rule", "krum"), ConfigError, "needs 5 models, got 2"),
        ((*MICRO, "--gate", "opm,average"), ConfigError, "--gate compares rules on validation images"),
        ((*MICRO, "--rule", "opm", "--gate", "fedma"), ConfigError, "--rule opm and --gate fedma: expected one of"),
        ((*MICRO, "--match", "learned"), ConfigError, "--match learned looks at images: give them with --data"),
        ((*MICRO, "--match", "guess"), ConfigError, "--match guess: expected one of weights, permutations"),
        ((*MICRO, "--match", "permutations", "--rule", "average"), ConfigError, "goes with one rule of opm"),
        (
            (*MICRO, "--reference", "in-turn", "--rule", "average"),
            ConfigError,
            "--reference in-turn goes with one rule of",
        ),
        ((*MICRO, "--starts", "4", "--rule", "git-rebasin"), ConfigError, "--starts 4 goes with one rule of opm"),
        ((*MICRO, "--repair"), ConfigError, "--repair measures BatchNorm statistics on images"),
        ((*MICRO, "--reference", "last"), ConfigError, "--reference last: expected first, in-turn, medoid, mean or a"),
        ((*MICRO, "--weights", "1,2,3"), ConfigError, "expected 2 whole numbers"),
        ((*MICRO, "--weights", "0,0"), ConfigError, "not all 0"),
        (("--model", "resnet10t"), ModelError, "no 'fc.weight', the head of resnet10t"),
        ((*MICRO, "--data", "nowhere"), DataError, "no images at nowhere"),
        ((*MICRO, "--data", "phantom:phantom_video"), DataError, "has 7 classes .* the models know 8"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: tuple[str, ...], error: type[PopmiError], match: str, model_file: Write
) -> None:
    with pytest.raises(error, match=match):
        _say(model_file("first"), model_file("second", 1), *options)


def test_a_lone_model_is_refused(model_file: Write) -> None:
    with pytest.raises(ConfigError, match="expected at least two"):
        _say(model_file("first"), *MICRO)


def test_a_file_that_is_not_there_is_refused(model_file: Write, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read checkpoint"):
        _say(model_file("first"), tmp_path / "none.safetensors", *MICRO)


def test_a_file_that_is_no_safetensors_is_refused(model_file: Write, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("nothing of the kind, but long enough for a header")
    with pytest.raises(ModelError, match="not safetensors"):
        _say(model_file("first"), tmp_path / "text.safetensors", *MICRO)


def _changed(path: Path, **tensors: Any) -> Path:
    save_file({**load_file(path), **tensors}, path)
    return path


def test_a_model_with_a_nan_is_refused(model_file: Write) -> None:
    broken = _changed(model_file("broken"), **{"norm.weight": torch.full((32,), float("nan"))})
    with pytest.raises(ModelError, match=r"'norm.weight' holds NaN"):
        _say(model_file("first"), broken, *MICRO)


def test_models_of_other_classes_are_refused(model_file: Write) -> None:
    with pytest.raises(ModelError, match=r"first.safetensors 8, second.safetensors 5"):
        _say(model_file("first"), model_file("second", classes=5), *MICRO)


def test_a_model_of_another_architecture_is_named(model_file: Write) -> None:
    other = model_file("deep", depth=3)
    with pytest.raises(ModelError, match=r"deep.safetensors is not a .*: .* is unknown to it \(and 11 more"):
        _say(model_file("first"), other, *MICRO)


def test_a_result_that_is_not_finite_is_not_written(model_file: Write, tmp_path: Path) -> None:
    # Finite weights whose answer overflows float32.
    huge = {"head.weight": torch.full((8, 32), 3e38), "norm.weight": torch.full((32,), 3e38)}
    paths, out = [_changed(model_file(label), **huge) for label in "ab"], tmp_path / "fused.safetensors"
    with pytest.raises(ModelError, match="answers NaN or infinity"):
        _say(*paths, *MICRO, "--rule", "average", "--out", out)
    assert not out.exists()
