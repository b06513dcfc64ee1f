"""Own convolutions on C4 and D4 are escnn's: the same kernels, outputs and gradients, channels in the same order.

Both libraries list turns first, counter-clockwise, and then reflections: left-right, followed by the turn.
"""

import warnings

import pytest
import torch
from torch.nn import functional

from popmi_core.groups import act, channel_permutation, point_group
from popmi_core.groups.convolution import lifting_kernel, regular_kernel
from popmi_core.invariance.gcnn.layers import LiftConv, RegularConv

pytest.importorskip("escnn", reason="escnn is part of the site extra")

# escnn samples its kernels in float32; numbers are of size one.
SAMPLED = 1e-6
# Float64 sums of a few hundred products in another order.
ROUNDING = {"rtol": 1e-11, "atol": 1e-12}
IN, OUT = 2, 3
KERNELS = {"trivial": lifting_kernel, "regular": regular_kernel}
CASES = [(group, source, side) for group in ("C4", "D4") for source in ("trivial", "regular") for side in (3, 5)]


@pytest.fixture(autouse=True)
def escnn_beside_scikit_learn(monkeypatch):
    """Make dihedral groups work where scikit-learn is installed (see test_prea_against_escnn.py)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about py3nj, which planar groups do not need
        from escnn.group import _numerical
    monkeypatch.setattr(_numerical, "randomized_svd", None)


def plane(name):
    from escnn import gspaces

    return gspaces.rot2dOnR2(4) if name == "C4" else gspaces.flipRot2dOnR2(4)


def their_layer(name, source, side, stride=1):
    """Return escnn's layer in float64, its sampled kernels freed of float32 rounding, which is checked to be that."""
    from escnn.nn import FieldType, R2Conv

    space = plane(name)
    kind = space.trivial_repr if source == "trivial" else space.regular_repr
    into, out = FieldType(space, [kind] * IN), FieldType(space, [space.regular_repr] * OUT)
    torch.manual_seed(0)
    # Its cache of kernels is shared by all layers of a process: these are changed, so they must be this layer's own.
    layer = R2Conv(into, out, side, padding=side // 2, stride=stride, bias=False, recompute=True).double()
    for module in layer.modules():
        if hasattr(module, "sampled_basis"):
            sampled = module.sampled_basis.unflatten(-1, (side, side))
            free = sampled[:, 0, None] if source == "regular" else sampled[:, 0]
            exact = KERNELS[source](free, point_group(name)).view_as(sampled)
            assert float((exact - sampled).abs().max()) < SAMPLED, "not our kernels"
            module.sampled_basis.copy_(exact.flatten(-2))
    return layer


def free_kernels(layer, weights, name, source, side):
    """Return what escnn's weights make of the first channel of every field: the kernel that is free."""
    first = layer.basisexpansion(weights).unflatten(0, (OUT, -1))[:, 0].unflatten(-1, (side, side))
    return first.unflatten(1, (IN, len(point_group(name)))) if source == "regular" else first


def both(name, source, side, stride=1):
    """Return output, image gradient and weight gradient of escnn, and ours."""
    from escnn.nn import GeometricTensor

    group, generator = point_group(name), torch.Generator().manual_seed(1)
    layer = their_layer(name, source, side, stride).train()
    channels = IN * (len(group) if source == "regular" else 1)
    images = torch.randn(2, channels, 9, 9, generator=generator, dtype=torch.float64)
    their_images, our_images = images.clone().requires_grad_(), images.clone().requires_grad_()
    theirs = layer(GeometricTensor(their_images, layer.in_type)).tensor
    upstream = torch.randn(theirs.shape, generator=generator, dtype=torch.float64)
    (theirs * upstream).sum().backward()

    def made(weights):
        return free_kernels(layer, weights, name, source, side)

    free = made(layer.weights).detach().requires_grad_()
    ours = functional.conv2d(our_images, KERNELS[source](free, group), padding=side // 2, stride=stride)
    (ours * upstream).sum().backward()
    # escnn's weights make the free kernels linearly, so the chain rule takes our gradient to theirs.
    pulled = torch.tensordot(free.grad, torch.func.jacrev(made)(layer.weights.detach()), dims=free.ndim)
    return (theirs, their_images.grad, layer.weights.grad), (ours, our_images.grad, pulled)


@pytest.mark.parametrize(("name", "source", "side"), CASES)
def test_outputs_and_gradients_of_images_and_weights_are_escnns(name, source, side):
    for theirs, ours in zip(*both(name, source, side), strict=True):
        assert float(theirs.detach().abs().max()) > 0.1
        torch.testing.assert_close(ours, theirs, **ROUNDING)


@pytest.mark.parametrize("source", ["trivial", "regular"])
def test_strided_layers_are_escnns_too(source):
    for theirs, ours in zip(*both("D4", source, 3, stride=2), strict=True):
        torch.testing.assert_close(ours, theirs, **ROUNDING)


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_the_elements_are_listed_and_composed_as_escnn_does(name):
    group, listed = point_group(name), list(plane(name).fibergroup.elements)
    assert len(listed) == len(group)
    for i, first in enumerate(group.elements):
        for j, second in enumerate(group.elements):
            assert listed[group.index(second.compose(first))] == listed[j] @ listed[i]


def test_turning_the_other_way_is_not_escnns(monkeypatch):
    # Break it on purpose: the comparison must see in which direction kernels are turned.
    backwards = lambda free, group: lifting_kernel(free.flip(-1), group).flip(-1)  # noqa: E731
    monkeypatch.setitem(KERNELS, "trivial", backwards)
    with pytest.raises(AssertionError, match="not our kernels"):
        their_layer("C4", "trivial", 3)


@pytest.mark.parametrize("name", ["C2", "C4", "D1", "D2", "D4"])
def test_fields_turn_with_the_image_exactly(name):
    group, generator = point_group(name), torch.Generator().manual_seed(0)
    lift = lifting_kernel(torch.randn(OUT, IN, 3, 3, generator=generator, dtype=torch.float64), group)
    free = torch.randn(2, OUT, len(group), 3, 3, generator=generator, dtype=torch.float64)
    images = torch.randn(2, IN, 7, 7, generator=generator, dtype=torch.float64)

    def fields(pixels):
        lifted = functional.conv2d(pixels, lift, padding=1)
        return functional.conv2d(lifted.relu(), regular_kernel(free, group), padding=1)

    for element in group.elements:
        plain = fields(images).unflatten(1, (2, len(group)))
        expected = act(element, plain[:, :, channel_permutation(group, element)]).flatten(1, 2)
        torch.testing.assert_close(fields(act(element, images)), expected, **ROUNDING)


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_the_group_networks_use_these_kernels(name):
    group = point_group(name)
    lift, between = LiftConv(group, IN, OUT, 3), RegularConv(group, OUT, 2, 3)
    assert torch.equal(lift.kernel(), lifting_kernel(lift.weight, group))
    assert torch.equal(between.kernel(), regular_kernel(between.weight, group))
