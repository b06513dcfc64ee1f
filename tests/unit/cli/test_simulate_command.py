"""`popmi simulate` as its user types it."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from popmi_core.checkpoints import load_state
from popmi_core.cli.apps import load
from popmi_core.cli.lineup import choose_sites, plan_run
from popmi_core.cli.progress import shown
from popmi_core.config import parse_config
from popmi_core.data import locate
from popmi_core.errors import ConfigError, DataError, RunError
from popmi_core.simulation import run_ray
from server.store import RunReader

TINY = [
    "--data", "phantom", "--backbone", "popmi_vit_micro", "--image-size", "32", "--rounds", "1",
    "--sites", "phantom_polarised,phantom_slide",
]  # fmt: skip


def popmi(*arguments, cwd, **environment):
    command = [str(Path(sys.executable).with_name("popmi")), "simulate", *arguments]
    kept = {name: value for name, value in os.environ.items() if name != "POPMI_DATA"}
    return subprocess.run(
        command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, timeout=200, check=False
    )


def test_a_run_ends_with_a_table_or_with_json_only(tmp_path):
    shown_run = popmi(*TINY, "--out", "a", cwd=tmp_path)
    assert shown_run.returncode == 0, shown_run.stderr
    assert "all sites together" in shown_run.stdout
    assert "not patients" in shown_run.stdout
    assert "round 1/1" in shown_run.stderr
    as_json = popmi(*TINY, "--out", "b", "--json", cwd=tmp_path)
    assert as_json.returncode == 0, as_json.stderr
    summary = json.loads(as_json.stdout)
    assert (summary["status"], summary["rounds"], summary["phantom"]) == ("finished", 1, True)
    assert as_json.stderr == ""


def test_low_rank_adapters_are_asked_for_by_their_rank(tmp_path):
    done = popmi(*TINY, "--strategy", "lowrank", "--lora-rank", "2", "--out", "a", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"
    (model,) = (tmp_path / "a" / "models").glob("*.safetensors")
    assert load_state(model)[0]["blocks.0.attn.qkv.lora_A.weight"].shape == (2, 32)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--strategy", "fedsgd"], 2, "strategy"),
        (["--engine", "spark"], 2, "expected inprocess or ray"),
        (["--data", "phantom", "--sites", "nowhere"], 2, "unknown or repeated: nowhere"),
        (["--data", "phantom", "--sites", ""], 2, "no site is named"),
        (["--dp-epsilon", "inf"], 2, "privacy.target_epsilon"),
        (["--seed", "99999999999"], 2, "seed"),
        (["--dp-delta", "1e-5"], 2, "privacy.target_epsilon"),
        (["absent.toml"], 2, "cannot read absent.toml"),
        (["--resume", "absent"], 7, "holds no run to resume"),
        (["--resume", "absent", "--rounds", "3"], 2, "no other description"),
        (["--data", "/no/such/folder"], 3, "/no/such/folder"),
        ([*TINY, "--backbone", "no_such_net"], 4, "no_such_net"),
        ([*TINY, "--strategy", "lowrank"], 2, "Set model.lora (--lora-rank 8)"),
        ([*TINY, "--lora-rank", "0"], 2, "model.lora.rank"),
        ([*TINY, "--lora-rank", "99"], 4, "takes no adapter of rank 99"),
    ],
)
def test_a_wrong_call_ends_with_its_own_exit_code_and_says_what_to_do(tmp_path, arguments, code, said):
    done = popmi(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("Error: ") or "\nError: " in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_real_data_that_is_named_but_unusable_is_never_replaced_by_the_phantom(tmp_path):
    done = popmi("--rounds", "1", cwd=tmp_path, POPMI_DATA=str(tmp_path))
    assert done.returncode == DataError.exit_code
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write run folder"):
        plan_run(parse_config({"data": {"source": "phantom"}}), tmp_path / "file" / "run")


def test_sites_are_all_the_first_so_many_or_those_named():
    federation = locate("phantom", image_size=64)
    every = list(federation.sites)
    assert choose_sites(None, federation) == every
    assert choose_sites(("2",), federation) == every[:2]
    assert choose_sites((every[3], every[0]), federation) == [every[3], every[0]]
    with pytest.raises(ConfigError, match="expected 1 to 5"):
        choose_sites(("6",), federation)
    with pytest.raises(ConfigError, match="a name twice"):
        choose_sites((every[0], every[0]), federation)


@pytest.mark.parametrize("name", ["pooled", "global", "external"])
def test_a_site_with_a_name_the_record_needs_is_refused(name):
    federation = replace(locate("phantom", image_size=64), sites={name: "phantom:phantom_slide"})
    with pytest.raises(ConfigError, match=f"cannot be called {name}"):
        choose_sites(None, federation)


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*log\.txt"), shown(tmp_path, quiet=True):
        pass


def test_a_full_disk_shortens_the_log_and_prints_no_traceback(tmp_path, capsys):
    with shown(tmp_path, quiet=True):
        (kept,) = logging.getLogger("popmi").handlers
        kept.stream.close()
        kept.stream = open("/dev/full", "w")  # noqa: SIM115, PTH123 - the handler closes it
        logging.getLogger("popmi.round").info("round 1")
    # logging's own traceback repeats the message; a thread of an earlier test may write here, too.
    assert "round 1" not in capsys.readouterr().err


def test_ray_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="needs the package ray"):
        run_ray(None, None, num_sites=1, run_config={}, cpus_per_site=1)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_run_that_is_stopped_says_how_to_go_on_and_can(tmp_path, name):
    command = [str(Path(sys.executable).with_name("popmi")), "simulate", *TINY, "--rounds", "500", "--out", "a b"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell's background job ignores Ctrl-C, and so would what a test started from there starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "a b" / "models" / "round-002.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--resume '{tmp_path / 'a b'}'" in said
    assert "Traceback" not in said
    with RunReader(tmp_path / "a b" / "record.sqlite") as reader:
        assert reader.run().status == "stopped"
        assert reader.run().rounds_done >= 1
    assert (tmp_path / "a b" / "report.html").exists()


def test_a_finished_run_is_left_alone_when_it_is_resumed(tmp_path):
    first = popmi(*TINY, "--out", "a", "--json", cwd=tmp_path)
    record = (tmp_path / "a" / "record.sqlite").read_bytes()
    again = popmi("--resume", "a", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "this run has finished" in again.stderr
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert (tmp_path / "a" / "record.sqlite").read_bytes() == record


def test_a_missing_package_names_what_to_install():
    with pytest.raises(ConfigError, match="needs the package 'no_such_package'"):
        load("no_such_package.app:app")


def test_the_log_of_a_run_keeps_everything_and_shows_no_site_log(tmp_path, capsys):
    with shown(tmp_path, quiet=False):
        logging.getLogger("popmi.round").info("round 1")
        logging.getLogger("popmi.site").error("a path of a patient")
    assert "patient" in (tmp_path / "log.txt").read_text()
    said = capsys.readouterr().err
    assert "round 1" in said
    assert "patient" not in said
