"""Our group networks are escnn's: the same function and the same gradients from the same kernels."""

import pytest
import torch

from popmi_core.errors import ModelError
from popmi_core.groups import Element, act, point_group
from popmi_core.invariance.gcnn import GroupCnn, LiftConv, RegularConv

pytest.importorskip("escnn", reason="escnn is part of the site extra")

from popmi_core.invariance.gcnn.steerable import SteerableCnn, load_escnn, steerable_basis

# escnn samples its kernels in float32; seven layers later that is still far below 1e-4 of the outputs.
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
EXACT = 1e-10
WIDTH = 2
ESCNN_LAYERS = ((1, WIDTH, 3), *((WIDTH, WIDTH, 3),) * 5, (WIDTH, WIDTH, 4))


def space_of(name):
    spaces = load_escnn().gspaces
    return spaces.rot2dOnR2(4) if name == "C4" else spaces.flipRot2dOnR2(4)


def field_type(space, width, lifted):
    return load_escnn().nn.FieldType(space, width * [space.regular_repr if lifted else space.trivial_repr])


def channel_order(group, kernel):
    """Return escnn's channel of each of our elements: the two number the turns and place the mirror's axis differently.

    ``kernel`` [fields, order, channels, side, side] is a lifting kernel of escnn's; ours has channel v = v psi.
    """
    for sign in (1, -1):
        for axis in range(4):
            order = [
                group.index(Element((sign * e.turns + (axis if e.flip else 0)) % 4, e.flip)) for e in group.elements
            ]
            ours = torch.stack([act(v, kernel[:, order[0]]) for v in group.elements], dim=1)
            if torch.allclose(ours, kernel[:, order], atol=1e-5):
                return order
    raise AssertionError("escnn's channels are no reordering of ours")


def escnn_cnn(space):
    """Return P4CNN's convolutional part in escnn, as published: R2Conv, inner batch norm, ReLU, point-wise pooling."""
    nn = load_escnn().nn
    torch.manual_seed(0)
    layers = []
    for number, (channels, out, side) in enumerate(ESCNN_LAYERS):
        before, after = field_type(space, channels, number > 0), field_type(space, out, True)
        layers += [nn.R2Conv(before, after, side, bias=False), nn.InnerBatchNorm(after), nn.ReLU(after)]
        if number == 1:
            layers.append(nn.PointwiseMaxPool(after, 2))
    return nn.SequentialModule(*layers, nn.GroupPooling(after))


