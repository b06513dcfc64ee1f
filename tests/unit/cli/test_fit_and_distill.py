"""`popmi fit` and `popmi distill` as their user types them, on phantoms."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from typer.testing import CliRunner

from popmi_core.checkpoints import load_state
from popmi_core.cli.main import commands
from popmi_core.cli.opened import open_model
from popmi_core.cli.trained import require_file, save_model, scores_of
from popmi_core.config import ModelConfig
from popmi_core.data import ImageSet, SiteData
from popmi_core.errors import ConfigError, DataError, ModelError
from popmi_core.models import build_model

SITE = "phantom:phantom_contact"
MICRO = ["--model", "popmi_vit_micro", "--image-size", "32", "--data", SITE, "--json"]


def popmi(*arguments: object):
    done = CliRunner().invoke(commands, [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "teacher.safetensors"
    return path, popmi("fit", *MICRO, "--group", "C4", "--epochs", 1, "--out", path)


def test_a_fitted_model_says_what_it_is_and_opens_without_being_told(teacher):
    path, figures = teacher
    opened = open_model(path)
    assert (opened.architecture.name, opened.architecture.adapter) == ("popmi_vit_micro", "C4")
    assert opened.card["adapter"]["group"] == "C4"
    assert figures["phantom"] is True
    assert figures["choice"] is None
    assert set(figures["scores"]["test"]["model"]) == {"accuracy", "balanced_accuracy", "auroc"}
    assert 0 <= figures["validation"]["balanced_accuracy"] <= 1


def test_a_student_costs_what_the_plain_backbone_does_and_folds_into_timm(teacher, tmp_path):
    out, plain = tmp_path / "student.safetensors", tmp_path / "plain.safetensors"
    figures = popmi(
        "distill", teacher[0], "--data", SITE, "--out", out, "--fold", plain, "--epochs", 1, "--score", "--json"
    )
    assert figures["cost"]["ratio"]["student"] == figures["cost"]["ratio"]["plain"] == 1.0
    assert figures["cost"]["ratio"]["teacher"] > 1.2
    assert 0 <= figures["agreement"] <= 1
    assert figures["scores"]["val"]["student"].keys() == figures["scores"]["val"]["teacher"].keys()
    student = open_model(out)
    assert (student.architecture.adapter, student.architecture.merge_block) == ("C4", 0)
    images = torch.randn(4, 3, 32, 32)
    # The float32 residue of exact models.
    assert (student.model(images.rot90(1, (2, 3))) - student.model(images)).abs().max() < 1e-4
    state, _ = load_state(plain)
    bare = timm.create_model("popmi_vit_micro", num_classes=student.architecture.classes, img_size=32).eval()
    bare.load_state_dict(state, strict=True)
    # Two ways through the same arithmetic.
    assert (bare(images) - student.model(images)).abs().max() < 1e-4
    assert open_model(plain).architecture.adapter == "none"


def test_a_student_in_regular_fields_is_opened_in_them_and_folds(teacher, tmp_path):
    out, plain = tmp_path / "student.safetensors", tmp_path / "plain.safetensors"
    asked = ("distill", teacher[0], "--data", SITE, "--epochs", 1, "--fields", "regular")

    figures = popmi(*asked, "--out", out, "--fold", plain, "--json")

    assert (figures["fields"], figures["features"], figures["cost"]["ratio"]["student"]) == ("regular", 0.0, 1.0)
    student, bare = open_model(out), open_model(plain)
    assert (student.architecture.fields, bare.architecture.fields) == ("regular", "trivial")
    assert (student.model.fields, bare.architecture.adapter) == ("regular", "none")
    images = torch.randn(4, 3, 32, 32)
    # The float32 residue of exact models, and two ways through the same arithmetic.
    assert (student.model(images.rot90(1, (2, 3))) - student.model(images)).abs().max() < 1e-4
    assert (bare.model(images) - student.model(images)).abs().max() < 1e-4
    with pytest.raises(ConfigError, match="features that turn with the image"):
        popmi(*asked, "--out", tmp_path / "other", "--features", 1)
    with pytest.raises(ModelError, match="fields 'regular' with merge_block 1"):
        popmi(*asked, "--out", tmp_path / "other", "--merge-block", 1)
    with pytest.raises(ModelError, match="fields 'octic' is not known, expected one of trivial, regular"):
        popmi(*asked[:-1], "octic", "--out", tmp_path / "other")


def coloured(count: int, seed: int) -> ImageSet:
    """The class is the brightest colour: learnt in seconds, whatever way it is turned."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, count)
    images = rng.integers(0, 120, (count, 32, 32, 3)).astype(np.uint8)
    images[np.arange(count), :, :, targets] += 100
    return ImageSet(images, targets.astype(np.int64))


