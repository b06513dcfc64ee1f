"""A run that was stopped or killed goes on where it was, to the same model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.app import app as client_app
from popmi_core.cli.lineup import reopen_run
from popmi_core.cli.summary import summarise
from popmi_core.errors import ModelError, RunError


def interrupted_in(server_round):
    """Return a client app in whose training of ``server_round`` the operator presses Ctrl-C."""

    def app(message, context):
        if message.metadata.message_type == "train" and message.metadata.group_id == str(server_round):
            raise KeyboardInterrupt
        return client_app(message, context)

    return app


@pytest.mark.parametrize(
    "parts",
    [
        {"strategy": "opm"},
        {"strategy": "fedadam"},
        {"strategy": "local"},
        {"strategy": "fedavg", "local": {"objective": "control_variates", "batch_size": 32}},
    ],
    ids=["opm", "fedadam", "local", "control variates"],
)
def test_a_resumed_run_ends_with_the_same_model_as_one_in_one_piece(federation, parts):
    whole = federation.plan("whole", rounds=3, **parts)
    federation.run(whole)
    plan = federation.plan("pieces", rounds=3, **parts)
    with pytest.raises(KeyboardInterrupt):
        federation.run(plan, interrupted_in(2))
    with federation.read(plan) as reader:
        assert (reader.run().status, reader.run().rounds_done) == ("stopped", 1)
    assert (Path(plan.folder) / "report.html").exists()
    federation.run(reopen_run(Path(plan.folder)))
    with federation.read(plan) as reader:
        assert (reader.run().status, reader.run().rounds_done) == ("finished", 3)
    assert federation.model_bytes(plan, 3) == federation.model_bytes(whole, 3)


def test_a_run_stopped_before_its_first_round_can_be_resumed(federation):
    plan = federation.plan(rounds=1)
    with pytest.raises(KeyboardInterrupt):
        federation.run(plan, interrupted_in(1))
    federation.run(reopen_run(Path(plan.folder)))
    assert summarise(Path(plan.folder)).status == "finished"


def with_one_bit_turned(path):
    payload = bytearray(path.read_bytes())
    payload[-100] ^= 0x01
    path.write_bytes(payload)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"strategy": "opm"}, "models/round-001.safetensors"),
        ({"strategy": "fedadam"}, "models/round-001.safetensors"),
        ({"strategy": "fedadam"}, "state/round-001.safetensors"),
        ({"strategy": "local"}, "models/round-001.safetensors"),
        (
            {"strategy": "fedavg", "local": {"objective": "control_variates", "batch_size": 32}},
            "models/round-001.safetensors",
        ),
    ],
    ids=["opm", "fedadam", "fedadam's own state", "local", "control variates"],
)
def test_with_its_only_checkpoint_damaged_a_run_makes_round_1_anew_and_ends_with_the_same_model(
    federation, parts, name
):
    whole = federation.plan("whole", rounds=3, **parts)
    federation.run(whole)
    plan = federation.plan("pieces", rounds=3, **parts)
    with pytest.raises(KeyboardInterrupt):
        federation.run(plan, interrupted_in(2))
    with_one_bit_turned(Path(plan.folder) / name)
    federation.run(reopen_run(Path(plan.folder)))
    with federation.read(plan) as reader:
        assert (reader.run().status, reader.run().rounds_done) == ("finished", 3)
        (said,) = [row for row in reader.events(1) if "checkpoint" in row.text]
        trained = [(row.server_round, row.site) for row in reader.sites(1) if row.phase == "train"]
    assert said.level == "warning"
    assert re.search(
        rf"round 1: .*{Path(plan.folder).name}/{name}.* Round 1 is made anew, from the run's start", said.text
    )
    assert sorted(trained) == [(number, site) for number in (1, 2, 3) for site in plan.config.sites]
    for server_round in (1, 2, 3):
        assert federation.model_bytes(plan, server_round) == federation.model_bytes(whole, server_round)


def test_a_run_that_failed_in_void_rounds_after_a_damaged_first_one_makes_that_anew(federation):
    whole = federation.plan("whole", rounds=4)
    federation.run(whole)
    plan = federation.plan("broken", rounds=4)

    def silent_after_the_first(message, context):
        silent = message.metadata.message_type == "train" and message.metadata.group_id != "1"
        return None if silent else client_app(message, context)

    with pytest.raises(RunError, match="3 round"):
        federation.run(plan, silent_after_the_first)
    with_one_bit_turned(Path(plan.folder) / "models" / "round-001.safetensors")
    federation.run(reopen_run(Path(plan.folder)))
    assert federation.model_bytes(plan, 4) == federation.model_bytes(whole, 4)


def test_with_the_checkpoints_of_several_rounds_all_damaged_the_run_stops_and_names_them(federation):
    plan = federation.plan(rounds=3)
    with pytest.raises(KeyboardInterrupt):
        federation.run(plan, interrupted_in(3))
    for path in (Path(plan.folder) / "models").glob("*.safetensors"):
        with_one_bit_turned(path)
    with pytest.raises(ModelError, match=r"round-002\.safetensors.*round-001\.safetensors.* All 2 are damaged"):
        federation.run(reopen_run(Path(plan.folder)))
    with federation.read(plan) as reader:
        assert (reader.run().status, [row.server_round for row in reader.rounds(1)]) == ("failed", [1, 2])


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(RunError, match="holds no run to resume"):
        reopen_run(tmp_path)


def test_a_killed_run_goes_on_through_the_command_line(federation, tmp_path):
    config = tmp_path / "tiny.toml"
    config.write_text(
        'strategy = "opm"\nrounds = 40\nsites = ["phantom_polarised", "phantom_slide"]\n'
        '[data]\nsource = "phantom"\nphantom_images = 60\n'
        '[model]\nbackbone = "popmi_vit_micro"\nimage_size = 32\n'
    )
    folder = tmp_path / "killed"
    popmi = str(Path(sys.executable).with_name("popmi"))
    command = [popmi, "simulate", str(config), "--out", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not list(folder.glob("models/round-002.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = summarise(folder).rounds
    assert 1 <= finished < 40
    resume = [popmi, "simulate", "--resume", str(folder), "--json"]
    done = subprocess.run(resume, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert '"rounds": 40' in done.stdout


def test_a_model_that_is_another_than_the_record_says_is_not_gone_on_from(federation):
    whole = federation.plan("whole", rounds=3)
    federation.run(whole)
    plan = federation.plan(rounds=3)
    with pytest.raises(KeyboardInterrupt):
        federation.run(plan, interrupted_in(3))
    models = Path(plan.folder) / "models"
    (models / "round-002.safetensors").write_bytes((models / "round-001.safetensors").read_bytes())
    federation.run(reopen_run(Path(plan.folder)))
    with federation.read(plan) as reader:
        (said,) = [row.text for row in reader.events(1) if "checkpoint" in row.text]
    assert re.search(r"round 2: .*has sha256 .*expected .*Going on from the checkpoint of round 1", said)
    assert federation.model_bytes(plan, 3) == federation.model_bytes(whole, 3)


def test_a_lost_state_of_the_server_optimiser_is_a_damaged_checkpoint(federation):
    whole = federation.plan("whole", strategy="fedadam", rounds=3)
    federation.run(whole)
    plan = federation.plan(strategy="fedadam", rounds=3)
    with pytest.raises(KeyboardInterrupt):
        federation.run(plan, interrupted_in(3))
    (Path(plan.folder) / "state" / "round-002.safetensors").unlink()
    federation.run(reopen_run(Path(plan.folder)))
    with federation.read(plan) as reader:
        (said,) = [row.text for row in reader.events(1) if "checkpoint" in row.text]
    assert re.search(r"round 2: cannot read checkpoint.*Going on from the checkpoint of round 1", said)
    assert federation.model_bytes(plan, 3) == federation.model_bytes(whole, 3)


def test_a_run_that_failed_in_void_rounds_goes_on_with_its_server_optimiser(federation):
    whole = federation.plan("whole", strategy="fedadam", rounds=4)
    federation.run(whole)
    plan = federation.plan("broken", strategy="fedadam", rounds=4)

    def silent_after_the_first(message, context):
        silent = message.metadata.message_type == "train" and message.metadata.group_id != "1"
        return None if silent else client_app(message, context)

    with pytest.raises(RunError, match="3 round"):
        federation.run(plan, silent_after_the_first)
    federation.run(reopen_run(Path(plan.folder)))
    assert federation.model_bytes(plan, 4) == federation.model_bytes(whole, 4)
