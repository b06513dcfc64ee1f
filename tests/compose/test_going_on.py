"""A second run, with a sixth site, over `docker compose down` and `up`, an older POPMI's volumes and Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.compose, pytest.mark.timeout(2400)]
ROOT = Path(__file__).parents[2]
HOME = "/home/popmi/server"
MORE = ("site-6", "prometheus")
ROUNDS = 4
# With a privacy budget, so that there is one to be shown. A round that is cut off is paid for twice; the last
# one spends all that is left and could not be tried again, so there are rounds enough for `down` to fall
# before it.
BUDGET = "\n[privacy]\ntarget_epsilon = 100\n"
ASKING = """
import json, urllib.parse, urllib.request as u
def ask(path, **words):
    place = "http://prometheus:9090/api/v1/" + path + "?" + urllib.parse.urlencode(words)
    return json.load(u.urlopen(place, timeout=10))["data"]
"""
Series = list[dict[str, Any]]


def targets() -> list[dict[str, Any]]:
    """Return what the ready dashboard asks Prometheus, of the second run."""
    dashboard = json.loads((ROOT / "deploy/monitoring/grafana/dashboards/popmi.json").read_text())
    found = [target for panel in dashboard["panels"] for target in panel["targets"]]
    return [target | {"expr": target["expr"].replace("$run", "second")} for target in found]


def answers(stage: Any) -> dict[str, Series]:
    """Return what Prometheus answers now to each query of the dashboard that it has an answer to."""
    asked = [target["expr"] for target in targets()]
    told = stage.compose(
        *("exec", "-T", "dashboard", "python", "-c"),
        ASKING + f"print(json.dumps({{query: ask('query', query=query)['result'] for query in {asked!r}}}))",
        check=False,
    )
    return {query: series for query, series in json.loads(told or "{}").items() if series}


def sites(stage: Any) -> dict[str, str]:
    """Return the fingerprints of the enrolled sites by name."""
    told = json.loads(stage.compose("exec", "-T", "keeper", "popmi", "server", "sites", "--json"))
    return {site["name"]: site["fingerprint"] for site in told["sites"] if site["state"] == "enrolled"}


def begin_second_run(stage: Any) -> None:
    stage.compose("up", "--detach", "invitation", *MORE)
    stage.until("the sixth site is enrolled", lambda: "phantom_sixth" in sites(stage))
    described = (ROOT / "tests/compose/two-rounds.toml").read_text().replace(
        "rounds = 2", f"rounds = {ROUNDS}"
    ) + BUDGET
    stage.python("keeper", f"open('/tmp/second.toml', 'w').write({described!r})")
    stage.compose("exec", "-T", "keeper", "popmi", "server", "start", "/tmp/second.toml", "--name", "second")


def make_older(stage: Any) -> None:
    """Leave the volumes as a POPMI left them whose password stood in the file and whose gateway read the centre's."""
    before = "ALTER ROLE popmi PASSWORD 'popmi'"
    stage.compose("exec", "-T", "database", "psql", "-q", "-U", "popmi", "-c", before)
    stage.compose("down", "--timeout", "20")
    volumes = [f"{stage.project}_{name}" for name in ("password", "gateway")]
    subprocess.run(["docker", "volume", "rm", *volumes], check=True, capture_output=True)


@pytest.fixture(scope="module")
def story(stage: Any) -> dict[str, Any]:
    """What was there before `down`, and what after `up`, once the second run has ended."""
    assert stage.finished()["status"] == "finished"
    begin_second_run(stage)
    enrolled = sites(stage)
    stage.until("round 1 of the second run is done", lambda: stage.run("second").get("rounds_done", 0) >= 1)
    before = {"first": stage.run("compose"), "second": stage.run("second"), "sites": enrolled}
    make_older(stage)
    stage.compose("up", "--detach", *stage.services, *MORE)
    seen: dict[str, Series] = {}

    def ended() -> bool:
        seen.update(answers(stage))
        return bool(stage.run("second")["status"] in ("finished", "failed", "stopped"))

    stage.until("the second run ends", ended)
    after = {"first": stage.run("compose"), "second": stage.run("second"), "sites": sites(stage)}
    return {"before": before, "after": after, "seen": seen}


def test_a_run_goes_on_after_its_last_round(stage: Any, story: dict[str, Any]) -> None:
    run = story["after"]["second"]
    assert (run["status"], run["rounds_done"]) == ("finished", ROUNDS)
    rounds = stage.api(f"/runs/{run['key']}/rounds")
    reasons = [row["reason"] for row in stage.api(f"/runs/{run['key']}/sites") if row["reason"]]
    assert [row["outcome"] for row in rounds if row["server_round"] > 0] == ["ok"] * ROUNDS, reasons
    log = stage.compose("exec", "-T", "keeper", "cat", f"{HOME}/audit.jsonl").splitlines()
    lines = [line for line in map(json.loads, log) if line["event"] == "run.started"]
    starts = [line["details"]["after_round"] for line in lines if line["details"]["run"] == "second"]
    assert starts[0] == 0
    assert 1 <= starts[-1] < ROUNDS
    assert "lines, whole; head" in stage.compose("exec", "-T", "keeper", "popmi", "server", "audit", "verify")


def test_the_sixth_site_takes_part_in_what_begins_after_its_invitation(stage: Any, story: dict[str, Any]) -> None:
    assert "phantom_sixth" not in story["after"]["first"]["sites"]
    run = story["after"]["second"]
    assert "phantom_sixth" in run["sites"]
    rows = stage.api(f"/runs/{run['key']}/sites")
    assert "ok" in [row["outcome"] for row in rows if (row["site"], row["phase"]) == ("phantom_sixth", "train")]


def test_a_finished_run_and_its_model_stay(stage: Any, story: dict[str, Any]) -> None:
    kept = ("key", "status", "rounds_done", "sites")
    assert [story["after"]["first"][name] for name in kept] == [story["before"]["first"][name] for name in kept]
    model = f"{HOME}/runs/compose/models/round-002.safetensors"
    code = f"import hashlib, pathlib; print(hashlib.sha256(pathlib.Path({model!r}).read_bytes()).hexdigest())"
    recorded = stage.api(f"/runs/{story['after']['first']['key']}/rounds")[-1]["model_sha256"]
    assert stage.python("keeper", code) == recorded


def test_no_site_enrols_anew(story: dict[str, Any]) -> None:
    assert len(story["after"]["sites"]) == 4
    assert story["after"]["sites"] == story["before"]["sites"]


def test_the_records_of_an_older_popmi_have_the_new_password(stage: Any, story: dict[str, Any]) -> None:
    code = """
import psycopg
try:
    psycopg.connect("host=database dbname=popmi user=popmi password=popmi").close()
    print("in")
except psycopg.OperationalError:
    print("refused")
"""
    assert stage.python("keeper", code) == "refused"


def test_prometheus_answers_every_query_of_the_ready_dashboard_during_a_run(story: dict[str, Any]) -> None:
    assert [target["expr"] for target in targets() if target["expr"] not in story["seen"]] == []


def test_every_legend_of_the_ready_dashboard_names_labels_that_are_there(story: dict[str, Any]) -> None:
    for target in targets():
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert all(label in series["metric"] for series in story["seen"][target["expr"]]), target


def test_the_dashboards_list_of_runs_holds_all(stage: Any, story: dict[str, Any]) -> None:
    code = ASKING + "print(json.dumps(ask('label/run/values', **{'match[]': 'popmi_rounds_planned'})))"
    assert json.loads(stage.python("dashboard", code)) == ["compose", "hospital", "killed", "second"]