def test_a_group_is_chosen_told_and_written_into_the_card(tmp_path, monkeypatch):
    easy = SiteData("a", ("red", "green"), coloured(64, 0), coloured(40, 1), coloured(20, 2), ImageSet.empty(32))
    monkeypatch.setattr("popmi_core.cli.sites.read_sites", lambda specs, **options: {"a": easy})
    out = tmp_path / "auto.safetensors"
    figures = popmi(
        "fit", *MICRO, "--group", "auto", "--pilots", 1, "--pilot-epochs", 4, "--epochs", 1, "--batch-size", 16,
        "--learning-rate", 0.005, "--choose", "auroc", "--out", out,
    )  # fmt: skip
    choice = figures["choice"]
    assert set(choice["scores"]) == {"C1", "soft C4", "C4", "D4"}
    assert choice["sentence"].startswith(f"{choice['chosen']['name']}: mean AUROC")
    opened = open_model(out)
    assert opened.architecture.adapter == choice["chosen"]["group"]
    assert json.loads(opened.parent.notes["card"])["choice"]["chosen"] == choice["chosen"]


def test_a_softened_model_opens_with_its_free_blocks(tmp_path):
    out = tmp_path / "soft.safetensors"
    figures = popmi("fit", *MICRO, "--group", "C4", "--free-blocks", 1, "--epochs", 1, "--out", out)
    assert figures["training"]["augment"] == "shifts"
    assert figures["softness"]["backbone.blocks.1.free_positions"] > 0
    assert "backbone.blocks.1.free_positions" in open_model(out).model.state_dict()


def test_files_are_not_written_over_unasked_and_other_mistakes_are_named(teacher, tmp_path):
    path = teacher[0]
    out = tmp_path / "student.safetensors"
    with pytest.raises(ConfigError, match=r"--out .* is the model that is read"):
        popmi("distill", path, "--data", SITE, "--out", path)
    with pytest.raises(ConfigError, match=r"--out .* is there already"):
        popmi("fit", *MICRO, "--out", path)
    with pytest.raises(ConfigError, match="is a folder or a device"):
        require_file("--out", tmp_path, [], force=False)
    with pytest.raises(ConfigError, match="is under PREA already: leave --group out"):
        popmi("distill", path, "--data", SITE, "--out", out, "--group", "C4")
    with pytest.raises(ConfigError, match="--fold writes a plain network"):
        popmi("distill", path, "--data", SITE, "--out", out, "--fold", tmp_path / "x", "--merge-block", 1)
    with pytest.raises(ConfigError, match="--choose nll: expected one of"):
        popmi("fit", *MICRO, "--out", out, "--choose", "nll")
    with pytest.raises(ModelError, match="no_such_model"):
        popmi("distill", path, "--data", SITE, "--out", out, "--model", "no_such_model")
    with pytest.raises(DataError, match="there are no images"):
        popmi("distill", path, "--data", tmp_path / "nothing", "--out", out)
    assert not out.exists()


def test_a_file_that_answers_otherwise_than_the_model_is_noticed(teacher, tmp_path, monkeypatch):
    opened = open_model(teacher[0])
    other = open_model(teacher[0])
    with torch.no_grad():
        other.model.backbone.head.bias.add_(1.0)
    monkeypatch.setattr("popmi_core.cli.trained.open_model", lambda path: other)
    with pytest.raises(ModelError, match="answers otherwise than the model that was written"):
        save_model(tmp_path / "x.safetensors", opened.model, {"card": {"model": opened.card}}, image_size=32)


def site(classes: tuple[str, ...], count: int) -> SiteData:
    images = ImageSet(np.zeros((count, 8, 8, 3), np.uint8), np.arange(count, dtype=np.int64) % len(classes))
    return SiteData("a", classes, images, ImageSet.empty(8), ImageSet.empty(8), ImageSet.empty(8))


def test_images_that_cannot_be_used_are_told(monkeypatch, tmp_path):
    with pytest.raises(DataError, match="there is no validation or test image to score on"):
        scores_of({}, {"a": site(("x", "y"), 4)})
    sites = {"a": site(("x", "y"), 4), "b": site(("x", "z"), 4)}
    monkeypatch.setattr("popmi_core.cli.sites.read_sites", lambda specs, **options: sites)
    with pytest.raises(ConfigError, match=r"the sites have different classes \(x, y; x, z\)"):
        popmi("fit", *MICRO, "--out", tmp_path / "x.safetensors")
    monkeypatch.setattr("popmi_core.cli.sites.read_sites", lambda specs, **options: {"a": site(("x",), 4)})
    with pytest.raises(DataError, match=r"all images are of one class \(x\)"):
        popmi("fit", *MICRO, "--out", tmp_path / "x.safetensors")


def test_auto_is_no_group_of_a_model():
    with pytest.raises(ModelError, match="group 'auto' is no group yet"):
        build_model(ModelConfig(backbone="popmi_vit_micro", image_size=32, adapter={"group": "auto"}), 2, seed=0)
