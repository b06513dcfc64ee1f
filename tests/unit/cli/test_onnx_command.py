"""`popmi onnx`: one file in, one out, and its sheet."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from popmi_core.cli.main import commands
from popmi_core.cli.opened import open_model
from popmi_core.models.inputs import channel_statistics

onnxruntime = pytest.importorskip("onnxruntime")
NAME = ["--model", "popmi_vit_micro"]


def run(*arguments: object):
    return CliRunner().invoke(commands, ["onnx", *map(str, arguments)])


def test_a_plain_file_becomes_onnx_with_the_same_answers(model_file, tmp_path):
    out = tmp_path / "one.onnx"
    done = run(model_file("one"), out, *NAME, "--json")
    assert done.exit_code == 0, done.output
    sheet = json.loads(done.output)
    assert sheet["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert sheet["source"]["sha256"] == hashlib.sha256(model_file("one").read_bytes()).hexdigest()
    opened = open_model(model_file("one"), model="popmi_vit_micro")
    side = opened.architecture.image_size
    images = np.random.default_rng(2).random((4, 3, side, side), dtype=np.float32)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    mean, std = channel_statistics(opened.model)
    with torch.inference_mode():
        expected = opened.model((torch.from_numpy(images) - mean) / std).numpy()
    # float32 in another order of operations
    np.testing.assert_allclose(session.run(["logits"], {"images": images})[0], expected, atol=1e-4)


def test_the_screen_says_how_near_the_answers_are(model_file, tmp_path):
    done = run(model_file("one"), tmp_path / "one.onnx", *NAME)
    assert done.exit_code == 0, done.output
    assert "logits differ from torch's by at most" in done.output


def test_a_file_that_is_there_is_kept_unless_told_otherwise(model_file, tmp_path):
    out = tmp_path / "one.onnx"
    out.write_bytes(b"older")
    done = run(model_file("one"), out, *NAME)
    assert done.exit_code != 0
    assert "is there already" in str(done.exception)
    assert out.read_bytes() == b"older"
    assert run(model_file("one"), out, *NAME, "--force").exit_code == 0
    assert out.read_bytes() != b"older"
