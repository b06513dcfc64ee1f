"""A real small run: everything that rounds measure beside figures is in its record."""

from __future__ import annotations

import json

import pytest

from client.app import app as client_app
from popmi_core.protocol import JSON_KEY, REPORT

SITES = ["phantom_polarised", "phantom_ruler"]
SCOPES = {*SITES, "global"}
FEW = {"angles": 6, "turned_images": 8, "lee_images": 5}


def test_every_kind_of_detail_is_in_the_record_of_a_run(federation):
    plan = federation.plan(sites=SITES, data={"source": "phantom", "phantom_images": 120}, measure=FEW)
    federation.run(plan)
    with federation.read(plan) as reader:
        found: dict[tuple[str, int, str], dict] = {}
        for row in reader.details(1):
            found.setdefault((row.kind, row.server_round, row.split), {})[row.scope] = row.value
        matches = reader.matches(1)
        trained = {row.name for row in reader.metrics(1, split="train", scope="global")}
    assert {key: set(scopes) for key, scopes in found.items()} == {
        ("joined", 0, "train"): set(SITES),
        **{("classes", 0, split): set(SITES) for split in ("train", "val", "test")},
        **{(kind, 1, "val"): SCOPES for kind in ("confusion", "calibration")},
        **{(kind, 2, split): SCOPES for kind in ("confusion", "calibration") for split in ("train", "val", "test")},
        **{(kind, 2, "val"): SCOPES for kind in ("rotation", "lee")},
        **{("similarity", number, "train"): {"global"} for number in (1, 2)},
    }
    curve = found["rotation", 2, "val"]["global"]
    assert (curve["angles"], curve["num_images"]) == ([0.0, 60.0, 120.0, 180.0, 240.0, 300.0], 16)
    assert {len(curve[name]) for name in ("total_variation", "flips", "accuracy")} == {6}
    assert curve["floor"].keys() == {"total_variation", "flips", "accuracy"}
    lee = found["lee", 2, "val"]["global"]
    assert lee["num_images"] == 10
    assert any(layer["value"] > 0 for layer in lee["layers"])
    alike = found["similarity", 2, "train"]["global"]
    assert alike["sites"] == SITES
    assert -1 <= alike["cosine"][0][1] <= 1
    assert all(norm > 0 for norm in alike["norms"])
    # With matching on, every layer says how far it was moved of how many units.
    assert matches
    assert all(row.units for row in matches)
    assert all(row.moved is not None or row.angle is not None for row in matches)
    assert {"auroc", "auprc", "macro_f1", "balanced_accuracy", "ece", "nll"} <= trained


def test_matching_at_the_site_tells_how_far_layers_were_moved(federation):
    match = {"method": "opm", "where": "site"}
    plan = federation.plan(strategy="fedavg", sites=SITES, rounds=1, match=match, measure={"turning": "never"})
    federation.run(plan)
    with federation.read(plan) as reader:
        rows = reader.matches(1)
    assert {row.site for row in rows} == set(SITES)
    assert all(row.units for row in rows)
    assert any(row.angle is not None for row in rows)


def test_turned_images_can_be_measured_in_every_round_or_never(federation):
    for turning, rounds in (("every", {1, 2}), ("never", set())):
        plan = federation.plan(
            turning, strategy="fedavg", sites=SITES, measure={**FEW, "turning": turning, "train_figures": "never"}
        )
        federation.run(plan)
        with federation.read(plan) as reader:
            assert {row.server_round for row in reader.details(1, kind="rotation")} == rounds
            assert {row.split for row in reader.details(1, kind="calibration")} == {"val", "test"}


def test_sites_of_an_earlier_version_take_part_and_are_not_asked_to_turn_images(federation):
    plan = federation.plan(strategy="fedavg", sites=SITES, rounds=1)
    asked: dict[str, bool] = {}

    def app(message, context):
        site, kind = context.node_config["site"], message.metadata.message_type
        question = json.loads(str(message.content["instruction"][JSON_KEY]))
        if kind == "evaluate":
            asked[site] = "turning" in question
        answer = client_app(message, context)
        if site == SITES[0]:
            record = answer.content[REPORT]
            told = json.loads(str(record[JSON_KEY]))
            new = ("popmi", "class_table", "confusion", "turned", "angles", "moved", "units")
            record[JSON_KEY] = json.dumps({name: value for name, value in told.items() if name not in new})
        return answer

    federation.run(plan, app)
    with federation.read(plan) as reader:
        assert {row.outcome for row in reader.sites(1)} == {"ok"}
        joined = {row.scope: row.value["popmi"] for row in reader.details(1, kind="joined")}
        turned = {row.scope for row in reader.details(1, kind="rotation")}
        confusion = {row.scope for row in reader.details(1, kind="confusion")}
    assert asked == {SITES[0]: False, SITES[1]: True}
    assert joined[SITES[0]] == ""
    assert turned == {SITES[1], "global"}
    assert confusion == {SITES[1]}


def test_with_a_budget_no_figure_of_training_images_leaves(federation):
    budget = {"target_epsilon": 8.0, "target_delta": 1e-3}
    plan = federation.plan(strategy="fedavg", sites=SITES, rounds=1, privacy=budget, measure=FEW)
    federation.run(plan)
    with federation.read(plan) as reader:
        kinds = {(row.kind, row.split) for row in reader.details(1)}
        joined = reader.details(1, kind="joined")[0].value
        figures = {row.name for row in reader.metrics(1, split="train")}
    assert {split for kind, split in kinds if kind in ("classes", "confusion", "calibration")} == {"val", "test"}
    assert (joined["epsilon_limit"], joined["delta"]) == (8.0, 1e-3)
    assert figures == {"nll"}


@pytest.mark.parametrize("strategy", ["local", "ensemble"])
def test_where_no_model_is_shared_updates_are_not_compared_and_curves_are_of_what_is_judged(federation, strategy):
    plan = federation.plan(strategy=strategy, sites=SITES, rounds=1, measure=FEW)
    federation.run(plan)
    with federation.read(plan) as reader:
        kinds = {row.kind for row in reader.details(1)}
    assert "similarity" not in kinds
    assert {"rotation", "confusion", "calibration"} <= kinds
