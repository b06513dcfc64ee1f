"""Low-rank adapters are averaged as what they add to a weight."""

import pytest
import torch

from popmi_core.adapters.lora import add_lora
from popmi_core.fusion import Update, fuse
from popmi_core.fusion.lowrank import adapter_pairs
from popmi_core.matching import Builder, describe_model

FIRST, SECOND = "q.lora_A.weight", "q.lora_B.weight"


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adapter(seed, *, rank=3, fan_in=7, fan_out=9):
    return {
        FIRST: draw(rank, fan_in, seed=seed),
        SECOND: draw(fan_out, rank, seed=100 + seed),
        "head.weight": draw(2, 2, seed=200 + seed),
    }


def updates_of(states):
    return [Update(f"site_{index}", state, 10 + index) for index, state in enumerate(states)]


def product(state):
    return state[SECOND].flatten(1) @ state[FIRST].flatten(1)


@pytest.mark.parametrize(("rank", "fan_in", "fan_out"), [(3, 7, 9), (1, 2, 3), (4, 40, 5), (5, 5, 3)])
def test_the_adapter_is_the_best_of_its_rank_for_the_mean_product(rank, fan_in, fan_out):
    states = [adapter(seed, rank=rank, fan_in=fan_in, fan_out=fan_out) for seed in range(4)]
    updates = updates_of(states)

    fused = fuse("lowrank", updates, reference=adapter(9, rank=rank, fan_in=fan_in, fan_out=fan_out))

    mean = sum(fused.weights[update.site] * product(update.state) for update in updates)
    left, values, right = torch.linalg.svd(mean, full_matrices=False)
    best = left[:, :rank] * values[:rank] @ right[:rank]
    # The dense singular value decomposition that the rule avoids; well separated singular values.
    torch.testing.assert_close(product(fused.state), best, rtol=1e-10, atol=1e-10)
    kept = float(values[:rank].square().sum() / values.square().sum())
    assert fused.notes == {FIRST: f"product average, kept {kept:.1%}"}


def test_another_basis_inside_one_adapter_changes_nothing():
    states = [adapter(seed) for seed in range(3)]
    basis = draw(3, 3, seed=5)
    regauged = [{**states[0], FIRST: torch.linalg.inv(basis) @ states[0][FIRST], SECOND: states[0][SECOND] @ basis}]

    one = fuse("lowrank", updates_of(states), reference=states[2]).state
    other = fuse("lowrank", updates_of([*regauged, *states[1:]]), reference=states[2]).state
    plain = fuse("average", updates_of([*regauged, *states[1:]]), reference=states[2]).state

    # An inverse of a 3 x 3 matrix of condition number about 10.
    torch.testing.assert_close(other[FIRST], one[FIRST], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(other[SECOND], one[SECOND], rtol=1e-9, atol=1e-10)
    assert (product(plain) - product(one)).norm() > 0.1 * product(one).norm()


def test_equal_adapters_give_back_their_very_factors():
    state = adapter(0)

    fused = fuse("lowrank", updates_of([state] * 3), reference=state).state

    # Two basis changes in float64, of condition at most 1e3.
    torch.testing.assert_close(fused[FIRST], state[FIRST], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(fused[SECOND], state[SECOND], rtol=1e-8, atol=1e-9)


def test_fresh_adapters_stay_trainable():
    states = [{**adapter(seed), SECOND: torch.zeros(9, 3, dtype=torch.float64)} for seed in range(2)]

    fused = fuse("lowrank", updates_of(states), reference=states[0])

    plain = fuse("average", updates_of(states), reference=states[0])
    # The same sum in float64, rounded once or twice a site.
    torch.testing.assert_close(fused.state[FIRST], plain.state[FIRST], rtol=1e-14, atol=1e-15)
    assert not fused.state[SECOND].any()


def test_everything_else_is_the_plain_average():
    updates = updates_of([adapter(seed) for seed in range(3)])

    fused = fuse("lowrank", updates, reference=updates[0].state).state

    plain = fuse("average", updates, reference=updates[0].state).state
    assert torch.equal(fused["head.weight"], plain["head.weight"])


def test_adapters_of_convolutions_are_products_too():
    states = [
        {"c.lora_down.weight": draw(2, 3, 3, 3, seed=k), "c.lora_up.weight": draw(4, 2, 1, 1, seed=9 + k)}
        for k in range(2)
    ]
    updates = [Update(f"site_{k}", state, 1) for k, state in enumerate(states)]

    fused = fuse("lowrank", updates, reference=states[0]).state

    kernels = [s["c.lora_up.weight"].flatten(1) @ s["c.lora_down.weight"].flatten(1) for s in (*states, fused)]
    left, values, right = torch.linalg.svd((kernels[0] + kernels[1]) / 2, full_matrices=False)
    torch.testing.assert_close(kernels[2], left[:, :2] * values[:2] @ right[:2], rtol=1e-10, atol=1e-10)
    assert fused["c.lora_down.weight"].shape == (2, 3, 3, 3)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.lora_A.weight", "a.lora_B.weight"),
        ("a.lora_A.default.weight", "a.lora_B.default.weight"),
        ("lora_a", "lora_b"),
        ("lora_down.weight", "lora_up.weight"),
    ],
)
def test_adapters_are_found_by_their_names(first, second):
    state = {second: torch.zeros(5, 2), first: torch.zeros(2, 4), "bias": torch.zeros(2)}

    assert adapter_pairs(state) == [(first, second)]


