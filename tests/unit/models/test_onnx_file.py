"""A model as ONNX: the same answers, in a file that tells nothing of the machine."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from popmi_core.config import ModelConfig
from popmi_core.errors import ModelError, RunError
from popmi_core.models import build_model, onnx_file
from popmi_core.models.inputs import normalise
from popmi_core.models.onnx_file import TOLERANCE, to_onnx, write_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
SIDE, CLASSES = 32, 3
KINDS = {
    "plain": {},
    "C4": {"adapter": {"group": "C4"}},
    "D4 with learned shares": {"adapter": {"group": "D4", "weights": "lambda"}},
    "C4 in regular fields": {"adapter": {"group": "C4", "fields": "regular"}},
}


def made(**changes: object) -> nn.Module:
    config = ModelConfig.model_validate({"backbone": "popmi_vit_nano", "image_size": SIDE, **changes})
    return build_model(config, CLASSES, seed=5)


def answers(payload: bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    """A model and its file."""
    model = made(**KINDS[request.param])
    return model, to_onnx(model, SIDE, {"card": "{}"})


def stored(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_file_answers_as_the_model_does_for_every_batch(pair, batch):
    model, file = pair
    pixels = stored(batch)
    with torch.inference_mode():
        expected = model(normalise(torch.from_numpy(pixels), model)).numpy()
    got = answers(file.payload, (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32))
    # float32 in another order of operations: see TOLERANCE
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)
    assert file.difference <= TOLERANCE
    assert file.compared_with == "onnxruntime"
    assert (file.image_size, file.classes) == (SIDE, CLASSES)


def test_the_file_is_valid_and_tells_no_folder_of_this_machine(pair):
    _, file = pair
    proto = onnx.load_from_string(file.payload)
    onnx.checker.check_model(proto, full_check=True)
    assert {item.key: item.value for item in proto.metadata_props} == {"card": "{}"}
    for folder in (Path(onnx_file.__file__).parents[2], Path(torch.__file__).parents[1]):
        assert str(folder).encode() not in file.payload
    assert b"torch/nn/modules" not in file.payload


def test_a_turned_image_gets_the_same_answer_from_the_file():
    file = to_onnx(made(adapter={"group": "C4"}), SIDE)
    images = np.random.default_rng(4).random((2, 3, SIDE, SIDE), dtype=np.float32)
    turned = np.ascontiguousarray(np.rot90(images, axes=(2, 3)))
    # exact in real numbers; float32 sums the orbit in another order
    np.testing.assert_allclose(answers(file.payload, images), answers(file.payload, turned), atol=1e-5)


def test_the_reference_compares_where_onnx_runtime_is_not_there(monkeypatch):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    small = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))
    file = to_onnx(small, 8)
    assert file.compared_with == "reference"
    assert file.difference <= TOLERANCE


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"writing ONNX needs onnx and onnxscript, .* Install popmi\[server\]"):
        to_onnx(nn.Flatten(), 8)


class OfTwoMinds(nn.Module):
    """What it says depends on its input in Python, which no graph can tell."""

    def forward(self, images):
        if float(images.sum()) > 1e9:
            return images.flatten(1)
        return images.flatten(1) * 2


def test_what_no_graph_can_tell_is_refused_with_the_kind_of_model():
    with pytest.raises(ModelError, match="OfTwoMinds cannot be written as ONNX"):
        to_onnx(OfTwoMinds(), 8)


def test_a_file_with_other_answers_is_refused(monkeypatch):
    monkeypatch.setattr(onnx_file, "_runner", lambda _: (lambda images: np.full((len(images), 3), 9.0), "liar"))
    with pytest.raises(ModelError, match=r"logits differ from the model's by .* expected at most .* \(by liar\)"):
        to_onnx(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3)), 8)


def test_a_file_with_another_shape_is_refused(monkeypatch):
    monkeypatch.setattr(onnx_file, "_runner", lambda _: (lambda images: np.zeros((len(images), 2)), "liar"))
    with pytest.raises(ModelError, match=r"the ONNX file answers \(1, 2\), expected \(1, 3\)"):
        to_onnx(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3)), 8)


def test_what_the_file_is_stands_beside_it(tmp_path):
    file = to_onnx(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES)), 8)
    sheet = write_onnx(tmp_path / "m.onnx", file, {"sha256": "ab"})
    assert json.loads((tmp_path / "m.onnx.json").read_text()) == sheet
    assert sheet["sha256"] == hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    assert sheet["source"] == {"sha256": "ab"}
    assert sheet["input"]["shape"] == ["batch", 3, 8, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.json"]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    file = to_onnx(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES)), 8)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        write_onnx(tmp_path / "file" / "m.onnx", file, {})
