"""equitune (Basu et al. 2023, arXiv:2210.06475): M_G(x) = (1/|G|) sum_g g^-1 M(g x), on features and on logits.

Guarantee: exactly equivariant (on logits of classes: invariant) for a group that acts exactly, whatever M computes, at
every moment of training. Cost: |G| forward passes.

Published code: the average is taken of logits, where the action is trivial and g^-1 never appears, and softmax is
applied before a cross-entropy that applies it again. Here the version on features turns every map back before the
average, and both give raw logits.

Say what it is: where a head takes the mean over the map, or a class token, g^-1 changes nothing, and with nothing but a
linear layer behind (a ViT with average pooling) the two versions are the same function. They differ where places are
told apart before they are pooled (max pooling), or where a norm follows the pooling (ConvNeXt).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from popmi_core.groups import FiniteAction, image_action
from popmi_core.invariance.method import Method, MethodContext, Train
from popmi_core.invariance.orbit import FeatureOrbit, OrbitModel


class EquituneFeatures(FeatureOrbit):
    """M2( (1/|G|) sum_g g^-1 M1(g x) ): copies are averaged on the last feature map, in one frame."""


class Equitune(OrbitModel):
    """(1/|G|) sum_g g^-1 M(g x) on the outputs.

    Args:
        backbone: M, any model.
        action: How the group moves inputs.
        outputs: How it moves outputs, such as scores over words; None: not at all, as with classes.
        train: What ``phases`` trains.
    """

    def __init__(
        self, backbone: nn.Module, action: FiniteAction, *, outputs: FiniteAction | None = None, train: Train = "all"
    ) -> None:
        super().__init__(backbone, action, train=train)
        self.outputs = outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the model gives, made equivariant: for images [n, c, side, side], logits [n, classes]."""
        copies = self.copies(inputs)
        if self.outputs is not None:
            copies = torch.stack([self.outputs.undo(index, copy) for index, copy in enumerate(copies)])
        return copies.mean(dim=0)


def _features(context: MethodContext) -> nn.Module:
    return EquituneFeatures(context.backbone(), image_action(context.group), train=context.train)


def _logits(context: MethodContext) -> nn.Module:
    return Equitune(context.backbone(), image_action(context.group), train=context.train)


_SOURCE = "Basu et al. 2023, arXiv:2210.06475: mean of g^-1 M(g x)"

ENTRIES = (
    Method(
        name="equitune-features",
        guarantee="exact for C1 to D4, any weights",
        cost="|G|",
        source=_SOURCE,
        caveat="published code has no inverse action; equal to equitune-logits where mean pool and linear head follow",
        build=_features,
    ),
    Method(
        name="equitune-logits",
        guarantee="exact for C1 to D4, any weights",
        cost="|G|",
        source=_SOURCE,
        caveat="published code puts softmax before the cross-entropy, which applies it again",
        build=_logits,
    ),
)
