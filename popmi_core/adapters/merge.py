"""The adapter itself: merge the copies of an orbit, then small trainable steps that keep the group."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from popmi_core.adapters.lifted import LiftedConv
from popmi_core.groups import PointGroup, act

# What soft.py lets into the last blocks, by the last part of its tensors' names: adapters, too, wherever these count.
TABLE = "free_positions"
KERNEL = "free_kernel"


class OrbitMerge(nn.Module):
    """Average rotated copies in one frame, then adapt: a bottleneck per token, and lifted convolutions of tokens.

    Exact whatever the weights: the average runs over the whole orbit, the weights of the average are
    normalised over the same orbit, the bottleneck sees one token at a time, and lifted convolutions commute with the
    group. Their last layers and the scores start at zero, so attaching changes nothing beyond the merge.

    Parameters, each only where asked for: ``down`` [rank, dim], ``up`` [dim, rank]; ``score`` [1, dim] for lambda
    weights (Basu et al. 2023, arXiv:2305.09900); ``lift.<block>`` (see LiftedConv), before that block or stage.

    Args:
        group: The orbit's group.
        dim: Channels of the merged features.
        rank: Width of the bottleneck and of the lifted convolutions.
        weighted: Whether shares of the average are learned.
        bottleneck: Whether there is one.
        lifted: Channels by the number of the block or stage that a lifted convolution comes before.
        generator: Draws what does not start at zero.
    """

    def __init__(
        self,
        group: PointGroup,
        dim: int,
        rank: int,
        *,
        weighted: bool,
        generator: torch.Generator,
        bottleneck: bool = True,
        lifted: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.group = group
        # Uninitialised: torch's own start would draw from the global generator.
        self.score = skip_init(nn.Linear, dim, 1, bias=False) if weighted else None
        self.down = skip_init(nn.Linear, dim, rank) if bottleneck else None
        self.up = skip_init(nn.Linear, rank, dim) if bottleneck else None
        with torch.no_grad():
            if self.score is not None:
                self.score.weight.zero_()
            if self.down is not None and self.up is not None:
                self.down.weight.copy_(torch.randn(rank, dim, generator=generator) / math.sqrt(dim))
                for tensor in (self.down.bias, self.up.weight, self.up.bias):
                    tensor.zero_()
        convs = {
            str(block): LiftedConv(group, wide, rank, generator=generator) for block, wide in (lifted or {}).items()
        }
        self.lift = nn.ModuleDict(convs)

    def rotate(self, images: Float[Tensor, "n c side side"]) -> Float[Tensor, "copies c side side"]:
        """Return all copies of the orbit, one group element after the other along the batch."""
        return torch.cat([act(element, images) for element in self.group.elements])

    def merge(
        self, grid: Float[Tensor, "copies side side dim"], prefix: Float[Tensor, "copies extra dim"] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Turn every copy back and average; class and register tokens have no place and are only averaged."""
        order = len(self.group)
        copies = grid.reshape(order, grid.shape[0] // order, *grid.shape[1:])
        shares = self._shares(copies)
        turned = [
            share * act(element.inverse(), one, dims=(1, 2))
            for element, share, one in zip(self.group.elements, shares[..., None], copies, strict=True)
        ]
        merged = torch.stack(turned).sum(dim=0)
        if prefix is None:
            return merged, None
        return merged, (shares * prefix.reshape(order, prefix.shape[0] // order, *prefix.shape[1:])).sum(dim=0)

    def refine(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the tokens plus the bottleneck's output, where there is a bottleneck."""
        if self.down is None or self.up is None:
            return tokens
        step: Tensor = self.up(functional.gelu(self.down(tokens)))
        return tokens + step

    def _shares(self, copies: Float[Tensor, "order n side side dim"]) -> Float[Tensor, "order n 1 1"]:
        if self.score is None:
            return copies.new_full((copies.shape[0], 1, 1, 1), 1 / copies.shape[0])
        scores: Tensor = self.score(copies.mean(dim=(2, 3)))
        return scores.softmax(dim=0)[..., None]
