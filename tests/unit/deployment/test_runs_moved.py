"""Runs of an older POPMI are moved out of the centre's volume once, by the script that makes the centre's home."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

INIT = Path(__file__).parents[3] / "deploy" / "compose" / "init.sh"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A centre's home with a run in it, and the volume `runs`, empty."""
    home = tmp_path / "home"
    for folder in ("pki", "runs/first/models"):
        (home / folder).mkdir(parents=True)
    for name in ("server.toml", "pki/ca.pem", "pki/server.key", "pki/server.pem", "runs/first/plan.json"):
        (home / name).write_text(name)
    (home / "runs/first/models/round-001.safetensors").write_bytes(b"weights")
    (home / "runs/first/run.lock").touch()
    for folder in ("volume/runs", "volume/password", "volume/gateway"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def start(place: Path) -> subprocess.CompletedProcess[str]:
    """Run the script with its volumes below ``place``."""
    text = INIT.read_text()
    for volume in ("/runs", "/password", "/gateway"):
        text = re.sub(rf"(?<=[ \"=]){volume}(?=[/\" \n])", f"{place}/volume{volume}", text)
    programs = place / "bin"
    programs.mkdir(exist_ok=True)
    for name, does in (("popmi", "true"), ("python", f'exec {sys.executable} "$@"')):
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "POPMI_SERVER_HOME": str(place / "home")}
    return subprocess.run(["/bin/sh", "-c", text], env=environment, capture_output=True, text=True, timeout=20)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_moved_whole_and_once(older: Path) -> None:
    before = files(older / "home" / "runs")
    done = start(older)
    assert done.returncode == 0, done.stderr
    assert "run first was moved" in done.stdout
    assert files(older / "volume" / "runs") == before
    assert list((older / "home" / "runs").iterdir()) == []
    again = start(older)
    assert (again.returncode, again.stdout) == (0, "")
    assert files(older / "volume" / "runs") == before


def test_a_move_that_was_cut_off_begins_anew(older: Path) -> None:
    before = files(older / "home" / "runs")
    (older / "volume/runs/.first.part/models").mkdir(parents=True)
    (older / "volume/runs/.first.part/models/round-001.safetensors").write_bytes(b"wei")
    assert start(older).returncode == 0
    assert files(older / "volume" / "runs") == before


def test_what_was_moved_but_not_yet_taken_away_is_not_moved_again(older: Path) -> None:
    (older / "volume/runs/first").mkdir()
    (older / "volume/runs/first/plan.json").write_text("newer")
    assert start(older).returncode == 0
    assert files(older / "volume" / "runs") == {"first/plan.json": b"newer"}
    assert list((older / "home" / "runs").iterdir()) == []


def test_a_run_that_goes_on_is_left_alone_and_the_remedy_named(older: Path) -> None:
    with (older / "home/runs/first/run.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = start(older)
    assert done.returncode == 2
    assert "run first is going on" in done.stderr
    assert "docker compose down" in done.stderr
    assert files(older / "volume" / "runs") == {}
    assert "first/plan.json" in files(older / "home" / "runs")
