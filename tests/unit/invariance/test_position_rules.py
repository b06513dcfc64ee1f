"""The position rules of GSA-Nets and GE-ViT: which are equivariant, by the law and by the networks."""

import pytest
import torch

from popmi_core.errors import ModelError
from popmi_core.groups import act, channel_permutation, point_group
from popmi_core.invariance.gevit import GroupTransformer, pair_index, window_positions
from popmi_core.invariance.gevit.attention import GroupAttention, LiftAttention

EXACT = 1e-10
GROUPS = ("C1", "C2", "C4", "D1", "D2", "D4")


def invariant(index, group):
    """Return whether index(uv, ug, um) = index(v, g, m) for every u."""
    orders = [channel_permutation(group, element) for element in group.elements]
    return all(torch.equal(index[order][:, order][:, :, order], index) for order in orders)


@pytest.mark.parametrize("family", ["gsa", "ge-vit"])
@pytest.mark.parametrize("name", GROUPS)
def test_the_exact_rules_do_not_change_when_all_three_elements_are_turned(name, family):
    group = point_group(name)
    assert invariant(pair_index(group, family, "exact"), group)


def test_gsa_nets_rule_changes_because_it_acts_on_what_is_relative_already():
    group = point_group("C4")
    turns = torch.arange(4)
    v, g, m = turns.view(4, 1, 1), turns.view(1, 4, 1), turns.view(1, 1, 4)
    assert torch.equal(pair_index(group, "gsa", "published"), (v + m - g) % 4)
    assert not invariant(pair_index(group, "gsa", "published"), group)


def test_ge_vits_rule_is_the_exact_one_on_turns_and_not_on_mirrors():
    turns, all_eight = point_group("C4"), point_group("D4")
    assert torch.equal(pair_index(turns, "ge-vit", "published"), pair_index(turns, "ge-vit", "exact"))
    assert not invariant(pair_index(all_eight, "ge-vit", "published"), all_eight)


def test_ge_vits_table_with_mirrors_comes_from_rolling_the_halves_of_the_group_apart():
    """Published recipe, step by step: by -turns the upright half, by +turns the mirrored half, then the mirror."""

    def roll(turns, mirrored, table):
        halves = table.unflatten(0, (2, 4))
        rolled = torch.cat([halves[0].roll(-turns, dims=0), halves[1].roll(turns, dims=0)])
        return (rolled + 4) % 8 if mirrored else rolled

    group = point_group("D4")
    relative = torch.stack([roll(-element.turns, element.flip, torch.arange(8)) for element in group.elements])
    released = torch.stack([roll(element.turns, element.flip, relative) for element in group.elements])
    assert torch.equal(pair_index(group, "ge-vit", "published"), released)


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_offsets_seen_from_a_turned_element_are_the_turned_offsets(name):
    group, side = point_group(name), 3
    positions = window_positions(group, side)
    for u in group.elements:
        # code(v^-1 p) at u^-1 p equals code((uv)^-1 p) at p.
        moved = act(u, positions.unflatten(1, (side, side)), dims=(1, 2)).flatten(1, 2)
        uv = [group.index(u.compose(v)) for v in group.elements]
        torch.testing.assert_close(moved, positions[uv])


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_lifting_turns_space_and_group_together(name):
    group = point_group(name)
    layer = LiftAttention(group, 2, 6, heads=2, window=3).double()
    image = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    for u in group.elements:
        expected = act(u, layer(image))[:, :, channel_permutation(group, u)]
        torch.testing.assert_close(layer(act(u, image)), expected, atol=EXACT, rtol=0)


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_group_attention_turns_space_and_group_together(name):
    group = point_group(name)
    layer = GroupAttention(group, 4, 6, heads=2, window=3).double()
    field = torch.randn(1, 4, len(group), 4, 4, dtype=torch.float64)
    for u in group.elements:
        order = channel_permutation(group, u)
        torch.testing.assert_close(
            layer(act(u, field)[:, :, order]), act(u, layer(field))[:, :, order], atol=EXACT, rtol=0
        )


def test_group_attention_is_the_sum_over_queries_of_a_softmax_over_all_keys():
    """Against the formula, cell by cell."""
    group, side, window = point_group("C4"), 3, 3
    layer = GroupAttention(group, 3, 6, heads=1, window=window).double()
    field = torch.randn(1, 3, 4, side, side, dtype=torch.float64)
    query, key, value = layer.qkv(field)[0].unflatten(0, (3, layer.dim)).unbind(0)  # dim, order, side, side
    place, element = layer.code(), layer.elements(layer.index)
    found = torch.zeros(layer.dim, 4, side, side, dtype=torch.float64)
    reach = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    for v, g in [(v, g) for v in range(4) for g in range(4)]:
        for row, column in [(r, c) for r in range(side) for c in range(side)]:
            keys = [(m, k, row + i, column + j) for m in range(4) for k, (i, j) in enumerate(reach)]
            keys = [(m, k, y, x) for m, k, y, x in keys if 0 <= y < side and 0 <= x < side]
            q = query[:, g, row, column]
            scores = [q @ (key[:, m, y, x] + torch.cat([place[v, k], element[v, g, m]])) for m, k, y, x in keys]
            weights = (torch.stack(scores) / layer.dim**0.5).softmax(dim=0)
            found[:, v, row, column] += sum(
                w * value[:, m, y, x] for w, (m, _, y, x) in zip(weights, keys, strict=True)
            )
    torch.testing.assert_close(layer(field), layer.out(found[None]))


def error(group, family, rule):
    torch.manual_seed(0)
    model = GroupTransformer(12, 1, 10, group=group, family=family, rule=rule).double().eval()
    pixels = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        logits = model(pixels)
        turned = [model(act(element, pixels)) for element in point_group(group).elements]
    spread = (logits.amax(dim=0) - logits.amin(dim=0)).max()
    return float(max((other - logits).abs().max() for other in turned) / spread)


@pytest.mark.parametrize(
    ("group", "family", "rule", "exact"),
    [
        ("C4", "gsa", "published", False),
        ("C4", "gsa", "exact", True),
        ("C4", "ge-vit", "published", True),
        ("C4", "ge-vit", "exact", True),
        ("D4", "ge-vit", "published", False),
        ("D4", "ge-vit", "exact", True),
    ],
)
def test_gsa_p4_and_ge_vit_p4m_fail_as_published_and_hold_when_corrected(group, family, rule, exact):
    found = error(group, family, rule)
    # The released networks are off by one to twelve per cent at the start.
    assert found < EXACT if exact else found > 5e-3


def test_unknown_rules_and_even_windows_are_refused():
    with pytest.raises(ModelError, match="position rule is 'correct' of 'gsa', expected 'exact' or 'published'"):
        pair_index(point_group("C4"), "gsa", "correct")
    with pytest.raises(ModelError, match="window is 4, expected an odd side"):
        GroupTransformer(window=4)