def transplant(theirs, ours, group):
    """Give our network the kernels escnn's has."""
    kernels = [layer.expand_parameters()[0].detach() for layer in theirs if hasattr(layer, "basisexpansion")]
    order = channel_order(group, kernels[0].unflatten(0, (-1, len(group))))
    layers = [layer for layer in ours.layers if isinstance(layer, LiftConv | RegularConv)]
    with torch.no_grad():
        for layer, kernel in zip(layers, kernels, strict=True):
            # Our free kernel is the one of the identity.
            free = kernel.unflatten(0, (-1, len(group)))[:, order[0]]
            lifted = isinstance(layer, RegularConv)
            layer.weight.copy_(free.unflatten(1, (-1, len(group)))[:, :, order] if lifted else free)


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_the_network_and_its_gradient_are_those_of_escnns(name):
    group, space = point_group(name), space_of(name)
    theirs, ours = escnn_cnn(space), GroupCnn(28, 1, 0, group=name, width=WIDTH)
    transplant(theirs, ours, group)
    pixels = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    images = [pixels.clone().requires_grad_() for _ in range(2)]
    # Training mode: the batch's own statistics, which are shared by a field's channels in both.
    expected = theirs(load_escnn().nn.GeometricTensor(images[0], field_type(space, 1, False))).tensor.mean(dim=(2, 3))
    found = ours(images[1])
    torch.testing.assert_close(found, expected, **CLOSE)
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    gradients = [
        torch.autograd.grad(out, image, cotangent)[0] for out, image in zip((expected, found), images, strict=True)
    ]
    scale = float(gradients[0].abs().max())
    torch.testing.assert_close(gradients[1] / scale, gradients[0] / scale, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("side", [3, 5])
def test_escnns_regular_kernels_lie_in_our_parameters(side):
    # A kernel of theirs, read off at the identity and turned by us, is the whole kernel again.
    group, space = point_group("C4"), space_of("C4")
    nn = load_escnn().nn
    lifting = nn.R2Conv(field_type(space, 1, False), field_type(space, 1, True), side, bias=False)
    order = channel_order(group, lifting.expand_parameters()[0].detach().unflatten(0, (-1, 4)))
    regular = nn.R2Conv(field_type(space, 1, True), field_type(space, 1, True), side, bias=False)
    kernel = regular.expand_parameters()[0].detach()[order][:, order]
    ours = RegularConv(group, 1, 1, side)
    with torch.no_grad():
        ours.weight.copy_(kernel[:1].unsqueeze(1))
    torch.testing.assert_close(ours.kernel(), kernel, atol=1e-5, rtol=0)


def steerable(**shape):
    torch.manual_seed(0)
    return SteerableCnn(12, 1, 3, widths=(1, 1, 1, 2), **shape).double()


def test_the_steerable_basis_is_escnns_up_to_its_float32_rounding():
    space = load_escnn().gspaces.rot2dOnR2(8)
    nn = load_escnn().nn
    layer = nn.R2Conv(field_type(space, 1, True), field_type(space, 1, True), 5, bias=False)
    weights = torch.randn(layer.weights.numel(), generator=torch.Generator().manual_seed(0))
    expected = layer.basisexpansion(weights).view(8, 8, 5, 5)
    ours = torch.einsum("b,bvgyx->vgyx", weights.double(), steerable_basis(8, False, 5))
    torch.testing.assert_close(ours.float(), expected, atol=1e-5, rtol=0)


def test_eight_rotations_are_exact_at_quarter_turns_before_and_after_training():
    model = steerable()
    images = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(3):
        if step:
            model.train()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
            optimizer.step()
        model.eval()
        turned = [model(act(element, images)) for element in point_group("C4").elements]
        assert max(float((other - turned[0]).detach().abs().max()) for other in turned) < EXACT


def test_eight_rotations_are_only_approximate_in_between():
    model = steerable().eval()
    line = torch.linspace(-1, 1, 12, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    # A smooth bump, drawn anew at 45 degrees instead of interpolated: the error is the network's alone.
    bump = [torch.exp(-((a - 0.3) ** 2 / 0.2 + b**2 / 0.05)) for a, b in ((x, y), ((x - y) / 2**0.5, (x + y) / 2**0.5))]
    logits = model(torch.stack(bump).unsqueeze(1)).detach()
    spread = float((logits[0] - model(torch.zeros(1, 1, 12, 12, dtype=torch.float64))[0]).detach().abs().max())
    assert 1e-6 < float((logits[0] - logits[1]).abs().max()) / spread < 0.5


def test_its_state_has_the_same_names_in_training_and_in_evaluation():
    model = steerable()
    assert model.train().state_dict().keys() == model.eval().state_dict().keys()
    assert not any("basis" in name or "mask" in name for name in model.state_dict())


def test_steerable_sizes_and_turns_that_break_exactness_are_refused():
    with pytest.raises(ModelError, match=r"not exact on 30x30 images: .*nearest exact size is 32"):
        SteerableCnn(30)
    with pytest.raises(ModelError, match=r"its disk is of 12 pixels.*nearest exact size is 12"):
        steerable()(torch.zeros(1, 1, 16, 16, dtype=torch.float64))
    with pytest.raises(ModelError, match="turns is 6, expected a multiple of 4"):
        SteerableCnn(28, turns=6)
