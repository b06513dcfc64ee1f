"""What the containers' scripts ask of `popmi`, with a `popmi` that only tells how it was called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "deploy" / "compose"


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a `popmi` first on the path that writes its words into a file; return the file."""
    calls = tmp_path / "calls"
    calls.touch()
    program = tmp_path / "bin" / "popmi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$*" >> {calls}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return calls


def script(tmp_path: Path, name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script, its fixed places moved below ``tmp_path``."""
    text = (SCRIPTS / name).read_text()
    for place in ("/run.toml", "/handovers", "/opt/popmi/deploy/compose"):
        text = text.replace(f" {place}", f" {tmp_path}{place}").replace(f'"{place}', f'"{tmp_path}{place}')
    file = tmp_path / name
    file.write_text(text)
    return subprocess.run(
        ["/bin/sh", str(file), *words], env=os.environ | environment, capture_output=True, text=True, timeout=20
    )


def test_images_without_the_names_of_their_classes_are_refused(said: Path, tmp_path: Path) -> None:
    done = script(tmp_path, "init.sh", POPMI_SERVER_HOME=str(tmp_path), IMAGES="/data/north", CLASSES="")
    assert done.returncode == 2
    assert "name the study's classes" in done.stderr
    assert said.read_text() == ""


@pytest.mark.parametrize(("classes", "study"), [("", "--data=phantom"), ("mel,nv", "--classes=mel,nv")])
def test_a_study_is_of_phantoms_or_of_the_classes_that_were_named(
    said: Path, tmp_path: Path, classes: str, study: str
) -> None:
    (tmp_path / "run.toml").write_text("rounds = 3\n")
    done = script(tmp_path, "init.sh", POPMI_SERVER_HOME=str(tmp_path), CLASSES=classes)
    assert done.returncode == 0, done.stderr
    assert said.read_text().split()[-1] == study


def test_the_plan_of_the_first_start_stays_when_the_file_changes(said: Path, tmp_path: Path) -> None:
    for text in ("rounds = 3\n", "rounds = 9\n"):
        (tmp_path / "run.toml").write_text(text)
        assert script(tmp_path, "init.sh", POPMI_SERVER_HOME=str(tmp_path)).returncode == 0
    assert (tmp_path / "planned.toml").read_text() == "rounds = 3\n"


def test_a_kit_is_made_once_and_lies_ready_whole(said: Path, tmp_path: Path) -> None:
    (tmp_path / "kits").mkdir()
    (tmp_path / "handovers" / "6").mkdir(parents=True)
    (tmp_path / "kits" / "north.zip").write_bytes(b"kit")
    done = script(tmp_path, "invite.sh", "north", "6", POPMI_SERVER_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert said.read_text() == ""
    assert [item.name for item in (tmp_path / "handovers" / "6").iterdir()] == ["kit.zip"]


def test_the_centre_invites_starts_the_run_once_and_becomes_the_keeper(said: Path, tmp_path: Path) -> None:
    below = tmp_path / "opt" / "popmi" / "deploy" / "compose"
    below.mkdir(parents=True)
    (below / "invite.sh").write_text(f'echo "invite $1 $2" >> {said}\n')
    for _ in range(2):
        done = script(tmp_path, "centre.sh", POPMI_SERVER_HOME=str(tmp_path), SITES="north:1 south:2", RUN="first")
        assert done.returncode == 0, done.stderr
        (tmp_path / "wanted.json").write_text("{}")
    invited = ["invite north 1", "invite south 2"]
    keeper = f"server up --only keeper --confirm-from {tmp_path}/handovers"
    assert said.read_text().splitlines() == [*invited, "server start --name first", keeper, *invited, keeper]
