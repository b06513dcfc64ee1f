"""Kernels of group convolutions on C4, D4 and their subgroups: one free kernel, turned, is a dense one for ``conv2d``.

Cohen and Welling 2016, "Group equivariant convolutional networks", arXiv:1602.07576, equations 10 and 11. A regular
field is ``(g f)(h) = f(g^-1 h)``; F fields are F * |G| channels, a field's side by side, in the order of the group's
elements. Turning a kernel by a quarter only moves its numbers, so the convolutions are exact: with stride 1 and the
same padding on all sides always, with a larger stride where the last step ends at the border of the padded image.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.groups.actions import act, channel_permutation
from popmi_core.groups.point_group import PointGroup


def lifting_kernel(
    free: Float[Tensor, "fields channels side side"], group: PointGroup
) -> Float[Tensor, "fields_order channels side side"]:
    """Return the kernel from images to regular fields (Z2 -> p4 or p4m): channel h of a field is ``h psi``."""
    return torch.stack([act(element, free) for element in group.elements], dim=1).flatten(0, 1)


def regular_kernel(
    free: Float[Tensor, "out in order side side"], group: PointGroup
) -> Float[Tensor, "out_order in_order side side"]:
    """Return the kernel between regular fields (p4 -> p4, p4m -> p4m): ``h psi[h^-1 k]`` from channel k to h."""
    turned = [act(element, free[:, :, channel_permutation(group, element)]) for element in group.elements]
    return torch.stack(turned, dim=1).flatten(2, 3).flatten(0, 1)
