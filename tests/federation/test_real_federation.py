"""A plan as a real server makes it, in one process: the simulation's model, from files and a register."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from client.app import app as client_app
from popmi_core.atomic import held_alone
from popmi_core.errors import ConfigError, RunError
from popmi_core.protocol import LOCK_FILE, PLAN_FILE, PLAN_KEY
from popmi_core.simulation import run_inprocess
from popmi_core.simulation.inprocess import FIRST_SITE_NODE_ID
from server.app import app as server_app
from server.app import read_plan
from server.store import RunReader

SMALL = {"rounds": 2, "limits": {"join": 0.0}}


def real(federation, monkeypatch, name="real", **changes):
    """Plan a simulation, then rewrite its plan as that of a server with a register."""
    plan = federation.plan(f"runs/{name}", **{**SMALL, **changes})
    sites = [item.site for item in plan.lineup]
    nodes = {site: FIRST_SITE_NODE_ID + number for number, site in enumerate(sites)}
    register = federation.folder / "sites.json"
    register.write_text(json.dumps({s: {"state": "enrolled", "node_id": str(n)} for s, n in nodes.items()}))
    there = plan.model_copy(update={"lineup": (), "names": tuple(sites), "sites_file": str(register)})
    (Path(plan.folder) / PLAN_FILE).write_text(there.model_dump_json())
    monkeypatch.setenv("POPMI_SERVER_HOME", str(federation.folder))
    return there, plan.lineup


def run(plan, lineup, app=client_app):
    run_inprocess(server_app, app, lineup, {PLAN_KEY: plan.run})


@pytest.mark.parametrize("strategy", ["local", "ensemble"])
def test_sites_that_keep_their_own_models_go_on_with_them(federation, monkeypatch, strategy):
    plan, lineup = real(federation, monkeypatch, strategy=strategy)
    run(plan, lineup)
    with federation.read(plan) as reader:
        assert (reader.run().status, reader.run().rounds_done) == ("finished", 2)
        assert {row.outcome for row in reader.sites(1)} == {"ok"}


@pytest.mark.parametrize("strategy", ["opm", "fedavg"])
def test_from_files_and_a_register_comes_the_simulation_s_model_bit_for_bit(federation, monkeypatch, strategy):
    simulated = federation.plan("simulated", **SMALL, strategy=strategy)
    federation.run(simulated)
    plan, lineup = real(federation, monkeypatch, strategy=strategy)
    run(plan, lineup)
    for number in (1, 2):
        assert federation.model_bytes(plan, number)[-5000:] == federation.model_bytes(simulated, number)[-5000:]
    assert not (Path(plan.folder) / "incoming").exists()
    with federation.read(plan) as reader:
        assert reader.run().status == "finished"


def test_a_run_goes_on_from_its_plan_file(federation, monkeypatch):
    plan, lineup = real(federation, monkeypatch)

    def dies(message, context):
        if message.metadata.message_type == "evaluate":
            raise KeyboardInterrupt
        return client_app(message, context)

    with pytest.raises(KeyboardInterrupt):
        run(plan, lineup, dies)
    resumed = plan.model_copy(update={"resume": True})
    (Path(plan.folder) / PLAN_FILE).write_text(resumed.model_dump_json())
    run(resumed, lineup)
    with federation.read(plan) as reader:
        assert (reader.run().status, reader.run().rounds_done) == ("finished", 2)


def test_a_second_process_at_the_same_run_is_refused(federation, monkeypatch):
    plan, lineup = real(federation, monkeypatch)
    with held_alone(Path(plan.folder) / LOCK_FILE), pytest.raises(RunError, match="another process is at this run"):
        run(plan, lineup)


def test_too_few_sites_end_the_run_failed_and_named(federation, monkeypatch):
    plan, lineup = real(federation, monkeypatch, min_sites=3)
    with pytest.raises(RunError, match=r"2 site\(s\) joined in 0 s .*phantom_slide: not on line"):
        run(plan, lineup[:2])
    with federation.read(plan) as reader:
        assert reader.run().status == "failed"
        assert "phantom_slide: not on line" in reader.run().reason


@pytest.mark.parametrize(("told", "match"), [("", "has no 'plan'"), ("nowhere", "run nowhere has no readable")])
def test_a_run_without_a_plan_says_where_it_was_looked_for(tmp_path, monkeypatch, told, match):
    monkeypatch.setenv("POPMI_SERVER_HOME", str(tmp_path))
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={PLAN_KEY: told})
    with pytest.raises(ConfigError, match=match):
        read_plan(context)


def test_a_name_cannot_lead_out_of_the_folder_of_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("POPMI_SERVER_HOME", str(tmp_path / "home"))
    (tmp_path / PLAN_FILE).write_text("{}")
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={PLAN_KEY: "../.."})
    with pytest.raises(ConfigError, match="has no readable"):
        read_plan(context)


def test_the_record_can_lie_in_one_database_for_all_runs(federation, monkeypatch):
    monkeypatch.setenv("POPMI_DATABASE", str(federation.folder / "all.sqlite"))
    for name in ("one", "two"):
        run(*real(federation, monkeypatch, name, rounds=1))
    with RunReader(federation.folder / "all.sqlite") as reader:
        assert [item.name for item in reader.runs()] == ["one", "two"]


def test_a_run_whose_keys_are_all_revoked_has_failed_and_can_be_resumed(federation, monkeypatch):
    plan, lineup = real(federation, monkeypatch, rounds=3)
    register = Path(plan.sites_file)

    def revoke(message, context):
        if message.metadata.message_type == "evaluate":
            told = json.loads(register.read_text())
            register.write_text(json.dumps({site: {"state": "revoked"} for site in told}))
        return client_app(message, context)

    with pytest.raises(
        RunError, match=r"no site was left to train after round 1 of 3 \(phantom_polarised: its key was"
    ):
        run(plan, lineup, revoke)
    with federation.read(plan) as reader:
        assert (reader.run().status, reader.run().rounds_done) == ("failed", 1)


def test_an_update_of_a_site_that_is_revoked_meanwhile_is_in_no_model(federation, monkeypatch):
    plan, lineup = real(federation, monkeypatch, rounds=1)
    register = Path(plan.sites_file)

    def revoke(message, context):
        answer = client_app(message, context)
        if message.metadata.message_type == "train" and context.node_config["site"] == "phantom_slide":
            told = json.loads(register.read_text())
            register.write_text(json.dumps({**told, "phantom_slide": {"state": "revoked"}}))
        return answer

    run(plan, lineup, revoke)
    with federation.read(plan) as reader:
        rows = {row.site: row for row in reader.sites(1) if row.phase == "train"}
        assert rows["phantom_slide"].outcome == "quarantined"
        assert "its key was revoked" in rows["phantom_slide"].reason
        assert set(reader.rounds(1)[0].notes["weights"]) == {"phantom_polarised", "phantom_ruler"}


def test_a_site_that_is_excluded_misses_rounds_and_comes_back_with_the_key_it_has(federation, monkeypatch):
    plan, lineup = real(federation, monkeypatch, rounds=3)
    register, out = Path(plan.sites_file), {"reason": "mends its scanner", "by": "anna", "since": 1.0}
    whole = json.loads(register.read_text())
    trained = []

    def choose(message, context):
        answer = client_app(message, context)
        if message.metadata.message_type == "train":
            trained.append(context.node_config["site"])
            # While round 1 goes on it is left out, while round 2 does it is taken in again.
            without = {**whole, "phantom_slide": {**whole["phantom_slide"], "excluded": out}}
            register.write_text(json.dumps(without if len(trained) <= 3 else whole))
        return answer

    run(plan, lineup, choose)
    with federation.read(plan) as reader:
        rows = {row.server_round: row for row in reader.sites(1) if row.phase == "train" and "slide" in row.site}
        assert [rows[number].outcome for number in (1, 2, 3)] == ["ok", "stopped", "ok"]
        assert rows[2].reason == "excluded by the operator: mends its scanner"
        taken = [set(row.notes["weights"]) for row in reader.rounds(1)]
    assert ["phantom_slide" in sites for sites in taken] == [True, False, True]
