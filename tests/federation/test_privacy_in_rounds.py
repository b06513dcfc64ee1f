"""DP-SGD over whole runs: the budget is for the study, and when it is spent the site stops."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from client.app import app as client_app
from client.ledger import Ledger
from popmi_core.cli.lineup import reopen_run
from popmi_core.errors import PrivacyError, RunError

BUDGET = {"target_epsilon": 3.0, "target_delta": 1e-3}


def epsilons(reader):
    rows = [row for row in reader.sites(1) if row.phase == "train" and row.outcome == "ok"]
    return {(row.server_round, row.site): row.epsilon for row in rows}


def interrupted_in_round_2(message, context):
    if (message.metadata.message_type, message.metadata.group_id) == ("train", "2"):
        raise KeyboardInterrupt
    return client_app(message, context)


def test_every_round_records_what_each_site_has_spent_and_the_last_stays_within_the_budget(federation):
    plan = federation.plan(strategy="fedavg", rounds=3, privacy=BUDGET)
    federation.run(plan)
    with federation.read(plan) as reader:
        spent = epsilons(reader)
    for site in plan.config.sites:
        rising = [spent[server_round, site] for server_round in (1, 2, 3)]
        assert rising == sorted(rising)
        assert 0 < rising[0] < rising[2] <= BUDGET["target_epsilon"]


def test_a_site_whose_budget_is_spent_stops_and_the_others_go_on(federation):
    first = federation.plan("first", strategy="fedavg", rounds=1, sites=["phantom_slide"], privacy=BUDGET)
    federation.run(first)
    plan = federation.plan("second", strategy="fedavg", rounds=2, privacy=BUDGET)
    used = Path(plan.lineup[-1].state)
    assert plan.lineup[-1].site == "phantom_slide"
    used.mkdir(parents=True)
    for file in Path(first.lineup[0].state).iterdir():
        (used / file.name).write_bytes(file.read_bytes())
    federation.run(plan)
    with federation.read(plan) as reader:
        assert reader.run().status == "finished"
        rows = [row for row in reader.sites(1) if row.phase == "train"]
    stopped = {row.server_round: row for row in rows if row.site == "phantom_slide"}
    assert {server_round: row.outcome for server_round, row in stopped.items()} == {1: "stopped", 2: "stopped"}
    assert "budget spent" in stopped[1].reason
    assert {row.outcome for row in rows if row.site != "phantom_slide"} == {"ok"}


def test_when_every_budget_is_spent_a_run_without_a_round_fails_with_the_reason(federation):
    plan = federation.plan(strategy="fedavg", rounds=1, sites=["phantom_slide"], privacy=BUDGET)
    federation.run(plan)
    again = federation.plan("again", strategy="fedavg", rounds=1, sites=["phantom_slide"], privacy=BUDGET)
    state = Path(again.lineup[0].state)
    state.parent.mkdir(parents=True)
    Path(plan.lineup[0].state).rename(state)
    with pytest.raises(RunError, match="budget spent"):
        federation.run(again)


def test_a_round_interrupted_after_its_charge_is_paid_for_twice(federation, monkeypatch):
    plan = federation.plan(strategy="fedavg", rounds=2, sites=["phantom_slide"], privacy=BUDGET)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("client.app.exchanged_state", stop)
        with pytest.raises(KeyboardInterrupt):
            federation.run(plan)
    federation.run(reopen_run(Path(plan.folder)))
    entries = Ledger(Path(plan.lineup[0].state) / "privacy-ledger.json", site="phantom_slide").entries()
    assert [entry.server_round for entry in entries] == [1, 1, 2]
    assert entries[-1].epsilon <= BUDGET["target_epsilon"]


@pytest.mark.parametrize("name", ["models/round-001.safetensors", "state/round-001.safetensors"])
def test_a_first_round_made_anew_is_paid_for_twice_and_a_lost_ledger_is_still_noticed(federation, name):
    plan = federation.plan(strategy="fedavg", rounds=2, privacy=BUDGET)
    with pytest.raises(KeyboardInterrupt):
        federation.run(plan, interrupted_in_round_2)
    (Path(plan.folder) / name).write_bytes(b"")
    shutil.rmtree(plan.lineup[0].state)
    federation.run(reopen_run(Path(plan.folder)))
    for assignment in plan.lineup[1:]:
        entries = Ledger(Path(assignment.state) / "privacy-ledger.json", site=assignment.site).entries()
        assert [entry.server_round for entry in entries] == [1, 1, 2]
        assert entries[-1].epsilon <= BUDGET["target_epsilon"]
    with federation.read(plan) as reader:
        trained = [row for row in reader.sites(1) if row.server_round == 1 and row.phase == "train"]
    (lost,) = [row for row in trained if row.site == plan.lineup[0].site]
    assert lost.outcome == "stopped"
    assert "the privacy ledger has 0 entries, expected at least 1; some were lost" in lost.reason


def test_a_batchnorm_backbone_is_refused_with_the_remedy(federation):
    model = {"backbone": "resnet10t", "image_size": 32}
    plan = federation.plan(strategy="fedavg", rounds=1, sites=["phantom_slide"], model=model, privacy=BUDGET)
    with pytest.raises(PrivacyError, match=r"BatchNorm.*popmi_vit_nano"):
        federation.run(plan)
    with federation.read(plan) as reader:
        assert reader.sites(1) == ()


def test_a_run_without_a_budget_is_refused_images_that_were_promised_one(federation):
    plan = federation.plan(strategy="fedavg", rounds=1, sites=["phantom_slide"], privacy=BUDGET)
    federation.run(plan)
    again = federation.plan("again", strategy="fedavg", rounds=1, sites=["phantom_slide"])
    state = Path(again.lineup[0].state)
    state.parent.mkdir(parents=True)
    Path(plan.lineup[0].state).rename(state)
    with pytest.raises(RunError, match="the promise would be void"):
        federation.run(again)


def test_a_site_that_lost_its_ledger_spends_no_second_budget_on_the_same_images(federation):
    plan = federation.plan(strategy="fedavg", rounds=2, privacy=BUDGET)
    with pytest.raises(KeyboardInterrupt):
        federation.run(plan, interrupted_in_round_2)
    shutil.rmtree(plan.lineup[0].state)
    federation.run(reopen_run(Path(plan.folder)))
    with federation.read(plan) as reader:
        rows = {row.site: row for row in reader.sites(1, since=2) if row.phase == "train"}
    lost = rows.pop(plan.lineup[0].site)
    assert lost.outcome == "stopped"
    assert "the privacy ledger has 0 entries, expected at least 1; some were lost" in lost.reason
    assert {row.outcome for row in rows.values()} == {"ok"}
    assert not (Path(plan.lineup[0].state) / "privacy-ledger.json").exists()
