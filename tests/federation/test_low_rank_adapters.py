"""A federation whose models have low-rank adapters: what they compute is averaged, not their factors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from client.app import app as client_app
from popmi_core.checkpoints import load_state
from popmi_core.cli.lineup import reopen_run
from popmi_core.cli.summary import summarise
from popmi_core.errors import ConfigError
from popmi_core.fusion.lowrank import adapter_pairs
from popmi_core.models import build_model
from popmi_core.protocol import MODEL

TWO = ["phantom_polarised", "phantom_ruler"]
RANK = 2
# Large steps, so that one round takes the sites' factors well apart.
LOCAL = {"batch_size": 32, "learning_rate": 0.02, "epochs": 3}


def low_rank(**lora):
    return {"backbone": "popmi_vit_micro", "image_size": 32, "lora": {"rank": RANK, **lora}}


def model_of(plan, server_round=1):
    return load_state(Path(plan.folder) / "models" / f"round-{server_round:03d}.safetensors")[0]


def products(state):
    """Return ``B A`` of every adapter, float64."""
    return {first: state[second].double() @ state[first].double() for first, second in adapter_pairs(state)}


def watched(sent):
    """Return the client app, keeping the trained model that every site sends."""

    def app(message, context):
        reply = client_app(message, context)
        if message.metadata.message_type == "train":
            sent[context.node_config["site"]] = reply.content.array_records[MODEL].to_torch_state_dict()
        return reply

    return app


def run_once(federation, strategy, **parts):
    """Run one round; return its model, every site's and the sites' weights."""
    sent: dict[str, dict[str, torch.Tensor]] = {}
    plan = federation.plan(strategy, strategy=strategy, rounds=1, sites=TWO, local=LOCAL, **parts)
    federation.run(plan, watched(sent))
    with federation.read(plan) as reader:
        weights = reader.rounds(1)[-1].notes["weights"]
    return model_of(plan), sent, weights


def test_what_adapters_add_is_the_mean_of_what_they_add_at_the_sites(federation):
    parts = {"model": low_rank(train="adapter")}
    plain, before, weights = run_once(federation, "fedavg", **parts)
    for strategy in ("lowrank", "circuit", "opm"):
        state, sent, same = run_once(federation, strategy, **parts)

        assert same == weights
        assert all(torch.equal(before[site][name], sent[site][name]) for site in TWO for name in state)
        own, naive = products(state), products(plain)
        assert len(own) == 4
        for name, found in own.items():
            mean = sum(weights[site] * products(sent[site])[name] for site in TWO)
            left, values, right = torch.linalg.svd(mean)
            best = left[:, :RANK] * values[:RANK] @ right[:RANK]
            # Two factors stored in float32: 1e-7 each.
            assert (found - best).norm() < 1e-6 * best.norm(), (strategy, name)
            # The factors averaged one by one make another product, and a worse one.
            assert (naive[name] - mean).norm() > 1.05 * (best - mean).norm(), (strategy, name)
            assert (naive[name] - best).norm() > 0.005 * best.norm(), (strategy, name)


def test_nothing_but_adapters_and_the_head_leaves_a_site_with_a_frozen_backbone(federation):
    state, sent, _ = run_once(federation, "lowrank", model=low_rank(train="adapter"))

    assert {name for name in state if ".lora_" not in name} == {"head.weight", "head.bias"}
    assert set(sent[TWO[0]]) == set(sent[TWO[1]]) == set(state)


def test_a_run_with_adapters_tells_of_them_and_goes_on_where_it_stopped(federation):
    parts = {"strategy": "lowrank", "sites": TWO, "model": {**low_rank(), "adapter": {"group": "C4"}}}
    whole, plan = federation.plan("whole", **parts), federation.plan("pieces", **parts)
    federation.run(whole)

    def app(message, context):
        if message.metadata.message_type == "evaluate" and message.metadata.group_id == "2":
            raise KeyboardInterrupt
        return client_app(message, context)

    with pytest.raises(KeyboardInterrupt):
        federation.run(plan, app)
    federation.run(reopen_run(Path(plan.folder)))

    assert federation.model_bytes(plan, 2) == federation.model_bytes(whole, 2)
    card = (Path(plan.folder) / "models" / "round-002.md").read_text(encoding="utf-8")
    assert "adapter C4, low-rank adapters of rank 2 on attn.qkv, attn.proj; strategy lowrank" in card


def test_the_model_of_one_run_starts_the_next(federation):
    first = federation.plan("first", strategy="lowrank", rounds=1, sites=TWO, model=low_rank())
    federation.run(first)
    file = Path(first.folder) / "models" / "round-001.safetensors"

    after = federation.plan(
        "after", strategy="lowrank", rounds=1, sites=TWO, model={**low_rank(), "weights": str(file)}
    )
    federation.run(after)

    start = build_model(after.config.model, len(after.classes), seed=after.config.seed).state_dict()
    assert all(torch.equal(start[name], tensor) for name, tensor in model_of(first).items())
    assert any(tensor.any() for name, tensor in start.items() if ".lora_B." in name)
    assert summarise(Path(after.folder)).status == "finished"


@pytest.mark.parametrize(
    "parts",
    [
        {"local": {**LOCAL, "objective": "control_variates"}},
        {"local": LOCAL, "privacy": {"target_epsilon": 5.0, "target_delta": 1e-3}},
        {"local": LOCAL, "personal": {"keep_local": ["head"]}},
    ],
    ids=["control variates", "privacy", "kept head"],
)
def test_adapters_go_with_the_other_parts_of_a_run(federation, parts):
    plan = federation.plan(strategy="lowrank", rounds=1, sites=TWO, model=low_rank(train="adapter"), **parts)
    federation.run(plan)

    assert all(bool(tensor.isfinite().all()) for tensor in model_of(plan).values())
    with federation.read(plan) as reader:
        notes = reader.rounds(1)[-1].notes["rules"]
    assert {name for name in notes if name.endswith(".lora")} == set(notes) != set()


def test_products_without_adapters_are_refused_before_any_site_trains(federation):
    plan = federation.plan(strategy="lowrank", rounds=1, sites=TWO)

    with pytest.raises(ConfigError, match=r"no site sends any: it has none\. Set model\.lora"):
        federation.run(plan)
    with federation.read(plan) as reader:
        assert reader.run().status == "failed"
        assert reader.sites(1) == ()
