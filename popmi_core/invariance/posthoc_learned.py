"""The two post-hoc aggregations that learn: a score for every copy, and a transformer over the copies."""

from __future__ import annotations

import torch
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from popmi_core.invariance.orbit import weighted_sum
from popmi_core.invariance.score import ScoreNet


class ScoredMean(nn.Module):
    """Embeddings [order, n, dim] -> sum_g lambda(z_g) z_g / sum_g lambda(z_g) [n, dim]; starts as their mean."""

    def __init__(self, dim: int, *, seed: int = 0) -> None:
        super().__init__()
        self.score = ScoreNet(dim, seed=seed)

    def forward(self, embeddings: Float[Tensor, "order n dim"]) -> Float[Tensor, "n dim"]:
        """Return the weighted mean."""
        return weighted_sum(self.score.shares(embeddings), embeddings)


class OrbitAttention(nn.Module):
    """Embeddings [order, n, dim] -> their mean plus what a transformer's class token reads in them [n, dim].

    There are no positions, so that the order of the orbit means nothing. The last layer starts at zero: untrained it is
    the mean.
    """

    def __init__(self, dim: int, *, depth: int = 1, seed: int = 0) -> None:
        super().__init__()
        heads = next(number for number in (4, 3, 2, 1) if dim % number == 0)
        # timm's blocks draw their start from the global generator; it is put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
            self.blocks = nn.Sequential(*[Block(dim, heads, mlp_ratio=2.0, qkv_bias=True) for _ in range(depth)])
            self.norm = nn.LayerNorm(dim)
            self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, embeddings: Float[Tensor, "order n dim"]) -> Float[Tensor, "n dim"]:
        """Return one embedding an image."""
        tokens = embeddings.transpose(0, 1)
        read: Tensor = self.blocks(torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], dim=1))
        step: Tensor = self.out(self.norm(read[:, 0]))
        return embeddings.mean(dim=0) + step
