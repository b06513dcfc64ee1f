"""A network of regular fields with expanded dense weights, for tests and benchmarks/equivariant_matching.py."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from popmi_core.groups import act, channel_permutation


class FieldNet(nn.Sequential):
    """Lifting, a convolution between regular fields, mean over pixels and group, classes; expanded dense weights.

    ``y_h = (h psi) * x`` lifts; between fields the kernel from channel k to channel h is ``h Psi[h^-1 k]`` (Cohen &
    Welling 2016, arXiv:1602.07576, equations 10 and 11). The mean over the group is in the head's equal columns.
    """

    def __init__(self, group, seed, widths=(6, 5), classes=3):
        generator = torch.Generator().manual_seed(seed)
        order, (first, second) = len(group), widths
        super().__init__(
            nn.Conv2d(3, first * order, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first * order, second * order, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(second * order, classes),
        )
        self.field_group = group
        drawn = {
            "lift": torch.randn(first, 3, 3, 3, generator=generator, dtype=torch.float64) / 5,
            "conv": torch.randn(second, first, order, 3, 3, generator=generator, dtype=torch.float64) / 10,
            "head": torch.randn(classes, second, generator=generator, dtype=torch.float64),
        }
        biases = [torch.randn(width, generator=generator, dtype=torch.float64) / 10 for width in widths]
        lifted = torch.stack([act(h, drawn["lift"]) for h in group.elements], dim=1)
        between = torch.stack([act(h, drawn["conv"])[:, :, shifted(group, h)] for h in group.elements], dim=1)
        self.double().load_state_dict(
            {
                "0.weight": lifted.flatten(0, 1),
                "0.bias": biases[0].repeat_interleave(order),
                "2.weight": between.flatten(2, 3).flatten(0, 1),
                "2.bias": biases[1].repeat_interleave(order),
                "6.weight": drawn["head"].repeat_interleave(order, dim=1) / order,
                "6.bias": torch.zeros(classes),
            }
        )


def shifted(group, h):
    return [group.index(h.inverse().compose(k)) for k in group.elements]


def with_weights(model, state):
    copy = FieldNet(model.field_group, seed=0)
    copy.load_state_dict(state)
    return copy


def unequal_answers(model):
    """Largest relative change of the outputs when the images are turned (and mirrored, in a dihedral group)."""
    images = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.inference_mode():
        plain = model(images)
        turned = [model(act(g, images)) for g in model.field_group.elements]
    return max(float((other - plain).norm() / plain.norm()) for other in turned)


def unequal_features(model):
    """The same for the last feature map, which must turn with the image and shift in its fields."""
    group = model.field_group
    images = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    worst = 0.0
    plain = maps(model, images)[1]
    for g in group.elements:
        fields = act(g, plain.unflatten(1, (-1, len(group)))[:, :, channel_permutation(group, g)]).flatten(1, 2)
        worst = max(worst, float((maps(model, act(g, images))[1] - fields).norm() / plain.norm()))
    return worst


def unequal(model):
    return max(unequal_answers(model), unequal_features(model))


def maps(model, images):
    """Both feature maps, after ReLU."""
    with torch.inference_mode():
        first = model[1](model[0](images))
        return first, model[3](model[2](first))


def mean_of(first, second):
    return {name: (tensor + second[name]) / 2 for name, tensor in first.items()}


def unrestricted(symmetry):
    """All orders of channels, which is the symmetry of a network that is not equivariant."""
    spaces = {
        name: replace(space, kind="permutation", size=space.width(), inner=1, shifts=())
        for name, space in symmetry.spaces.items()
    }
    return replace(symmetry, spaces=spaces)
