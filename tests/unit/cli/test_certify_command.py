"""`popmi geometry` and `popmi certify` as a person uses them."""

from __future__ import annotations

import json

import pytest
import timm
from typer.testing import CliRunner

from popmi_core.adapters import attach
from popmi_core.checkpoints import save_state
from popmi_core.cli.certifying import Certificate, plain_words
from popmi_core.cli.main import commands
from popmi_core.equivariance.certificate import Algebraic, Conformal
from popmi_core.errors import ConfigError, ModelError
from popmi_core.models import PRESETS

RUN = CliRunner()
NAMED = ["--model", PRESETS[1], "--model-arg", "img_size=32", "--data", "phantom:phantom_ruler", "--limit", "8"]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "prea.safetensors"
    backbone = timm.create_model(PRESETS[1], num_classes=7, img_size=32)
    save_state(path, attach(backbone, group="C4", merge_block=0).state_dict(), {})
    return path


def test_geometry_tells_every_merge_block_its_verdict_as_json():
    done = RUN.invoke(commands, ["geometry", PRESETS[1], "--image-size", "32", "--group", "D4", "--json"])

    assert done.exit_code == 0, done.output
    verdicts = json.loads(done.output)["verdicts"]
    assert [(one["merge_block"], one["verdict"]) for one in verdicts] == [(k, "exact") for k in range(3)]


def test_geometry_names_reason_and_nearest_size_on_the_screen():
    done = RUN.invoke(commands, ["geometry", "convnext_atto", "--image-size", "36", "--merge-block", "1"])

    assert done.exit_code == 0, done.output
    assert "refused" in done.output
    assert "even" in done.output


@pytest.mark.parametrize(("name", "size"), [("popmi_p4_cnn", "28"), ("popmi_octic_vit_nano", "64")])
def test_geometry_has_nothing_to_say_of_networks_that_turn_by_their_own_layers(name, size):
    with pytest.raises(ModelError, match=f"{name} turns with the image by its own layers"):
        RUN.invoke(commands, ["geometry", name, "--image-size", size], catch_exceptions=False)


def test_geometry_of_what_timm_refuses_is_an_error():
    asked = ["geometry", PRESETS[1], "--image-size", "32", "--model-arg", "nonsense=1"]
    with pytest.raises(ModelError, match="timm cannot make"):
        RUN.invoke(commands, asked, catch_exceptions=False)


def test_certify_writes_json_a_page_and_pictures(adapted, tmp_path):
    out = tmp_path / "certificate"
    done = RUN.invoke(commands, ["certify", str(adapted), "--adapter", "C4:0", *NAMED, "--out", str(out)])

    assert done.exit_code == 0, done.output
    told = json.loads((out / "certificate.json").read_text())
    assert told["algebraic"]["verdict"] == "proved"
    assert told["telescoping"]["remainder"] < 1e-12
    assert told["statistical"]["sites"][0]["site"] == "phantom_ruler"
    page = (out / "certificate.html").read_text()
    assert "C4: PROVED" in page
    assert {path.suffix for path in out.iterdir()} == {".json", ".html", ".png", ".svg"}
    assert all(name in page for name in ("weights.png", "layers.png", "sites.png"))

    with pytest.raises(ConfigError, match="there is a certificate in it already"):
        RUN.invoke(commands, ["certify", str(adapted), *NAMED, "--out", str(out)], catch_exceptions=False)


def test_certify_refuses_an_impossible_level(adapted):
    with pytest.raises(ConfigError, match="expected a share between 0 and 1"):
        RUN.invoke(commands, ["certify", str(adapted), *NAMED, "--alpha", "1.5"], catch_exceptions=False)


def test_too_few_images_are_not_told_as_an_answer_that_does_not_change():
    algebra = Algebraic("C4", "proved", "", (), (), 1e-6, 1e-15)
    few = Conformal("a", 3, 3, 0.9, 1.0, 1.0, 1.0, 0.01, 0.02, 36)

    told = plain_words(Certificate("C4", algebra, (), "", (few,)))

    assert any("no bound below 1 holds" in line for line in told)
    assert not any("changes the answer by nothing" in line for line in told)
