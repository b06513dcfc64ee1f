"""Rules that need the sites' help: candidates judged, Gram matrices, norms, matching at the site, parts that stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from client.app import app as client_app
from popmi_core.checkpoints import load_state
from popmi_core.cli.lineup import reopen_run
from popmi_core.cli.summary import summarise
from popmi_core.errors import ConfigError, ModelError, PrivacyError
from popmi_core.protocol import JSON_KEY, MODEL, REPORT, Report

TWO = ["phantom_polarised", "phantom_ruler"]
GATE = {"strategy": "fedavg", "fuse": {"rule": "median", "gate": ["uniform_soup", "circuit"]}}
HEAD = {"strategy": "fedavg", "personal": {"keep_local": ["head", "norm"]}}


def watched(kinds: dict[str, int]):
    """Return the client app, counting the messages of each kind."""

    def app(message, context):
        kinds[message.metadata.message_type] = kinds.get(message.metadata.message_type, 0) + 1
        return client_app(message, context)

    return app


def model_of(plan, server_round=1):
    return load_state(Path(plan.folder) / "models" / f"round-{server_round:03d}.safetensors")[0]


def test_the_gate_takes_what_the_sites_judge_best_and_everything_is_in_the_record(federation):
    plan = federation.plan(rounds=1, sites=TWO, **GATE)
    federation.run(plan)
    with federation.read(plan) as reader:
        notes = reader.rounds(1)[-1].notes
        rows = reader.candidates(1, 1)
    assert {row.candidate for row in rows} == {"average", "median", "uniform_soup", "circuit"}
    assert {row.site for row in rows} == set(TWO)
    mean = {
        name: sum(row.loss * row.num_examples for row in rows if row.candidate == name)
        for name in {row.candidate for row in rows}
    }
    assert mean[notes["chosen"]] == min(mean.values())
    best = {site: min(row.loss for row in rows if row.site == site) for site in TWO}
    chosen = {row.site: row.loss for row in rows if row.candidate == notes["chosen"]}
    assert notes["regret"] == pytest.approx(max(chosen[site] - best[site] for site in TWO), abs=1e-12)
    summary = summarise(Path(plan.folder))
    assert summary.wins == {notes["chosen"]: 1}
    assert summary.regret == notes["regret"]
    report = (Path(plan.folder) / "report.html").read_text(encoding="utf-8")
    assert "uniform_soup" in report


def test_the_model_of_a_gated_round_is_what_was_judged(federation):
    plan = federation.plan(rounds=1, sites=TWO, **GATE)
    federation.run(plan)
    with federation.read(plan) as reader:
        chosen = reader.rounds(1)[-1].notes["chosen"]
        told = {row.site: row.loss for row in reader.candidates(1, 1) if row.candidate == chosen}
        judged = {row.scope: row.value for row in reader.metrics(1, split="val", name="nll") if row.scope in TWO}
    # The round's own evaluation is of the same model on the same images: the very same figure.
    assert judged == told


def test_a_site_that_cannot_judge_is_left_out_and_the_round_goes_on(federation):
    plan = federation.plan(rounds=1, sites=TWO, **GATE)

    def app(message, context):
        bad = message.metadata.message_type == "evaluate.judge" and context.node_config["site"] == TWO[1]
        return None if bad else client_app(message, context)

    federation.run(plan, app)
    with federation.read(plan) as reader:
        assert reader.run().status == "finished"
        assert {row.site for row in reader.candidates(1)} == {TWO[0]}
        assert any("could not judge candidate average" in row.text for row in reader.events(1))


@pytest.mark.parametrize(
    "parts",
    [GATE, {"strategy": "ensemble"}, {**HEAD, "local": {"objective": "control_variates", "batch_size": 32}}],
    ids=["gate", "ensemble", "kept parts and control variates"],
)
def test_a_resumed_run_ends_as_one_in_one_piece(federation, parts):
    whole = federation.plan("whole", rounds=2, sites=TWO, **parts)
    federation.run(whole)
    plan = federation.plan("pieces", rounds=2, sites=TWO, **parts)

    def app(message, context):
        if message.metadata.message_type == "evaluate" and message.metadata.group_id == "2":
            raise KeyboardInterrupt
        return client_app(message, context)

    with pytest.raises(KeyboardInterrupt):
        federation.run(plan, app)
    federation.run(reopen_run(Path(plan.folder)))
    assert federation.model_bytes(plan, 2) == federation.model_bytes(whole, 2)
    assert summarise(Path(plan.folder)).figures == summarise(Path(whole.folder)).figures


def test_what_stays_at_a_site_is_never_sent_and_its_stand_in_never_moves(federation):
    plan = federation.plan(rounds=2, sites=TWO, **HEAD)
    sent: set[str] = set()

    def app(message, context):
        reply = client_app(message, context)
        sent.update(reply.content.array_records.get(MODEL, {}))
        return reply

    federation.run(plan, app)
    first, second = model_of(plan, 1), model_of(plan, 2)
    kept = {name for name in first if "head" in name or "norm" in name}
    assert kept
    assert sent == set(first) - kept
    assert all(torch.equal(first[name], second[name]) for name in kept)
    assert any(not torch.equal(first[name], second[name]) for name in sent)
    own = [load_state(next(Path(item.state).glob("personal-002-*")))[0] for item in plan.lineup]
    assert set(own[0]) == kept
    assert any(not torch.equal(own[0][name], own[1][name]) for name in kept)
    card = (Path(plan.folder) / "models" / "round-002.md").read_text(encoding="utf-8")
    assert "stay at the sites: head, norm" in card


def test_a_site_is_judged_with_the_parts_it_keeps(federation):
    shared = federation.plan("shared", rounds=1, sites=TWO, strategy="fedavg")
    kept = federation.plan("kept", rounds=1, sites=TWO, **HEAD)
    losses = []
    for plan in (shared, kept):
        federation.run(plan)
        with federation.read(plan) as reader:
            losses.append({row.scope: row.value for row in reader.metrics(1, split="val", name="nll")})
    assert all(losses[0][site] != losses[1][site] for site in TWO)


@pytest.mark.parametrize(
    ("pattern", "said"), [("no_such", "'no_such' fits no tensor"), ("*", "fits every tensor")], ids=["none", "all"]
)
def test_a_pattern_that_fits_nothing_or_everything_is_refused_before_any_site_trains(federation, pattern, said):
    plan = federation.plan(rounds=1, sites=TWO, strategy="fedavg", personal={"keep_local": [pattern]})
    with pytest.raises(ConfigError, match=said):
        federation.run(plan)


@pytest.mark.parametrize("method", ["opm", "permutations", "probes", "activations", "learned"])
def test_every_way_of_matching_works_at_the_site_and_its_gains_are_recorded(federation, method):
    match = {"method": method, "where": "site", "learn_steps": 3, "num_images": 20}
    plan = federation.plan(rounds=1, sites=TWO, strategy="fedavg", match=match)
    federation.run(plan)
    with federation.read(plan) as reader:
        rows = reader.matches(1, 1)
    assert {row.site for row in rows} == set(TWO)
    assert all(row.note.startswith("matched at the site") for row in rows)
    assert all(bool(tensor.isfinite().all()) for tensor in model_of(plan).values())


def test_matching_weights_gives_the_same_model_at_the_site_and_at_the_server(federation):
    models = []
    for where in ("site", "server"):
        match = {"method": "opm", "where": where}
        plan = federation.plan(where, rounds=1, sites=TWO, strategy="opm", match=match)
        federation.run(plan)
        models.append(federation.model_bytes(plan, 1))
    assert models[0] == models[1]


def test_a_batchnorm_model_gets_statistics_of_its_own_after_fusing(federation):
    model = {"backbone": "popmi_resnet20", "image_size": 32}
    kinds: dict[str, int] = {}
    states = []
    for repair in (False, True):
        plan = federation.plan(
            f"repair-{repair}", rounds=1, sites=TWO, strategy="fedavg", model=model, fuse={"repair": repair}
        )
        federation.run(plan, watched(kinds))
        states.append(model_of(plan))
    assert kinds["query.norms"] == 2
    changed = {name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])}
    assert changed
    assert all(name.rpartition(".")[2] in ("running_mean", "running_var") for name in changed)


def test_an_ensemble_is_judged_with_every_site_s_model_and_has_no_common_one(federation):
    plan = federation.plan(rounds=1, sites=TWO, strategy="ensemble")
    federation.run(plan)
    assert summarise(Path(plan.folder)).model is None
    assert "ensemble has no common model" in (Path(plan.folder) / "models" / "round-001.md").read_text(encoding="utf-8")


def test_gram_matrices_of_the_wrong_shape_put_their_site_aside(federation):
    from flwr.app import Array

    plan = federation.plan(rounds=1, sites=TWO, strategy="regmean")

    def app(message, context):
        reply = client_app(message, context)
        if message.metadata.message_type == "train" and context.node_config["site"] == TWO[1]:
            grams = reply.content.array_records["grams"]
            name = sorted(grams.keys())[0]
            grams[name] = Array(grams[name].numpy()[:1])
        return reply

    federation.run(plan, app)
    with federation.read(plan) as reader:
        rows = {row.site: row for row in reader.sites(1) if row.phase == "train"}
    assert rows[TWO[1]].outcome == "quarantined"
    assert "the Gram matrix of" in rows[TWO[1]].reason


@pytest.mark.parametrize(
    "parts",
    [
        {"strategy": "opm-learned"},
        {"strategy": "fedavg", "match": {"method": "activations", "where": "site"}},
        {"strategy": "regmean"},
        {"strategy": "fedavg", "fuse": {"repair": True}},
    ],
    ids=["learned", "activations", "grams", "repair"],
)
def test_what_looks_at_images_without_noise_is_refused_a_budget_before_any_site_trains(federation, parts):
    plan = federation.plan(rounds=1, sites=TWO, privacy={"target_epsilon": 3.0, "target_delta": 1e-3}, **parts)
    with pytest.raises(PrivacyError, match="void promise"):
        federation.run(plan)
    with federation.read(plan) as reader:
        assert reader.sites(1) == ()


def test_a_rule_that_needs_symmetries_fails_early_on_an_architecture_without_a_description(federation):
    model = {"backbone": "convmixer_768_32", "image_size": 32}
    plan = federation.plan(rounds=1, sites=TWO, strategy="opm", model=model)
    with pytest.raises(ModelError, match="by hand"):
        federation.run(plan)
    with federation.read(plan) as reader:
        assert reader.sites(1) == ()


def test_layers_that_are_held_still_come_back_as_they_went(federation, monkeypatch):
    from server.strategy import OpmStrategy

    monkeypatch.setattr(OpmStrategy, "frozen", lambda self, server_round: ("blocks.0", "patch_embed.proj"))
    plan = federation.plan(rounds=1, sites=TWO, strategy="fedavg")
    seen = {}

    def app(message, context):
        reply = client_app(message, context)
        if message.metadata.message_type == "train":
            before = message.content.array_records[MODEL].to_torch_state_dict()
            after = reply.content.array_records[MODEL].to_torch_state_dict()
            seen.update({name: torch.equal(before[name], after[name]) for name in before})
        return reply

    federation.run(plan, app)
    still = {name for name, same in seen.items() if same}
    assert still == {name for name in seen if name.startswith(("blocks.0.", "patch_embed.proj."))}


def test_a_report_of_matching_at_the_site_survives_the_wire(federation):
    plan = federation.plan(rounds=1, sites=TWO, strategy="opm", match={"where": "site"})
    told = []

    def app(message, context):
        reply = client_app(message, context)
        if message.metadata.message_type == "train":
            text = str(reply.content.config_records[REPORT][JSON_KEY])
            told.append(Report.model_validate_json(text))
        return reply

    federation.run(plan, app)
    assert all(report.gains.keys() == report.identity.keys() for report in told)
    assert all(report.gains for report in told)


def test_own_class_mix_changes_answers_at_the_sites_and_neither_training_nor_the_model(federation):
    common = federation.plan("common", rounds=1, sites=TWO, strategy="fedavg")
    own = federation.plan("own", rounds=1, sites=TWO, strategy="fedavg", personal={"class_prior": "own"})
    federation.run(common)
    federation.run(own)

    one, other = model_of(common), model_of(own)
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = {}
    for plan in (common, own):
        with federation.read(plan) as reader:
            losses[plan.run] = {
                row.scope: row.value for row in reader.metrics(1) if (row.split, row.name) == ("val", "nll")
            }
    assert set(losses[common.run]) == set(losses[own.run])
    assert all(losses[common.run][site] != losses[own.run][site] for site in TWO)
    card = (Path(own.folder) / "models" / "round-001.md").read_text(encoding="utf-8")
    assert "each site's own class frequencies" in card


def test_own_class_mix_is_refused_with_a_privacy_budget(federation):
    plan = federation.plan(
        rounds=1, sites=TWO, strategy="fedavg", personal={"class_prior": "own"}, privacy={"target_epsilon": 5.0}
    )
    with pytest.raises(PrivacyError, match="class_prior"):
        federation.run(plan)
