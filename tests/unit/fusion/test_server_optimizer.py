"""The server's step: identity where it should be, resumable, and refusing what does not fit."""

import pytest
import torch

from popmi_core.config import ServerOptimizerConfig
from popmi_core.errors import UpdateError
from popmi_core.fusion import ServerOptimizer

NAMES = ["none", "momentum", "adam", "yogi"]


def states(count):
    source = torch.Generator().manual_seed(1)
    return [
        {"w": torch.randn(3, 2, generator=source), "bn.running_var": torch.rand(2, generator=source)}
        for _ in range(count)
    ]


def walk(optimizer, fused, start):
    for state in fused:
        start = optimizer.step(start, state)
    return start


def test_none_returns_the_fused_model_bit_for_bit():
    previous, fused = states(2)

    found = ServerOptimizer(ServerOptimizerConfig()).step(previous, fused)

    assert all(torch.equal(found[name], fused[name]) for name in fused)


def test_none_with_half_the_learning_rate_goes_half_way():
    previous, fused = states(2)

    found = ServerOptimizer(ServerOptimizerConfig(learning_rate=0.5)).step(previous, fused)

    torch.testing.assert_close(found["w"], (previous["w"] + fused["w"]) / 2)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_resumed_from_its_checkpoint_takes_the_same_steps(name):
    config = ServerOptimizerConfig(name=name, learning_rate=0.1)
    start, *fused = states(7)
    straight = walk(ServerOptimizer(config), fused, start)

    first = ServerOptimizer(config)
    middle = walk(first, fused[:3], start)
    second = ServerOptimizer(config)
    second.load_state_dict(first.state_dict())
    resumed = walk(second, fused[3:], middle)

    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_the_saved_state_is_a_copy():
    optimizer = ServerOptimizer(ServerOptimizerConfig(name="momentum"))
    optimizer.step(*states(2))
    optimizer.state_dict()["first.w"].zero_()

    assert optimizer.state_dict()["first.w"].abs().min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_statistics_and_counters_are_taken_as_they_are(name):
    previous, fused = states(2)
    previous["bn.num_batches_tracked"], fused["bn.num_batches_tracked"] = torch.tensor(3), torch.tensor(8)

    found = ServerOptimizer(ServerOptimizerConfig(name=name, learning_rate=0.3)).step(previous, fused)

    assert torch.equal(found["bn.running_var"], fused["bn.running_var"])
    assert found["bn.num_batches_tracked"] == 8


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_float64_and_models_keep_their_format(name):
    optimizer = ServerOptimizer(ServerOptimizerConfig(name=name))

    found = optimizer.step(*states(2))

    moments = {key: tensor for key, tensor in optimizer.state_dict().items() if key != "round"}
    assert all(tensor.dtype == torch.float64 for tensor in moments.values())
    assert found["w"].dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_moves_the_model_stays(name):
    (state,) = states(1)

    found = walk(ServerOptimizer(ServerOptimizerConfig(name=name)), [state] * 3, state)

    assert torch.equal(found["w"], state["w"])


def test_different_names_are_refused():
    previous, fused = states(2)

    with pytest.raises(UpdateError, match="server optimiser: 'w' is in one model only"):
        ServerOptimizer(ServerOptimizerConfig()).step({"bn.running_var": previous["bn.running_var"]}, fused)


def test_different_shapes_are_refused():
    previous, fused = states(2)

    with pytest.raises(UpdateError, match=r"server optimiser: 'w' has shape \(3, 2\), expected \(2,\)"):
        ServerOptimizer(ServerOptimizerConfig()).step(previous | {"w": torch.zeros(2)}, fused)


def test_a_checkpoint_of_another_model_is_refused():
    optimizer = ServerOptimizer(ServerOptimizerConfig(name="adam"))
    optimizer.load_state_dict({"round": torch.tensor(1), "first.w": torch.zeros(5), "second.w": torch.zeros(5)})

    with pytest.raises(UpdateError, match=r"server optimiser: 'w' has shape \(3, 2\), expected \(5,\)"):
        optimizer.step(*states(2))


@pytest.mark.parametrize("state", [{}, {"round": torch.tensor(1), "w": torch.zeros(2)}])
def test_a_foreign_checkpoint_is_refused(state):
    with pytest.raises(UpdateError, match=r"server optimiser: the saved state has \d tensors"):
        ServerOptimizer(ServerOptimizerConfig()).load_state_dict(state)
