"""One model of a run is pinned: it is the one that an export holds."""

from __future__ import annotations

import hashlib
import zipfile

import pytest

from popmi_core.errors import RunError, SetupError
from server.control.export import export_run
from server.control.home import Asker
from server.control.pins import model_path, pin, read_pins, unpin
from server.store import RunWriter
from server.store.schema import RECORD_NAME


@pytest.fixture
def done(home, wanted):
    """A home whose run `first` has the models of two rounds."""
    writer = RunWriter(home.run_folder("first") / RECORD_NAME, heartbeat=0)
    writer.start_run(
        "first", config={}, environment={}, strategy="opm", seed=0, rounds_planned=3, data_name="d", phantom=False,
        classes=["mel", "nv"], sites=["charite"],
    )  # fmt: skip
    for number in (1, 2):
        path = model_path(home, "first", number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"model %d" % number)
        writer.start_round(number)
        writer.finish_round(
            number, outcome="ok", seconds_total=1.0, seconds_train=1.0, seconds_fuse=1.0, seconds_evaluate=1.0,
            notes={}, model_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )  # fmt: skip
    return home


def models_in(path):
    with zipfile.ZipFile(path) as packed:
        return [name for name in packed.namelist() if name.endswith(".safetensors")]


def test_a_pinned_model_is_what_an_export_takes(done, tmp_path, audited):
    export_run(done, "first", tmp_path / "last.zip")
    assert models_in(tmp_path / "last.zip") == ["model/round-002.safetensors"]
    made = pin(done, "first", 1, note="best on the external set", by=Asker("anna", "page"))
    assert read_pins(done) == {"first": made}
    assert (made.by, made.sha256) == ("anna", hashlib.sha256(b"model 1").hexdigest())
    assert audited("model.pinned")["note"] == "best on the external set"
    export_run(done, "first", tmp_path / "pinned.zip")
    assert models_in(tmp_path / "pinned.zip") == ["model/round-001.safetensors"]
    unpin(done, "first")
    assert read_pins(done) == {}
    assert audited("model.unpinned")["round"] == 1


def test_a_model_that_is_not_the_recorded_one_is_never_pinned(done):
    model_path(done, "first", 1).write_bytes(b"another")
    with pytest.raises(RunError, match=r"has sha256 .*, expected .* as the record of round 1 tells"):
        pin(done, "first", 1)
    model_path(done, "first", 1).unlink()
    with pytest.raises(RunError, match=r"round-001.safetensors cannot be read: No such file"):
        pin(done, "first", 1)
    with pytest.raises(RunError, match="round 3: the record tells of no such model; rounds done: 2"):
        pin(done, "first", 3)
    assert read_pins(done) == {}


def test_a_pinned_model_that_was_changed_since_is_not_exported(done, tmp_path):
    pin(done, "first", 1)
    model_path(done, "first", 1).write_bytes(b"another")
    with pytest.raises(RunError, match="is gone or not the model that was pinned"):
        export_run(done, "first", tmp_path / "out.zip")


def test_a_run_without_a_record_has_nothing_to_pin(home, wanted):
    with pytest.raises(RunError, match="run first has no record yet: there is no model"):
        pin(home, "first", 1)
    with pytest.raises(RunError, match="there is no run other"):
        pin(home, "other", 1)


def test_a_note_too_long_and_a_pin_that_is_not_there_are_told(done):
    with pytest.raises(SetupError, match=r"run first, round 1 is not pinned: note"):
        pin(done, "first", 1, note="x" * 501)
    with pytest.raises(SetupError, match=r"no model of run first is pinned. Pinned are: none"):
        unpin(done, "first")


def test_a_damaged_or_unwritable_file_of_pins_is_told(done):
    done.pins_file.write_text("{")
    with pytest.raises(SetupError, match=r"pins.json is unusable"):
        read_pins(done)
    done.pins_file.unlink()
    done.pins_file.mkdir()
    with pytest.raises(SetupError, match=r"pins.json is unusable"):
        pin(done, "first", 1)


def test_pins_that_cannot_be_written_are_told(done, monkeypatch):
    def full(path, payload):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.control.pins.replace_atomically", full)
    with pytest.raises(SetupError, match=r"cannot write .*pins.json: No space left"):
        pin(done, "first", 1)
