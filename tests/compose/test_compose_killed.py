"""A run in which every part is killed, one after the other, goes on by itself to its end."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.compose, pytest.mark.timeout(2400)]
ROOT = Path(__file__).parents[2]
HOME = "/home/popmi/server"
# Killed one after the other. The last two may end the run for Flower; then the keeper starts it again.
KILLED = ("gateway", "database", "site-2", "superlink", "runner")
ENDING = ("superlink", "runner")
# Enough that some are left when the last part is killed, on a fast machine too.
KILL_ROUNDS = 8


def restarts(stage: Any, service: str) -> int:
    """Return how often the engine has started a container again by itself."""
    container = stage.compose("ps", "--all", "--quiet", service).strip()
    words = ["docker", "inspect", "--format", "{{.RestartCount}}", container]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def kill(stage: Any, service: str) -> None:
    """SIGKILL every process of a container at once, and wait until the engine has started it again.

    From within: after `docker kill` the engine takes a container for stopped by hand and leaves it down.
    """
    before = restarts(stage, service)
    stage.compose("exec", "-T", service, "sh", "-c", "kill -s KILL -- -1", check=False)
    stage.until(f"{service} is started again", lambda: restarts(stage, service) > before)


@pytest.fixture(scope="module")
def survived(stage: Any) -> dict[str, int]:
    """How many rounds were done when each part was killed, once the run has ended."""
    assert stage.finished()["status"] == "finished"
    described = (ROOT / "tests/compose/two-rounds.toml").read_text().replace("rounds = 2", f"rounds = {KILL_ROUNDS}")
    stage.python("keeper", f"open('/tmp/killed.toml', 'w').write({described!r})")
    stage.compose("exec", "-T", "keeper", "popmi", "server", "start", "/tmp/killed.toml", "--name", "killed")
    stage.until("the run has begun", lambda: stage.run("killed").get("status") == "running")
    done: dict[str, int] = {}
    for service in KILLED:
        # The pages are without their database for a moment, and tell of no run then.
        done[service] = stage.until("the pages tell of the run", lambda: stage.run("killed"))["rounds_done"]
        kill(stage, service)
        if service in ENDING:
            further = min(done[service] + 1, KILL_ROUNDS)
            stage.until(
                f"round {further} is done", lambda further=further: stage.run("killed").get("rounds_done", 0) >= further
            )
    run = stage.finished("killed")
    assert (run["status"], run["rounds_done"]) == ("finished", KILL_ROUNDS)
    return done


def test_a_run_in_which_every_part_is_killed_finishes_every_round_by_itself(
    stage: Any, survived: dict[str, int]
) -> None:
    run = stage.run("killed")
    rounds = [row for row in stage.api(f"/runs/{run['key']}/rounds") if row["server_round"] > 0]
    assert [row["server_round"] for row in rounds] == list(range(1, KILL_ROUNDS + 1))
    # The round in which the killed site was at work: without it there are fewer than this run wants.
    assert [row["outcome"] for row in rounds].count("ok") >= KILL_ROUNDS - 1
    # While there was still something to lose.
    assert max(survived.values()) < KILL_ROUNDS


def test_no_more_than_the_round_in_flight_is_lost(stage: Any, survived: dict[str, int]) -> None:
    log = stage.compose("exec", "-T", "keeper", "cat", f"{HOME}/audit.jsonl").splitlines()
    lines = [line for line in map(json.loads, log) if line["event"] == "run.started"]
    first, *again = [line["details"]["after_round"] for line in lines if line["details"]["run"] == "killed"]
    assert first == 0
    # A killed SuperLink may find its server app again; a killed runner takes it along, and the run is started anew.
    assert again == sorted(again)
    # What was done when a part was killed was never done a second time.
    assert again[-1] >= survived["runner"]


def test_a_killed_site_takes_part_again(stage: Any, survived: dict[str, int]) -> None:
    run = stage.run("killed")
    rows = stage.api(f"/runs/{run['key']}/sites")
    last = {
        row["site"]: row["outcome"] for row in rows if (row["server_round"], row["phase"]) == (KILL_ROUNDS, "train")
    }
    assert last["phantom_polarised"] == "ok"
