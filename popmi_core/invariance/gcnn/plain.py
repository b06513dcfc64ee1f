"""Z2CNN, P4CNN and P4MCNN: the seven layers of the rotated-MNIST study, on any group of the square grid."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.groups import point_group
from popmi_core.invariance.gcnn.layers import FieldNorm, LiftConv, RegularConv
from popmi_core.invariance.gcnn.symmetry import describe_head, describe_layers
from popmi_core.invariance.network import InvariantNet, square_side

_LAYERS = 6
_SMALLEST = 28


class GroupCnn(InvariantNet):
    """Six 3x3 layers and one 4x4 on the group, 2x2 pooling after the second: images -> logits [n, num_classes].

    Guarantee: logits do not change under ``group`` (C1 to D4), whatever the weights. Cost: that of a plain network
    with ``width`` * order channels. Every layer: convolution without padding, batch norm, ReLU; then the maximum over
    the group (pooling by cosets), the mean over what is left of the plane (one position at 28 px), and a linear layer.
    Source: Cohen and Welling (2016), arXiv:1602.07576, section 8.1: 20 channels for Z2CNN (95.0 % on RotMNIST), 10 for
    P4CNN (97.7 %), that is planar channels over the square root of the order, so that parameters are about equal.
    Recipe, chosen on validation images of rotated MNIST: ``FitConfig(epochs=15, batch_size=64, learning_rate=0.01,
    weight_decay=0.01, augment="rotations", choose="accuracy")``; figures: docs/results/equivariance.md.
    Published code: nothing wrong was found; at the study's 28 px the pooling meets an even side, which keeps it exact;
    odd ones, which break it, are refused here. Differs: the last convolution gives features, not classes, so that the
    head can be replaced, and the mean over the plane makes larger images possible.

    Args:
        img_size: Side of the images, pixels: even, so that the pooling keeps the turns, and at least 28.
        in_chans: Channels of the images.
        num_classes: Width of the logits; 0 for none.
        group: Name of a point group.
        width: Channels of the first two layers.
        later: Channels of the layers after the pooling; None for ``width``.
        drop_rate: Dropout before the last layer, of whole invariant features.

    Raises:
        ModelError: If the size breaks exactness.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 28,
        in_chans: int = 3,
        num_classes: int = 1000,
        group: str = "C4",
        width: int = 10,
        later: int | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.img_size = (_side(img_size),) * 2
        self.group = point_group(group)
        wide = later or width
        widths = [width, width, *[wide] * (_LAYERS - 1)]
        order = len(self.group)
        layers: list[nn.Module] = [LiftConv(self.group, in_chans, width, 3), FieldNorm(order, width), nn.ReLU()]
        for number, (channels, out) in enumerate(pairwise(widths), start=2):
            side = 4 if number > _LAYERS else 3
            layers += [RegularConv(self.group, channels, out, side), FieldNorm(order, out), nn.ReLU()]
            if number == 2:
                layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(drop_rate)
        self.set_head(wide, num_classes)

    def describe_symmetry(self, build: Any) -> None:
        """Tell what may move (``build``: a Builder of popmi_core.matching): whole fields."""
        layers = [(f"layers.{name}", layer) for name, layer in self.layers.named_children()]
        describe_head(build, describe_layers(layers, build, []))

    def forward_features(
        self, images: Float[Tensor, "n channels side side"]
    ) -> Float[Tensor, "n width order small small"]:
        """Return the last field on the group.

        Raises:
            ModelError: If the images' size breaks exactness.
        """
        _side((images.shape[-2], images.shape[-1]))
        return self.layers(images).unflatten(1, (-1, len(self.group)))

    def pool(self, features: Float[Tensor, "n width order small small"]) -> Float[Tensor, "n width"]:
        """Return the maximum over the group, then the mean over the plane."""
        return self.dropout(features.amax(dim=2).mean(dim=(2, 3)))


def _side(img_size: int | tuple[int, int]) -> int:
    reason = f"the 2x2 pooling needs an even side, the layers without padding at least {_SMALLEST} pixels"
    return square_side("GroupCnn", img_size, lambda side: side % 2 == 0 and side >= _SMALLEST, reason)
