"""`popmi evaluate`: figures, curve, LEE, pictures, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from popmi_core.cli.evaluation import evaluate_model, read_parts
from popmi_core.cli.evaluation_tables import number, ratio
from popmi_core.cli.main import commands
from popmi_core.cli.opened import open_model
from popmi_core.data import make_phantom_site
from popmi_core.data.medmnist import read_medmnist
from popmi_core.errors import ConfigError, DataError, ModelError
from popmi_core.metrics import classification_metrics
from popmi_core.models import predict

NAME = ["--model", "popmi_vit_micro"]


def _run(*arguments: object):
    return CliRunner().invoke(commands, ["evaluate", *map(str, arguments)])


def test_figures_are_those_of_the_models_scores(model_file, cells):
    done = _run(model_file("one"), "--data", cells, *NAME, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    opened = open_model(model_file("one"), model="popmi_vit_micro")
    part = read_parts([str(cells)], image_size=32, classes=8, split="test", limit=None, native=False).sized[
        "bloodmnist"
    ]
    expected = classification_metrics(predict(opened.model, part.images), part.targets)
    assert found["figures"]["bloodmnist"] == pytest.approx(expected)
    assert found["images"] == {"bloodmnist": 32}
    assert found["model"]["file"] == "one.safetensors"
    assert "rotations" not in found
    assert "lee" not in found


def test_everything_is_written_and_shown(model_file, cells, tmp_path):
    out = tmp_path / "result"
    done = _run(model_file("one"), "--data", cells, *NAME, "--rotations", "--lee", "--limit", 6, "--lee-images", 2,
                "--samples", 2, "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    names = {path.name for path in out.iterdir()}
    pictures = {f"{name}.{kind}" for name in ("rotation", "calibration", "worst_angle", "lee", "lee_layers")
                for kind in ("png", "svg")}  # fmt: skip
    assert names == {"evaluation.json", "evaluation.html"} | pictures
    found = json.loads((out / "evaluation.json").read_text())
    assert found["rotations"]["native_pixels"] == {"bloodmnist": 28}
    assert len(found["rotations"]["by_angle"]["ece"]) == 36
    assert set(found["lee"]["end_to_end"]) == {"translation", "rotation", "scale", "shear", "hyperbolic"}
    assert found["lee"]["by_kind"]["rotation"]["patch embedding"] > 0
    page = (out / "evaluation.html").read_text()
    assert "Turned by 0 to 350 degrees" in page
    assert '<img src="rotation.png"' in page
    assert str(tmp_path) not in page + (out / "evaluation.json").read_text()
    assert "Turned by 0 to 350 degrees" in done.output
    assert "LEE by layer" in done.output


def test_an_evaluation_is_only_replaced_when_asked(model_file, cells, tmp_path):
    out = tmp_path / "result"
    assert _run(model_file("one"), "--data", cells, *NAME, "--out", out).exit_code == 0
    again = _run(model_file("one"), "--data", cells, *NAME, "--out", out)
    assert isinstance(again.exception, ConfigError)
    assert "there is an evaluation in it already" in str(again.exception)
    assert _run(model_file("one"), "--data", cells, *NAME, "--out", out, "--force").exit_code == 0


def test_several_sites_have_figures_each_and_together(model_file, cells):
    other = cells.with_name("othermnist.npz")
    content = dict(np.load(cells))
    np.savez(other, **content, class_names=np.array(read_medmnist(cells, image_size=None).classes))
    done = _run(model_file("one"), "--data", cells, "--data", other, *NAME, "--limit", 8, "--rotations", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert list(found["figures"]) == ["bloodmnist", "othermnist", "all"]
    assert found["rotations"]["native_pixels"] == {"bloodmnist": 28, "othermnist": 28}
    assert set(found["rotations"]["sites"]) == {"bloodmnist", "othermnist"}
    assert found["rotations"]["num_images"] == sum(found["images"].values()) == 8


def test_images_are_turned_at_their_own_resolution_and_are_the_same_images(model_file, tmp_path):
    drawn = make_phantom_site("phantom_contact", num_images=60, image_size=64, seed=0)
    content = {}
    for split in ("train", "val", "test"):
        part = getattr(drawn, split)
        content |= {f"{split}_images": part.images, f"{split}_labels": part.targets[:, None]}
    np.savez(tmp_path / "large.npz", **content, class_names=np.array(drawn.classes))
    parts = read_parts([str(tmp_path / "large.npz")], image_size=32, classes=7, split="test", limit=5, native=True)
    assert parts.sized["large"].images.shape[1] == 32
    assert parts.native["large"].images.shape[1] == 64
    assert (parts.sized["large"].targets == parts.native["large"].targets).all()
    small = parts.native["large"].images.reshape(-1, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    # Means of four pixels against a reduction twice as wide: alike, and unlike other images.
    assert np.abs(small - parts.sized["large"].images).mean() < 6


def test_nan_weights_are_named(model_file, cells):
    path = model_file("broken")
    state = load_file(path)
    state["head.weight"] = torch.full_like(state["head.weight"], float("nan"))
    save_file(state, path)
    done = _run(path, "--data", cells, *NAME)
    assert isinstance(done.exception, ModelError)
    assert "broken.safetensors" in str(done.exception)


def test_a_model_that_overflows_is_refused(model_file, cells):
    opened = open_model(model_file("huge"), model="popmi_vit_micro")
    with torch.no_grad():
        opened.model.head.weight.fill_(3e38)
    parts = read_parts([str(cells)], image_size=32, classes=8, split="test", limit=4, native=False)
    with pytest.raises(ModelError, match="answers NaN or infinity"):
        evaluate_model(opened, parts)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--split", "nowhere"], ConfigError, "--split nowhere"),
        (["--split", "external"], DataError, "no site has an image in the split external"),
        (["--out", "/proc/popmi"], ConfigError, "nothing can be written"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_work(model_file, cells, arguments, error, message):
    done = _run(model_file("one"), "--data", cells, *NAME, *arguments)
    assert isinstance(done.exception, error)
    assert message in str(done.exception)


def test_images_of_other_classes_are_refused(model_file, cells):
    done = _run(model_file("one", classes=5), "--data", cells, *NAME)
    assert isinstance(done.exception, DataError)
    assert "the models know 5" in str(done.exception)


def test_sites_with_the_same_number_of_other_classes_are_refused(tmp_path):
    for name, classes in (("a", ("cat", "dog")), ("b", ("dog", "cat"))):
        content = {"class_names": np.array(classes)}
        for split in ("train", "val", "test"):
            content |= {f"{split}_images": np.zeros((2, 8, 8), np.uint8), f"{split}_labels": np.array([[0], [1]])}
        np.savez(tmp_path / f"{name}.npz", **content)
    with pytest.raises(DataError, match="has other classes than cat, dog"):
        read_parts([str(tmp_path / f"{n}.npz") for n in "ab"], image_size=8, classes=2, split="test", limit=None,
                   native=False)  # fmt: skip


def test_a_site_called_like_the_sum_of_all_keeps_its_own_figures(model_file, cells):
    same = cells.with_name("all.npz")
    content = dict(np.load(cells))
    np.savez(same, **content, class_names=np.array(read_medmnist(cells, image_size=None).classes))
    done = _run(model_file("one"), "--data", same, "--data", cells, *NAME, "--limit", 8, "--json")
    found = json.loads(done.output)
    assert list(found["figures"]) == ["all-1", "bloodmnist", "all"]
    assert list(found["images"]) == ["all-1", "bloodmnist"]


def test_labels_are_brought_into_the_order_that_the_file_tells(model_file, cells):
    known = read_medmnist(cells, image_size=None).classes
    turned, other = cells.with_name("turned.npz"), cells.with_name("others.npz")
    content = dict(np.load(cells))
    for path, names in ((turned, known[::-1]), (other, ("none of it", *known[1:]))):
        np.savez(path, **content, class_names=np.array(names))
    path = model_file("told")
    save_file(load_file(path), path, metadata={"lineage": json.dumps({"class_names": known, "model": NAME[1]})})
    labels = [
        read_parts([str(where)], image_size=32, classes=8, names=open_model(path).architecture.class_names,
                   split="test", limit=None, native=False).sized[where.stem].targets
        for where in (cells, turned)
    ]  # fmt: skip
    assert (labels[1] == 7 - labels[0]).all()
    done = _run(path, "--data", other)
    assert isinstance(done.exception, DataError)
    assert "has images of none of it, the model knows" in str(done.exception)


def test_a_method_around_the_model_makes_it_answer_alike_for_every_quarter_turn(model_file, cells, tmp_path):
    asked = ("--data", cells, *NAME, "--limit", 6, "--rotations", "--json")
    plain, over = (json.loads(_run(model_file("one"), *asked, *more).output) for more in ((), ("--method", "tta")))
    assert ("method" in plain["model"], over["model"]["method"]) == (False, "tta C4")
    moved = [found["rotations"]["by_angle"]["total_variation"] for found in (plain, over)]
    # 36 angles: every ninth is a quarter turn. Float32 sums.
    assert min(moved[0][9::9]) > 1e-4 > 1e-5 > max(moved[1][9::9])
    out = tmp_path / "page"
    assert _run(model_file("one"), "--data", cells, *NAME, "--limit", 4, "--method", "tta", "--out", out).exit_code == 0
    assert "inside tta C4" in (out / "evaluation.html").read_text()


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("lambda-equitune", "has weights of its own"),
        ("p4-cnn", "is a network of its own"),
        ("tat", "method 'tat' is not in the catalogue. Did you mean tta"),
    ],
)
def test_methods_that_say_nothing_of_a_trained_model_are_refused(model_file, cells, method, told):
    done = _run(model_file("one"), "--data", cells, *NAME, "--method", method)
    assert isinstance(done.exception, ConfigError)
    assert told in str(done.exception)


def test_no_data_is_refused():
    with pytest.raises(ConfigError, match="no images are named"):
        read_parts([], image_size=8, classes=2, split="test", limit=None, native=False)


def test_numbers_are_written_to_be_read():
    assert (number(0.12345), number(0.00123), number(float("nan"))) == ("0.123", "0.0012", "–")
    assert (ratio(12.345), ratio(float("inf")), ratio(float("nan"))) == ("12.3", "∞", "–")
