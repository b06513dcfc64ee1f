"""PREA with regular fields on the command line: said in the file, opened as it was made, and never mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from popmi_core.adapters import Prea
from popmi_core.cli.fit import with_candidate
from popmi_core.cli.main import commands
from popmi_core.cli.opened import open_model
from popmi_core.config import ModelConfig
from popmi_core.data import ImageSet, SiteData
from popmi_core.errors import ConfigError, ModelError
from popmi_core.learning.choose import Candidate
from popmi_core.models import build_model

SITE = "phantom:phantom_contact"
MICRO = ("--model", "popmi_vit_micro")
FIT = ("fit", *MICRO, "--image-size", "32", "--data", SITE, "--json")


def popmi(*arguments: str | Path | int) -> str:
    done = CliRunner().invoke(commands, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("fit") / "regular.safetensors"
    said = popmi(*FIT, "--group", "C4", "--fields", "regular", "--epochs", 1, "--out", path)
    return path, json.loads(said)


def run_file(path: Path, seed: int, **adapter: Any) -> Path:
    """Write what a run leaves: weights with the run's own description of the model."""
    config = ModelConfig.model_validate(
        {"backbone": "popmi_vit_micro", "image_size": 32, "adapter": {"group": "C4", **adapter}}
    )
    state = build_model(config, 8, seed=seed).state_dict()
    save_file(dict(state), path, {"card": json.dumps({"model": config.model_dump(mode="json")})})
    return path


def test_a_fitted_model_says_its_fields_and_is_opened_in_them(fitted: tuple[Path, dict[str, Any]]) -> None:
    path, figures = fitted
    opened = open_model(path)

    assert figures["model"]["adapter"]["fields"] == opened.card["adapter"]["fields"] == "regular"
    assert isinstance(opened.model, Prea)
    assert (opened.model.fields, opened.architecture.fields, opened.architecture.merge_block) == (
        "regular",
        "regular",
        0,
    )
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    # The float32 residue of exact models.
    assert (opened.model(images.rot90(1, (2, 3))) - opened.model(images)).abs().max() < 1e-4


def test_certify_proves_it_and_evaluate_names_its_fields(fitted: tuple[Path, dict[str, Any]]) -> None:
    certified = json.loads(popmi("certify", fitted[0], "--data", SITE, "--limit", 2, "--json"))
    evaluated = json.loads(popmi("evaluate", fitted[0], "--data", SITE, "--limit", 2, "--json"))

    assert certified["promised_group"] == "C4"
    assert certified["algebraic"]["verdict"] == "proved"
    assert "trivial fields" in certified["telescoping"]["left_out"]
    assert certified["model"]["fields"] == evaluated["model"]["fields"] == "regular"


def test_fusing_keeps_the_fields_in_the_lineage_and_refuses_models_of_others(tmp_path: Path) -> None:
    paths = [run_file(tmp_path / f"{seed}.safetensors", seed, fields="regular") for seed in (0, 1)]
    trivial = run_file(tmp_path / "trivial.safetensors", 2, merge_block=0, adapters="none")
    plain = [tmp_path / f"plain-{path.name}" for path in paths]
    for path, target in zip(paths, plain, strict=True):
        save_file(load_file(path), target)
    out, again = tmp_path / "fused.safetensors", tmp_path / "again.safetensors"
    rule = ("--rule", "average")

    assert "popmi_vit_micro under C4 in regular fields" in popmi("fuse", *paths, *rule, "--out", out)
    assert open_model(out).architecture.fields == "regular"
    # A run's card names no block: between regular fields there is none, and not the default.
    other = run_file(tmp_path / "other.safetensors", 3, fields="regular")
    assert "regular fields" in popmi("fuse", *paths, *rule, "--reference", other)
    # Without a card it has to be said; a merge block says that fields are trivial.
    said = json.loads(popmi("fuse", *plain, *MICRO, *rule, "--adapter", "C4:regular", "--out", again, "--json"))
    assert (said["fields"], said["merge_block"]) == ("regular", 0)
    assert load_file(out).keys() == load_file(again).keys()
    with pytest.raises(
        ModelError, match=r"different fields: 0\.safetensors regular, trivial\.safetensors trivial\. Take"
    ):
        popmi("fuse", paths[0], trivial, *rule)
    with pytest.raises(ModelError, match=r"different fields: --adapter trivial, 0\.safetensors regular"):
        popmi("fuse", *paths, *rule, "--adapter", "C4:1")
    with pytest.raises(ModelError, match=r"different fields: --adapter regular, trivial\.safetensors trivial"):
        popmi("fuse", trivial, plain[0], *rule, "--adapter", "C4:regular")
    with pytest.raises(
        ModelError, match=r"different fields: the models regular, reference trivial\.safetensors trivial"
    ):
        popmi("fuse", *paths, *rule, "--reference", trivial)
    with pytest.raises(ModelError, match=r"plain-0\.safetensors is not a popmi_vit_micro"):
        popmi("fuse", *plain, *MICRO, *rule, "--adapter", "C4:0")
    with pytest.raises(ModelError, match=r"'x' is no merge block, .* or C4:regular for regular fields"):
        popmi("fuse", *plain, *MICRO, *rule, "--adapter", "C4:x")


