"""A steerable network for eight rotations with escnn: exact at quarter turns, approximate in between."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from itertools import pairwise
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from popmi_core.errors import ModelError
from popmi_core.groups import Element, act
from popmi_core.invariance.gcnn.layers import FieldNorm
from popmi_core.invariance.network import InvariantNet, square_side

_POOLINGS = 2


def load_escnn() -> ModuleType:
    """Import escnn so that its dihedral groups work where scikit-learn is installed.

    escnn 1.0.11 prefers scikit-learn's randomised SVD where it finds one, and hands it an np.matrix, which
    scikit-learn refuses. Without it escnn takes scipy's exact SVD, which is also deterministic.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about py3nj, which planar groups do not need
        import escnn
        from escnn.group import _numerical
    # Its one place in the library.
    _numerical.randomized_svd = None
    return escnn


@lru_cache(maxsize=32)
def steerable_basis(turns: int, lifting: bool, side: int) -> Float[Tensor, "basis out in side side"]:
    """Return escnn's kernels from one scalar (``lifting``) or regular field to one regular field of C_turns, float64.

    escnn samples in float32. The mean over the quarter turns, which move numbers only, takes that rounding away: a
    network in float64 is exact to float64.
    """
    escnn = load_escnn()
    space = escnn.gspaces.rot2dOnR2(turns)
    source = escnn.nn.FieldType(space, [space.trivial_repr if lifting else space.regular_repr])
    layer = escnn.nn.R2Conv(source, escnn.nn.FieldType(space, [space.regular_repr]), side, bias=False)
    with torch.no_grad():
        kernels = [layer.basisexpansion(unit) for unit in torch.eye(layer.weights.numel())]
    basis = torch.stack(kernels).double().view(len(kernels), turns, -1, side, side)
    quarter = turns // 4
    turned = []
    for turn in range(4):
        moved = act(Element(turn, False), basis).roll(turn * quarter, dims=1)
        turned.append(moved if lifting else moved.roll(turn * quarter, dims=2))
    return torch.stack(turned).mean(dim=0)


class SteerableConv(nn.Module):
    """Convolution to regular fields of C_turns: free weights times escnn's basis -> dense kernel -> ``conv2d``.

    escnn's own layer keeps its dense kernel and its basis in the state, and the kernel only while it is in evaluation
    mode; here the state is ``weight`` [out, in, basis], always. Drawn as by He et al. (2015), for the dense kernel.
    """

    basis: Tensor

    def __init__(self, turns: int, channels: int, out: int, side: int, *, lifting: bool = False) -> None:
        super().__init__()
        basis = steerable_basis(turns, lifting, side)
        self.register_buffer("basis", basis.to(torch.get_default_dtype()), persistent=False)
        self.side = side
        # The squares of one output channel's kernel sum to 2: that keeps the variance behind a ReLU.
        scale = math.sqrt(2 * turns / (channels * float(basis.square().sum())))
        self.weight = nn.Parameter(scale * torch.randn(out, channels, len(basis)))

    def kernel(self) -> Float[Tensor, "fields channels side side"]:
        """Return the dense kernel."""
        return torch.einsum("oib,bvgyx->ovigyx", self.weight, self.basis).flatten(2, 3).flatten(0, 1)

    def forward(self, field: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n out height width"]:
        """Return the convolved field; zero padding keeps the size."""
        return functional.conv2d(field, self.kernel(), padding=self.side // 2)


class SteerableCnn(InvariantNet):
    """Regular fields of C_N: images [n, in_chans, side, side] -> logits [n, num_classes].

    Guarantee: logits do not change under quarter turns, whatever the weights, if N is a multiple of 4. At the turns in
    between no network on a square grid is exact: the kernels are sampled and the image itself is interpolated (at 45
    degrees logits move by 0.5 of their spread as made and 0.4 trained, docs/results/exactness.md; a larger N buys
    nothing).
    Cost: that of a plain network with N times the channels; kernels are made anew in every step.
    Source: Weiler and Cesa (2019), "General E(2)-equivariant steerable CNNs", arXiv:1911.08251 (99.3 % on RotMNIST with
    C16 and D16, six layers up to 7x7 and 64 fields); escnn. Differs: four layers and fewer fields, and 2x2 mean pooling
    of even sizes. The published example adds one row and one column to 28 px, which moves the centre of rotation by
    half a pixel, so that not even its quarter turns of the 28-px image are exact.

    Args:
        img_size: Side of the images, pixels, a multiple of 4.
        in_chans: Channels of the images.
        num_classes: Width of the logits; 0 for none.
        turns: N, rotations of the group.
        widths: Regular fields of the four layers.
        mask: Whether a soft disk hides the corners, which oblique turns move out of the image.

    Raises:
        ModelError: If the size breaks exactness, or N is not a multiple of 4.
    """

    mask: Tensor

    def __init__(
        self,
        img_size: int | tuple[int, int] = 28,
        in_chans: int = 3,
        num_classes: int = 1000,
        turns: int = 8,
        widths: tuple[int, int, int, int] = (4, 6, 8, 12),
        mask: bool = True,
    ) -> None:
        super().__init__()
        if turns % 4:
            raise ModelError(
                f"SteerableCnn: turns is {turns}, expected a multiple of 4: quarter turns are the exact ones."
            )
        side = _side(img_size)
        self.img_size, self.turns = (side, side), turns
        layers: list[nn.Module] = []
        for number, (channels, out) in enumerate(pairwise([in_chans, *widths])):
            conv = SteerableConv(turns, channels, out, 5 if number else 7, lifting=number == 0)
            layers += [conv, FieldNorm(turns, out), nn.ReLU()]
            if number in (0, 2):
                layers.append(nn.AvgPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.register_buffer("mask", _disk(side) if mask else torch.ones(side, side), persistent=False)
        self.set_head(widths[-1], num_classes)

    def forward_features(
        self, images: Float[Tensor, "n channels side side"]
    ) -> Float[Tensor, "n width turns small small"]:
        """Return the last regular field.

        Raises:
            ModelError: If the images' size breaks exactness, or is not the one the disk was made for.
        """
        _side((images.shape[-2], images.shape[-1]), self.img_size[0])
        return self.layers(images * self.mask).unflatten(1, (-1, self.turns))

    def pool(self, features: Float[Tensor, "n width turns small small"]) -> Float[Tensor, "n width"]:
        """Return the mean over the plane of the maximum over the rotations."""
        return features.amax(dim=2).mean(dim=(2, 3))


def _disk(side: int) -> Float[Tensor, "side side"]:
    """Return 1 inside the inscribed circle, 0 outside, with a ramp of one pixel."""
    line = torch.arange(side) - (side - 1) / 2
    return (side / 2 - torch.hypot(line[:, None], line[None, :])).clamp(0, 1)


def _side(img_size: int | tuple[int, int], only: int | None = None) -> int:
    reason = f"pooling halves the side {_POOLINGS} times" + (f", and its disk is of {only} pixels" if only else "")
    return square_side("SteerableCnn", img_size, lambda side: side % 2**_POOLINGS == 0 and only in (None, side), reason)
