"""lambda-equitune (Basu et al. 2023, arXiv:2305.09900): copies count as much as a small network says.

M_G(x) = M2( sum_g lambda(g x) g^-1 M1(g x) / sum_g lambda(g x) ), with lambda > 0 computed from each copy's features.

Guarantee: exactly equivariant, since a turn of the image permutes the copies and their weights together. Cost: |G|
forward passes and a network of 32 units.

Published code: weights are applied to logits after a softmax, without the inverse action on features, and the
cross-entropy applies softmax again; lambda is frozen in the second phase. Here weights act on the spatial features,
logits are raw, and there are the paper's two phases: lambda alone with a frozen backbone, then all with lambda still
trained. With random weights the first phase has nothing to learn from: start from a trained backbone.
"""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.groups import FiniteAction, image_action
from popmi_core.invariance.method import Method, MethodContext, Phase, Train, warmed_up
from popmi_core.invariance.orbit import FeatureOrbit, Stages
from popmi_core.invariance.score import ScoreNet

# Part of the epochs in which lambda alone is trained.
WARM_SHARE = 0.2


class LambdaEquitune(FeatureOrbit):
    """Weighted average of the copies' feature maps; ``score.`` is lambda, and it starts as plain equitune."""

    added: ClassVar[tuple[str, ...]] = ("score.",)

    def __init__(
        self,
        backbone: nn.Module,
        action: FiniteAction,
        *,
        features: FiniteAction | None = None,
        stages: Stages | None = None,
        train: Train = "all",
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, action, features=features, stages=stages, train=train)
        self.score = ScoreNet(self.stages.width(backbone), seed=seed).to(next(backbone.parameters()))

    def shares(self, keys: Float[Tensor, "order n dim"]) -> Float[Tensor, "order n"]:
        """Return lambda(g x) / sum_h lambda(h x)."""
        return self.score.shares(keys)

    def phases(self) -> tuple[Phase, ...]:
        """Return: lambda alone, then it and the head or all."""
        return warmed_up(super().phases(), Phase("lambda", WARM_SHARE, self.added))


def _build(context: MethodContext) -> nn.Module:
    return LambdaEquitune(context.backbone(), image_action(context.group), train=context.train, seed=context.seed)


ENTRIES = (
    Method(
        name="lambda-equitune",
        guarantee="exact for C1 to D4, any weights",
        cost="|G|",
        source="Basu et al. 2023, arXiv:2305.09900: sum of lambda(g x) g^-1 M(g x)",
        caveat="published code weighs softmaxed logits without the inverse action and freezes lambda in phase two",
        build=_build,
    ),
)