@pytest.mark.parametrize(
    "state",
    [
        {"prea.down.weight": torch.zeros(2, 4), "prea.up.weight": torch.zeros(4, 2)},
        {"lora_A.weight": torch.zeros(2, 4)},
        {"lora_A.weight": torch.zeros(2, 4), "lora_B.weight": torch.zeros(4, 3)},
        {"lora_A.bias": torch.zeros(2), "lora_B.bias": torch.zeros(2)},
        {"my_lora_Ab.weight": torch.zeros(2, 4), "my_lora_Bb.weight": torch.zeros(4, 2)},
    ],
)
def test_what_is_no_product_is_left(state):
    assert adapter_pairs(state) == []


def test_without_an_adapter_the_plain_average_is_taken_and_said(reference, make_updates):
    fused = fuse("lowrank", make_updates(3), reference=reference)

    assert fused.notes == {"all": "plain average: no low-rank adapter was exchanged"}


def test_adapters_that_are_described_by_hand_need_no_known_name():
    states = [{"in.weight": draw(2, 5, seed=k), "out.weight": draw(4, 2, seed=9 + k)} for k in range(3)]
    build = Builder("by hand", states[0])
    build.space("adapter", "heads", 1, inner=2, maps={"factor": "linear"})
    build.axis("in.weight", 0, "adapter", part="factor", dual=True)
    build.axis("out.weight", 1, "adapter", part="factor")

    fused = fuse("lowrank", updates_of(states), reference=states[0], symmetry=build.done())

    sites = zip(fused.weights.values(), states, strict=True)
    mean = sum(weight * s["out.weight"] @ s["in.weight"] for weight, s in sites)
    left, values, right = torch.linalg.svd(mean, full_matrices=False)
    best = left[:, :2] * values[:2] @ right[:2]
    torch.testing.assert_close(fused.state["out.weight"] @ fused.state["in.weight"], best, rtol=1e-10, atol=1e-10)
    assert list(fused.notes) == ["adapter"]


@pytest.mark.parametrize("rule", ["lowrank", "circuit"])
def test_adapters_of_a_real_backbone_keep_their_function_in_any_basis(small_vit, outputs, rule):
    model = add_lora(small_vit(), rank=2)
    reference = {n: t + 0.1 * draw(*t.shape, seed=i) for i, (n, t) in enumerate(model.state_dict().items())}
    adapters = {name: tensor for name, tensor in reference.items() if "lora_" in name}
    symmetry = describe_model(model)
    moved = []
    for site in range(2):
        basis, state = draw(2, 2, seed=site), dict(adapters)
        for first, second in adapter_pairs(adapters):
            state[first], state[second] = basis @ state[first], state[second] @ torch.linalg.inv(basis)
        moved.append(state)

    fused = fuse(rule, updates_of(moved), reference=adapters, symmetry=symmetry)

    torch.testing.assert_close(
        outputs(model, {**reference, **fused.state}), outputs(model, reference), rtol=1e-9, atol=1e-10
    )
    assert len(fused.notes) == len(adapters) // 2
