"""EquiAttention (Vlasenko et al. 2024): the copies of an orbit attend to each other before they are averaged.

With h_i = M1(g_i x), q_i = Q(h_i), k_i = K(h_i) and v_i = g_i^-1 h_i the output is
M2( mean_i sum_j softmax_j(q_i . k_j / sqrt(d)) v_j ). Q and K read the mean of h_i over the map; v_i is the whole map.

Guarantee: exactly equivariant: the attention commutes with a permutation of the orbit, and the mean does not see it.
Cost: |G| forward passes, two linear layers and |G|^2 products.

Source: Vlasenko, Divak, Skylitsis, Miletic and Zifa-Kratira 2024, "(Even More) Efficient Equivariant Transfer Learning
from Pretrained Models", a report (github.com/iasonsky/EfficientEquivariantTransferLearning; no paper) that reproduces
Basu et al. 2023 (arXiv:2305.09900) and found in that paper's public code a softmax applied twice and logits averaged
without the inverse action. Here the mean over i is taken of the attention first: the same sum, one average of maps in
place of |G|.

It is trained in one phase, or with ``warm_share`` in two as lambda-equitune is: the attention alone with a frozen
backbone, then all (or the head) with the attention still trained. As there, the first phase needs a trained backbone.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.errors import ConfigError
from popmi_core.groups import FiniteAction, image_action
from popmi_core.invariance.method import Method, MethodContext, Phase, Train, warmed_up
from popmi_core.invariance.orbit import FeatureOrbit, Stages
from popmi_core.invariance.score import seeded_linear


class EquiAttention(FeatureOrbit):
    """Attention over the orbit; queries start at zero, so that it starts as plain equitune.

    Args:
        backbone: M, left as it is.
        action: How the group moves inputs.
        features: How it moves feature maps; the same way as inputs if None.
        stages: How M is cut; at a timm classifier's last feature map if None.
        dim: Width of queries and keys.
        train: What ``phases`` trains.
        warm_share: Part of the epochs, in [0, 1), in which queries and keys alone are trained; 0: there is one phase.
        seed: Fixes the start of queries and keys.

    Raises:
        ConfigError: If ``warm_share`` is no such part.
    """

    added: ClassVar[tuple[str, ...]] = ("query.", "key.")

    def __init__(
        self,
        backbone: nn.Module,
        action: FiniteAction,
        *,
        features: FiniteAction | None = None,
        stages: Stages | None = None,
        dim: int = 32,
        train: Train = "all",
        warm_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, action, features=features, stages=stages, train=train)
        if not 0 <= warm_share < 1:
            raise ConfigError(
                f"warm_share is {warm_share}, expected a part of the epochs in [0, 1). Use 0 for one phase."
            )
        self.warm_share = warm_share
        generator, width = torch.Generator().manual_seed(seed), self.stages.width(backbone)
        self.query = seeded_linear(width, dim, generator).to(next(backbone.parameters()))
        self.key = seeded_linear(width, dim, generator).to(next(backbone.parameters()))
        nn.init.zeros_(self.query.weight)

    def shares(self, keys: Float[Tensor, "order n dim"]) -> Float[Tensor, "order n"]:
        """Return mean_i softmax_j(q_i . k_j / sqrt(d)) for every copy j."""
        scores = torch.einsum("ind,jnd->ijn", self.query(keys), self.key(keys))
        return (scores / math.sqrt(self.key.out_features)).softmax(dim=1).mean(dim=0)

    def phases(self) -> tuple[Phase, ...]:
        """Return one phase, or with ``warm_share`` two: the attention alone, then it and the head or all."""
        later = super().phases()
        return warmed_up(later, Phase("attention", self.warm_share, self.added)) if self.warm_share else later


def _build(context: MethodContext) -> nn.Module:
    return EquiAttention(context.backbone(), image_action(context.group), train=context.train, seed=context.seed)


ENTRIES = (
    Method(
        name="equiattention",
        guarantee="exact for C1 to D4, any weights",
        cost="|G|",
        source="Vlasenko et al. 2024, a reproduction of arXiv:2305.09900: M2(mean softmax(q k) g^-1 h)",
        caveat="what it builds on applies softmax twice and has no inverse action; g^-1 acts on the values only",
        build=_build,
    ),
)
