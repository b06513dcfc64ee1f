"""Whole runs: every strategy, the record, determinism, what is looked at when."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from client.app import app as client_app
from popmi_core.checkpoints import load_state
from popmi_core.cli.summary import summarise
from popmi_core.config import GRAM_RULES, MATCHING_RULES, PRESETS, STATISTIC_RULES, Rule, read_config
from popmi_core.data import load_site
from popmi_core.errors import ConfigError, RunError
from popmi_core.fusion import RULES, needs
from popmi_core.metrics import classification_metrics
from popmi_core.models import build_model, load_exchanged, predict
from popmi_core.simulation import InProcessGrid
from popmi_core.strategies import SCORING_RULES
from server.exchange import Exchange

STRATEGIES = sorted(set(PRESETS) - {"krum"})
TWO = ["phantom_polarised", "phantom_ruler"]
LOW_RANK = {"backbone": "popmi_vit_micro", "image_size": 32, "lora": {"rank": 2}}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_finishes_with_a_finite_model(federation, strategy):
    special = {"opm-learned": {"match": {"learn_steps": 2}}, "lowrank": {"model": LOW_RANK}}
    plan = federation.plan(strategy=strategy, rounds=1, sites=TWO, **special.get(strategy, {}))
    federation.run(plan)
    state, _ = load_state(Path(plan.folder) / "models" / "round-001.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
    with federation.read(plan) as reader:
        run = reader.run()
        assert (run.status, run.rounds_done) == ("finished", 1)
        trained = {row.site for row in reader.sites(run.id) if row.phase == "train" and row.outcome == "ok"}
    assert trained == ({"pooled"} if strategy == "pooled" else set(plan.config.sites))


def test_the_configuration_knows_of_every_rule_what_it_needs():
    assert {rule for rule in RULES if needs(rule).matches} == MATCHING_RULES
    assert {rule for rule in RULES if needs(rule).grams} == GRAM_RULES
    assert {rule for rule in RULES if needs(rule).statistics} == STATISTIC_RULES
    assert {rule for rule in RULES if needs(rule).scorer} == SCORING_RULES
    assert {*RULES, "ensemble"} == set(get_args(Rule))


def test_a_rule_on_activations_gets_what_the_sites_saw(federation):
    plan = federation.plan(
        strategy="fedavg", fuse={"rule": "git_rebasin_activations"}, match={"num_images": 20}, rounds=1, sites=TWO
    )
    federation.run(plan)
    with federation.read(plan) as reader:
        assert {row.outcome for row in reader.sites(1)} == {"ok"}


def test_krum_with_enough_sites_takes_one_site_whole(federation):
    plan = federation.plan(strategy="krum", rounds=1, sites=None)
    federation.run(plan)
    with federation.read(plan) as reader:
        notes = reader.rounds(1)[-1].notes
    assert sorted(notes["weights"].values()) == [0.0, 0.0, 0.0, 0.0, 1.0]
    # Over how many images of each class pooled figures are: the choice of a group weighs them.
    assert {split: len(counts) for split, counts in notes["support_pooled"].items()} == notes["classes_pooled"]


def test_krum_with_too_few_sites_is_refused_before_any_trains(federation):
    plan = federation.plan(strategy="krum", rounds=1)
    with pytest.raises(ConfigError, match=r"krum needs at least 5 sites \(fuse.faulty = 1\), but the run has 3"):
        federation.run(plan)
    with federation.read(plan) as reader:
        assert reader.run().status == "failed"
        assert reader.sites(1) == ()


def test_krum_left_with_too_few_sites_is_void_and_says_what_it_needs(federation):
    plan = federation.plan(strategy="krum", rounds=1, sites=None)

    def app(message, context):
        silent = message.metadata.message_type == "train" and context.node_config["site"] in TWO
        return None if silent else client_app(message, context)

    with pytest.raises(RunError, match="krum with faulty=1 got 3 updates"):
        federation.run(plan, app)
    with federation.read(plan) as reader:
        assert "void" in reader.rounds(1)[-1].notes
        assert reader.run().status == "failed"


def test_the_same_seed_gives_the_same_files_whatever_order_the_replies_come_in(federation, monkeypatch):
    first = federation.plan("first")
    federation.run(first)
    take = Exchange._take
    monkeypatch.setattr(InProcessGrid, "answers_at_once", False)
    monkeypatch.setattr(Exchange, "_take", lambda self, round_: reversed(list(take(self, round_))))
    second = federation.plan("second")
    federation.run(second)
    for server_round in (1, 2):
        assert federation.model_bytes(first, server_round) == federation.model_bytes(second, server_round)


def test_another_seed_gives_another_model(federation):
    plans = [federation.plan(f"seed{seed}", seed=seed, rounds=1) for seed in (0, 1)]
    for plan in plans:
        federation.run(plan)
    assert federation.model_bytes(plans[0], 1) != federation.model_bytes(plans[1], 1)


def test_the_test_split_is_looked_at_in_the_last_round_only(federation):
    plan = federation.plan(rounds=2)
    federation.run(plan)
    with federation.read(plan) as reader:
        rounds = {row.server_round for row in reader.metrics(1) if row.split == "test"}
    assert rounds == {2}


def test_the_pooled_figures_enclose_the_exact_ones(federation):
    plan = federation.plan(strategy="fedavg", data={"source": "phantom", "phantom_images": 300}, rounds=1)
    federation.run(plan)
    state, _ = load_state(Path(plan.folder) / "models" / "round-001.safetensors")
    model = build_model(plan.config.model, 7, seed=0)
    load_exchanged(model, state)
    sets = [load_site(a.site, a.data[0], image_size=32, phantom_images=300, seed=0).test for a in plan.lineup]
    scores = np.concatenate([predict(model, data.images) for data in sets])
    target = np.concatenate([data.targets for data in sets])
    exact = classification_metrics(scores, target)
    with federation.read(plan) as reader:
        pooled = {row.name: row for row in reader.metrics(1, split="test", scope="global")}
    # Accuracy needs no class to be told of, so it is about exactly these patients; the others are about told classes.
    assert pooled["accuracy"].lower <= exact["accuracy"] <= pooled["accuracy"].upper
    assert pooled["ece"].lower <= exact["ece"] <= pooled["ece"].upper
    assert math.isclose(pooled["nll"].value, exact["nll"], rel_tol=1e-9)  # a weighted mean, rounding only


def test_the_run_folder_describes_itself(federation):
    plan = federation.plan()
    federation.run(plan)
    folder = Path(plan.folder)
    assert read_config(folder / "config.toml") == plan.config
    summary = summarise(folder)
    assert summary.phantom
    assert summary.status == "finished"
    assert set(plan.config.sites) <= set(summary.figures)
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "phantom" in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    card = (folder / "models" / "round-002.md").read_text(encoding="utf-8")
    _, notes = load_state(folder / "models" / "round-002.safetensors")
    assert "phantom" in card
    assert "card" in notes


def test_a_run_folder_is_never_overwritten(federation):
    federation.plan()
    with pytest.raises(RunError, match="already holds a run"):
        federation.plan()
