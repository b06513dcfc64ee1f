"""Server optimisers and robust rules against Flower's own strategies, several rounds long."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedMedian, FedTrimmedAvg, FedYogi
from flwr.serverapp.strategy.multikrum import select_multikrum

from popmi_core.config import FuseConfig, ServerOptimizerConfig
from popmi_core.fusion import ServerOptimizer, Update, fuse

# The same float64 formulas, sums in another order.
SAME = {"rtol": 1e-12, "atol": 1e-12}
ROUNDS, SITES = 6, 5


def record(state):
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in state.items()})


def contents(updates):
    return [
        RecordDict({"arrays": record(u.state), "metrics": MetricRecord({"num-examples": u.num_examples, "loss": 0.0})})
        for u in updates
    ]


def replies(updates):
    # A Message needs a running task; the strategies only ask it for errors and content.
    return [SimpleNamespace(content=content, has_error=lambda: False) for content in contents(updates)]


def normal_state(source):
    return {"w": torch.randn(4, 3, generator=source).double(), "b": torch.randn(3, generator=source).double()}


def site_updates(state, source):
    return [
        Update(
            f"s{site}", {n: t + 0.3 * torch.randn(t.shape, generator=source) for n, t in state.items()}, 10 + 3 * site
        )
        for site in range(SITES)
    ]


STRATEGIES = {
    "momentum": (FedAvgM(server_learning_rate=0.7, server_momentum=0.9), {"learning_rate": 0.7, "beta1": 0.9}),
    "adam": (
        FedAdam(eta=0.05, beta_1=0.9, beta_2=0.99, tau=1e-3),
        {"learning_rate": 0.05, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    ),
    "yogi": (
        FedYogi(eta=0.05, beta_1=0.9, beta_2=0.99, tau=1e-3),
        {"learning_rate": 0.05, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_server_optimiser_walks_with_flowers(name):
    strategy, settings = STRATEGIES[name]
    optimizer = ServerOptimizer(ServerOptimizerConfig(name=name, **settings))
    source = torch.Generator().manual_seed(0)
    state = normal_state(source)
    for server_round in range(1, ROUNDS + 1):
        updates = site_updates(state, source)
        # What Flower remembers when it sends a round out.
        strategy.current_arrays = record(state) if name == "momentum" else {n: t.numpy() for n, t in state.items()}
        theirs, _ = strategy.aggregate_train(server_round, replies(updates))

        fused = fuse("average", updates, reference=state).state
        state = optimizer.step(state, fused)

        for key, tensor in state.items():
            np.testing.assert_allclose(tensor.numpy(), theirs[key].numpy(), **SAME)


@pytest.mark.parametrize(
    ("rule", "strategy"),
    [("median", FedMedian()), ("trimmed_mean", FedTrimmedAvg(beta=0.2))],
    ids=["median", "trimmed"],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_robust_rule_is_flowers(rule, strategy, seed):
    source = torch.Generator().manual_seed(seed)
    reference = normal_state(source)
    updates = site_updates(reference, source)

    found = fuse(rule, updates, reference=reference, config=FuseConfig(trim=0.2)).state
    theirs, _ = strategy.aggregate_train(1, replies(updates))

    for key, tensor in found.items():
        np.testing.assert_allclose(tensor.numpy(), theirs[key].numpy(), **SAME)


@pytest.mark.parametrize("seed", range(5))
def test_krum_chooses_as_flower(seed):
    source = torch.Generator().manual_seed(seed)
    reference = normal_state(source)
    updates = site_updates(reference, source)

    found = fuse("krum", updates, reference=reference, config=FuseConfig(faulty=1)).state
    (theirs,) = select_multikrum(contents(updates), num_malicious_nodes=1, num_nodes_to_select=1)

    for key, tensor in found.items():
        np.testing.assert_array_equal(tensor.numpy(), theirs["arrays"][key].numpy())
