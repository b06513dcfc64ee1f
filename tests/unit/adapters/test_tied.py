"""What is tied is the orbit mean, computes what its dense twin does, and starts as near as it can."""

import pytest
import torch
from timm.layers import Conv2dSame
from timm.models.swin_transformer import PatchMerging, WindowAttention
from timm.models.swin_transformer_v2 import WindowAttention as WindowAttentionV2
from torch import nn

from popmi_core.adapters.lifted import LiftedConv
from popmi_core.adapters.tied import TiedConv2d
from popmi_core.adapters.windows import tie_merging, tie_network, tie_table, untie_merging, untie_network, untie_table
from popmi_core.groups import act, grid_permutation, point_group

GROUPS = ["C2", "C4", "D1", "D2", "D4"]
# One float64 sum in another order.
ROUNDING = {"atol": 1e-12, "rtol": 1e-12}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


CONVS = {
    "padded": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    "patches": lambda: nn.Conv2d(4, 6, 4, stride=4),
    "depthwise": lambda: nn.Conv2d(4, 4, 5, padding=2, groups=4),
    "dilated": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "reflecting": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "by_name": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "same": lambda: Conv2dSame(4, 6, 3, stride=2),
}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", CONVS)
def test_a_tied_kernel_is_the_mean_of_its_turns_and_the_dense_twin_agrees(name, group):
    conv, symmetry = filled(CONVS[name]()), point_group(group)
    tied = TiedConv2d(conv, symmetry)
    mean = torch.stack([act(element, conv.weight) for element in symmetry.elements]).mean(dim=0)
    torch.testing.assert_close(tied.kernel(), mean, **ROUNDING)
    dense, x = tied.dense(), normal(2, 4, 17, 17)
    assert type(dense) is type(conv)
    assert tied.weight.shape[-1] < conv.weight[0, 0].numel()
    torch.testing.assert_close(tied(x), dense(x), atol=0, rtol=0)
    side = tied(x).shape[-1]
    if name != "patches":  # 4 pixels do not tile 17
        for element in symmetry.elements:
            torch.testing.assert_close(tied(act(element, x)), act(element, tied(x)), **ROUNDING)
    assert side == conv(x).shape[-1]


def test_tying_draws_nothing_and_a_gradient_step_stays_tied():
    conv, group = filled(nn.Conv2d(3, 4, 3, padding=1)), point_group("D4")
    before = torch.get_rng_state()
    tied = TiedConv2d(conv, group)
    assert torch.equal(torch.get_rng_state(), before)
    tied(normal(2, 3, 5, 5)).square().sum().backward()
    with torch.no_grad():
        tied.weight -= 0.1 * tied.weight.grad
    for element in group.elements:
        assert torch.equal(act(element, tied.kernel()), tied.kernel())


@pytest.mark.parametrize("group", GROUPS)
def test_window_biases_are_the_mean_over_turned_windows(group):
    symmetry, attention = point_group(group), filled(WindowAttention(8, 2, window_size=4))
    dense = attention._get_rel_pos_bias()
    perms = [grid_permutation(element, 4) for element in symmetry.elements]
    mean = torch.stack([dense[:, :, perm][..., perm] for perm in perms]).mean(dim=0)
    tie_table(attention, symmetry)
    tied = attention._get_rel_pos_bias()
    torch.testing.assert_close(tied, mean, **ROUNDING)
    untie_table(attention, symmetry)
    assert attention.relative_position_bias_table.shape == (49, 2)
    assert torch.equal(attention._get_rel_pos_bias(), tied)


@pytest.mark.parametrize("group", GROUPS)
def test_bias_networks_make_turned_tables_and_are_met_by_plain_ones(group):
    symmetry, attention = point_group(group), filled(WindowAttentionV2(8, (4, 4), 2))
    x = normal(2, 16, 8)
    dense = attention.cpb_mlp(attention.relative_coords_table)
    tie_network(attention, symmetry)
    tied, output = attention.cpb_mlp(attention.relative_coords_table), attention(x)
    mean = torch.stack([act(element, dense, dims=(1, 2)) for element in symmetry.elements]).mean(dim=0)
    torch.testing.assert_close(tied, mean, **ROUNDING)
    untie_network(attention, fit=True)
    assert type(attention.cpb_mlp) is nn.Sequential
    # A least squares solution in float64 of 49 equations with 512 unknowns.
    torch.testing.assert_close(attention(x), output, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("group", GROUPS)
def test_patch_merging_turns_with_the_map_and_its_dense_twin_agrees(group):
    symmetry, merging = point_group(group), filled(PatchMerging(6))
    original = merging.reduction.weight.detach().clone()
    x = normal(2, 8, 8, 6)
    tie_merging(merging, symmetry)
    merged = merging(x)
    for element in symmetry.elements:
        torch.testing.assert_close(merging(act(element, x, (1, 2))), act(element, merged, (1, 2)), **ROUNDING)
    untie_merging(merging)
    assert type(merging.norm) is nn.LayerNorm
    torch.testing.assert_close(merging(x), merged, **ROUNDING)
    # The nearest shared weights: the mean over the neighbours of an orbit.
    if group in ("C4", "D4"):
        near = original.unflatten(1, (4, 6)).mean(dim=1).repeat(1, 4)
        torch.testing.assert_close(merging.reduction.weight, near, **ROUNDING)


@pytest.mark.parametrize("group", ["C1", *GROUPS])
def test_a_lifted_convolution_turns_with_the_tokens_and_sees_more_than_their_invariant_kernels(group):
    symmetry = point_group(group)
    layer = filled(LiftedConv(symmetry, 6, 3, generator=torch.Generator().manual_seed(0)))
    x = normal(2, 7, 7, 6)
    for element in symmetry.elements:
        torch.testing.assert_close(layer(act(element, x, (1, 2))), act(element, layer(x), (1, 2)), **ROUNDING)
    # Turned neighbourhoods of one token alone are told apart: the whole map must turn.
    turned = x.clone()
    turned[:, 2:5, 2:5] = act(point_group("C4").elements[1], x[:, 2:5, 2:5], (1, 2))
    assert (layer(turned) - layer(x)).abs().max() > 0.01


def test_a_fresh_lifted_convolution_changes_nothing():
    layer = LiftedConv(point_group("C4"), 6, 3, generator=torch.Generator().manual_seed(0)).double()
    x = normal(2, 5, 5, 6)
    assert torch.equal(layer(x), x)