def test_there_is_nothing_to_distil_from_a_teacher_that_costs_what_the_plain_model_does(
    fitted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"the teacher computes in regular fields: .*adapters\.fold"):
        popmi("distill", fitted[0], "--data", SITE, "--out", tmp_path / "student.safetensors")


def coloured(count: int, seed: int) -> ImageSet:
    """The class is the brightest colour: learnt in seconds, whatever way it is turned."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, count)
    images = rng.integers(0, 120, (count, 32, 32, 3)).astype(np.uint8)
    images[np.arange(count), :, :, targets] += 100
    return ImageSet(images, targets.astype(np.int64))


def test_the_chosen_group_computes_in_the_fields_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    easy = SiteData("a", ("red", "green"), coloured(64, 0), coloured(40, 1), coloured(20, 2), ImageSet.empty(32))
    monkeypatch.setattr("popmi_core.cli.sites.read_sites", lambda specs, **options: {"a": easy})
    asked = ("--group", "auto", "--fields", "regular", "--pilots", 1, "--pilot-epochs", 3, "--epochs", 1)
    out = tmp_path / "auto.safetensors"

    figures = json.loads(popmi(*FIT, *asked, "--batch-size", 16, "--learning-rate", 0.01, "--out", out))

    assert list(figures["choice"]["scores"]) == ["C1", "C4", "D4"]
    assert figures["choice"]["left_out"] == {}
    chosen = figures["choice"]["chosen"]["group"]
    assert figures["model"]["adapter"].get("fields") == (None if chosen == "none" else "regular")
    with pytest.raises(ConfigError, match=r"'regular' with free_blocks = 1: .* there is no soft candidate"):
        popmi(*FIT, *asked, "--free-blocks", 1, "--out", tmp_path / "other.safetensors")


def test_the_plain_candidate_has_neither_fields_nor_block() -> None:
    model = ModelConfig.model_validate({"adapter": {"group": "auto", "fields": "regular"}})

    plain = with_candidate(model, Candidate("C1", "none")).adapter

    assert (plain.group, plain.merge_block, plain.fields) == ("none", None, "trivial")
    assert with_candidate(model, Candidate("D4", "D4")).adapter.fields == "regular"


def test_what_regular_fields_cannot_have_is_told_before_training(tmp_path: Path) -> None:
    asked = (*FIT, "--group", "C4", "--fields", "regular", "--out", tmp_path / "x.safetensors")

    with pytest.raises(ModelError, match="fields 'regular' with merge_block 1"):
        popmi(*asked, "--merge-block", 1)
    with pytest.raises(ModelError, match="fields 'regular' with adapters 'bottleneck'"):
        popmi(*asked, "--adapters", "bottleneck")
    with pytest.raises(ModelError, match="there is no block to free"):
        popmi(*asked, "--free-blocks", 1)
    with pytest.raises(ConfigError, match=r"adapter\.fields: Input should be 'trivial' or 'regular'"):
        popmi(*FIT, "--group", "C4", "--fields", "octic", "--out", tmp_path / "x.safetensors")
