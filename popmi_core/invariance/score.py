"""lambda > 0: how much one copy of the orbit counts, a small network on its features."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init


class ScoreNet(nn.Module):
    """log lambda = out(gelu(hidden(z))), shared by all copies; it starts at zero, so all copies count alike.

    The logarithm is what is computed: lambda / sum lambda is then a softmax over the orbit, positive and safe from
    overflow.
    """

    def __init__(self, dim: int, *, hidden: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.hidden = seeded_linear(dim, hidden, torch.Generator().manual_seed(seed))
        self.out = skip_init(nn.Linear, hidden, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, features: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """Return log lambda."""
        score: Tensor = self.out(functional.gelu(self.hidden(features)))
        return score.squeeze(-1)

    def shares(self, features: Float[Tensor, "order n dim"]) -> Float[Tensor, "order n"]:
        """Return lambda_g / sum_h lambda_h."""
        return self.forward(features).softmax(dim=0)


def seeded_linear(dim: int, out: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer with weights N(0, 1/dim) from ``generator`` and no bias to start with."""
    # Uninitialised: torch's own start would draw from the global generator.
    layer: nn.Linear = skip_init(nn.Linear, dim, out)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(out, dim, generator=generator) / math.sqrt(dim))
        layer.bias.zero_()
    return layer
