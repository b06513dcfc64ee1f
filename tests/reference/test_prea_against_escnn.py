"""Our free coefficients span the same kernels as escnn's steerable bases for the same discrete group."""

import math
import warnings

import pytest
import torch
from torch.nn import functional

from popmi_core.adapters.lifted import LiftedConv
from popmi_core.adapters.tied import TiedConv2d, orbit_means
from popmi_core.groups import act, channel_permutation, grid_orbits, point_group

pytest.importorskip("escnn", reason="escnn is part of the site extra")

# escnn samples in float32: directions it gets wrong by rounding lie near 1e-7 of the largest, true ones above 1e-3.
RANK_TOLERANCE = 1e-4
CLOSE = 1e-5


@pytest.fixture(autouse=True)
def escnn_beside_scikit_learn(monkeypatch):
    """Make dihedral groups work where scikit-learn is installed.

    escnn 1.0.11 prefers scikit-learn's randomised SVD where it finds one, and hands it an np.matrix, which
    scikit-learn refuses. Without it escnn takes scipy's exact SVD, which is also deterministic.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about py3nj, which planar groups do not need
        from escnn.group import _numerical
    monkeypatch.setattr(_numerical, "randomized_svd", None)


def escnn_kernels(group, side, field):
    """Return a set spanning escnn's kernels [number, channels, side, side] from a scalar to ``field``.

    The basis R2Conv is made of, sampled as R2Conv does, but not scaled to unit norm: that would turn
    harmonics which vanish on every grid point (sin 4 theta on 3x3) from rounding noise into kernels.
    """
    from escnn import gspaces
    from escnn.nn.modules.conv.rd_convolution import get_grid_coords

    space = gspaces.rot2dOnR2(4) if group == "C4" else gspaces.flipRot2dOnR2(4)
    target = {"trivial": space.trivial_repr, "regular": space.regular_repr}[field]
    points = torch.tensor(get_grid_coords(2, side), dtype=torch.float32)
    # A narrow ring through every distance the grid has and enough frequencies leave no equivariant kernel out.
    rings = sorted({round(math.hypot(*point), 6) for point in points.tolist()})
    basis = space.build_kernel_basis(space.trivial_repr, target, sigma=0.2, rings=rings, maximum_frequency=8)
    sampled = basis.sample(points)  # points, kernels, channels out, channels in
    return sampled[..., 0].permute(1, 2, 0).unflatten(2, (side, side)).double()


def rank(kernels):
    values = torch.linalg.svdvals(kernels.flatten(1))
    return int((values > RANK_TOLERANCE * values[0]).sum())


@pytest.mark.parametrize("side", [3, 4, 5])
@pytest.mark.parametrize("group", ["C4", "D4"])
def test_scalar_kernels_have_escnns_dimension_and_lie_in_our_subspace(group, side):
    kernels = escnn_kernels(group, side, "trivial")
    orbits = grid_orbits(point_group(group), side)
    assert rank(kernels) == int(orbits.max()) + 1
    projected = orbit_means(kernels.flatten(2), orbits.flatten())[..., orbits]
    torch.testing.assert_close(projected, kernels, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("side", [3, 4, 5])
@pytest.mark.parametrize("group", ["C4", "D4"])
def test_our_projection_is_the_orthogonal_projection_on_escnns_span(group, side):
    kernels = escnn_kernels(group, side, "trivial").flatten(1)
    orbits = grid_orbits(point_group(group), side).flatten()
    basis = torch.linalg.svd(kernels, full_matrices=False)[2][: rank(kernels)]
    dense = torch.randn(6, side * side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # The span's own directions are known to float32 only.
    torch.testing.assert_close(orbit_means(dense, orbits)[:, orbits], dense @ basis.T @ basis, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [3, 4, 5])
@pytest.mark.parametrize("group", ["C4", "D4"])
def test_kernels_to_regular_fields_are_the_turns_of_one_free_kernel(group, side):
    # Any kernel in the first channel fixes the others, as lifting convolutions say: dimension side * side.
    kernels = escnn_kernels(group, side, "regular")
    assert rank(kernels) == side * side
    ours = lifted(point_group(group), side)
    assert rank(ours) == side * side
    # Both spans together are no larger, up to the order in which the two libraries number the channels.
    names = orders(point_group(group))
    assert any(rank(torch.cat([kernels[:, order], ours])) == side * side for order in names)


def lifted(group, side):
    """Return the kernels [side * side, order, side, side] with channel g equal to the first turned by g."""
    pixels = torch.eye(side * side, dtype=torch.float64).view(-1, side, side)
    kernels = torch.stack([act(element, pixels) for element in group.elements], dim=1)
    for element in group.elements:
        moved = act(element, kernels)[:, channel_permutation(group, element)]
        assert rank(torch.cat([kernels, moved])) == side * side
    return kernels


def orders(group):
    """Return the channel orders that differ from ours by inverting the turns or by the mirror's axis."""
    elements = group.elements
    for sign in (1, -1):
        for axis in range(4):
            yield [group.index(type(e)((sign * e.turns + (axis if e.flip else 0)) % 4, e.flip)) for e in elements]


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("group", ["C4", "D4"])
def test_a_tied_convolution_and_its_gradients_are_escnns(group, side):
    kernels = escnn_kernels(group, side, "trivial")[:, 0]
    generator = torch.Generator().manual_seed(0)
    shares = torch.randn(4, 2, len(kernels), generator=generator, dtype=torch.float64, requires_grad=True)
    dense = torch.einsum("oik,kyx->oiyx", shares, kernels)
    conv = torch.nn.Conv2d(2, 4, side, stride=2, padding=1, bias=False).double()
    with torch.no_grad():
        conv.weight.copy_(dense)
    ours = TiedConv2d(conv, point_group(group))
    images = torch.randn(3, 2, 9, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    answers = ours(images), functional.conv2d(images, dense, stride=2, padding=1)
    torch.testing.assert_close(*answers, atol=CLOSE, rtol=CLOSE)
    to_images = [torch.autograd.grad(a.square().sum(), images, retain_graph=True)[0] for a in answers]
    torch.testing.assert_close(*to_images, atol=10 * CLOSE, rtol=10 * CLOSE)
    # Ours are of one value per orbit; escnn's of each kernel's share, which moves an orbit by the kernel's value there.
    (of_orbits,) = torch.autograd.grad(answers[0].square().sum(), ours.weight)
    (of_shares,) = torch.autograd.grad(answers[1].square().sum(), shares)
    values = orbit_means(kernels.flatten(1), ours.orbits.flatten())
    torch.testing.assert_close(of_orbits @ values.T, of_shares, atol=100 * CLOSE, rtol=100 * CLOSE)


@pytest.mark.parametrize("group", ["C4", "D4"])
def test_a_lifted_convolution_and_its_gradients_are_escnns(group):
    # Two scalar channels to two regular fields by escnn's own kernels; ours turns one kernel of each field.
    rank, side = 2, 7
    kernels = escnn_kernels(group, 3, "regular")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(rank, rank, len(kernels), generator=generator, dtype=torch.float64, requires_grad=True)
    bank = torch.einsum("oik,kgyx->oigyx", drawn, kernels)
    symmetry = point_group(group)
    ours = LiftedConv(symmetry, rank, rank, generator=generator).double()
    with torch.no_grad():
        for layer in (ours.down, ours.up):
            layer.weight.copy_(torch.eye(rank))
        ours.conv.weight.copy_(bank[:, :, 0])
    tokens = torch.randn(2, side, side, rank, generator=generator, dtype=torch.float64, requires_grad=True)

    def theirs(grid):
        fields = functional.conv2d(grid.permute(0, 3, 1, 2), bank.transpose(1, 2).flatten(0, 1), padding=1)
        scalars = functional.gelu(fields).unflatten(1, (rank, len(symmetry))).mean(dim=2)
        return grid + scalars.permute(0, 2, 3, 1)

    # The mean over a field's channels does not ask for their order. escnn's kernels are sampled in float32.
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=CLOSE, rtol=CLOSE)
    gradients = [torch.autograd.grad(layer(tokens).square().sum(), tokens)[0] for layer in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=10 * CLOSE, rtol=10 * CLOSE)
    # Shares of escnn's kernels move the free kernel by what each has in its first channel.
    (of_shares,) = torch.autograd.grad(theirs(tokens).square().sum(), drawn)
    (of_kernel,) = torch.autograd.grad(ours(tokens).square().sum(), ours.conv.weight)
    chained = torch.einsum("oiyx,kyx->oik", of_kernel, kernels[:, 0])
    torch.testing.assert_close(chained, of_shares, atol=100 * CLOSE, rtol=100 * CLOSE)
