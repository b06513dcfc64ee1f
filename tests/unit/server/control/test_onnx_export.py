"""A run's model as ONNX, beside the model."""

from __future__ import annotations

import hashlib
import json

import pytest
from typer.testing import CliRunner

from popmi_core.checkpoints import save_state
from popmi_core.cli.main import commands
from popmi_core.config import ModelConfig, RunConfig
from popmi_core.errors import ModelError, RunError
from popmi_core.models import build_model, exchanged_state
from server.control.home import operator
from server.control.onnx import export_onnx
from server.control.plans import make_plan
from server.store import RunWriter

pytest.importorskip("onnxruntime")
MODEL = ModelConfig.model_validate({"backbone": "popmi_vit_micro", "image_size": 32, "adapter": {"group": "C4"}})


@pytest.fixture
def run(invited):
    """A run of three rounds: the second gave a model, the third none."""
    plan = make_plan(invited, RunConfig(rounds=3, model=MODEL), "first")
    state = exchanged_state(build_model(MODEL, len(plan.classes), seed=9))
    models = invited.run_folder("first") / "models"
    digests = {
        number: save_state(
            models / f"round-{number:03d}.safetensors", state, {"card": json.dumps({"limits": ["for research"]})}
        )
        for number in (1, 2)
    }
    with RunWriter(invited.run_folder("first") / "record.sqlite", heartbeat=0) as writer:
        writer.start_run(
            "first", config={}, environment={}, strategy="opm", seed=0, rounds_planned=3, data_name="d", phantom=False,
            classes=["mel", "nv"], sites=["charite"],
        )  # fmt: skip
        for number in (1, 2, 3):
            writer.start_round(number)
            writer.finish_round(
                number, outcome="ok" if number < 3 else "void", seconds_total=1.0, seconds_train=1.0, seconds_fuse=1.0,
                seconds_evaluate=1.0, notes={}, model_sha256=digests.get(number),
            )  # fmt: skip
    return models


def test_the_last_model_is_written_beside_itself_with_its_card_and_limits(invited, run, audited):
    onnx = pytest.importorskip("onnx")
    path = export_onnx(invited, "first")
    assert path == run / "round-002.onnx"
    sheet = json.loads((run / "round-002.onnx.json").read_text())
    assert sheet["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    source = (run / "round-002.safetensors").read_bytes()
    assert sheet["source"]["sha256"] == hashlib.sha256(source).hexdigest()
    assert sheet["source"]["classes"] == ["mel", "nv"]
    assert sheet["source"]["limits"] == ["for research"]
    notes = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert json.loads(notes["source"])["round"] == 2
    assert json.loads(notes["card"]) == {"limits": ["for research"]}
    told = audited("model.onnx")
    assert (told["run"], told["round"], told["sha256"]) == ("first", 2, sheet["sha256"])
    assert told["who"] == operator()


def test_an_earlier_round_is_written_by_its_number(invited, run):
    result = CliRunner().invoke(commands, ["server", "onnx", "first", "1", "--home", str(invited.folder)])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(run / "round-001.onnx")


def test_a_model_that_is_not_the_records_is_never_written(invited, run):
    save_state(run / "round-002.safetensors", exchanged_state(build_model(MODEL, 2, seed=1)))
    with pytest.raises(RunError, match="is not the model that the record of round 2 tells of"):
        export_onnx(invited, "first")
    assert not (run / "round-002.onnx").exists()


def test_a_model_of_another_shape_is_refused(invited, run):
    other = RunConfig(rounds=3, model=MODEL.model_copy(update={"image_size": 64}))
    plan = invited.run_folder("first") / "plan.json"
    told = json.loads(plan.read_text())
    plan.write_text(json.dumps({**told, "config": other.model_dump(mode="json")}))
    with pytest.raises(ModelError, match="expected"):
        export_onnx(invited, "first")


def test_a_round_without_a_model_is_told(invited, run):
    with pytest.raises(RunError, match=r"run first has no model of round 3: round-003.safetensors is not there"):
        export_onnx(invited, "first", 3)
    with pytest.raises(RunError, match=r"run first has no finished round 8; finished rounds: 1, 2, 3"):
        export_onnx(invited, "first", 8)


def test_a_run_without_a_record_has_no_model(invited):
    make_plan(invited, RunConfig(rounds=3, model=MODEL), "first")
    with pytest.raises(RunError, match="run first has no record yet: there is no model"):
        export_onnx(invited, "first")
    with pytest.raises(RunError, match=r"there is no run other\. The runs are: first"):
        export_onnx(invited, "other")
