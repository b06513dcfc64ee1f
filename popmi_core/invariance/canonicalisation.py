"""Canonicalisation: turn the image upright first, then run the backbone once.

A small network E scores every g x; the image in the best orientation, g* = argmax_g E(g x), goes to the backbone. In
training the choice is hard forward and soft backward (straight-through: softmax of the scores), and a prior keeps
upright images as they are: the Kullback-Leibler divergence from "all mass on the identity" to the softmax, which is
-log softmax(E(g x))[identity] (``extra_loss``).

Source: Kaba et al. 2022, arXiv:2211.06489 (learned canonicalisation, energy form); Mondal et al. 2023, arXiv:2310.01647
(the prior, for pretrained backbones).

Guarantee: exactly invariant except at ties, whatever the weights: the orbit of g x is the orbit of x, and the same copy
of it wins. Cost: one forward pass of the backbone, |G| of a network of 15 000 parameters.

Where it ends: every continuous choice of an orientation has ties, and next to them the answer jumps, by as much as the
backbone's own error. With interpolated rotations (C8, C16) only quarter turns are exact. The prior is right only where
training images stand upright; on images in random orientation it says that no orientation is better, set ``prior=0``.

Published code: nothing wrong was found. Differs: a small plain network scores every copy, which serves any group, in
place of one that is equivariant by its layers and runs once.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from popmi_core.errors import ConfigError
from popmi_core.groups import FiniteAction, image_action, orbit
from popmi_core.invariance.method import Method, MethodContext, Train
from popmi_core.invariance.orbit import OrbitModel, by_element, weighted_sum


class Energy(nn.Module):
    """Images [n, c, side, side] -> how upright they look [n]: three convolutions, a mean over places, linear."""

    def __init__(self, in_chans: int, *, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = _conv(in_chans, width, 5, 2, generator)
        self.second = _conv(width, 2 * width, 3, 2, generator)
        self.third = _conv(2 * width, 2 * width, 3, 1, generator)
        self.out = skip_init(nn.Linear, 2 * width, 1, bias=False)
        with torch.no_grad():
            self.out.weight.copy_(torch.randn(1, 2 * width, generator=generator) / math.sqrt(2 * width))

    def forward(self, images: Float[Tensor, "n c side side"]) -> Float[Tensor, " n"]:
        """Return one score an image."""
        maps = functional.gelu(self.second(functional.gelu(self.first(images))))
        score: Tensor = self.out(functional.gelu(self.third(maps)).mean(dim=(2, 3)))
        return score.squeeze(-1)


class Canonicalised(OrbitModel):
    """The backbone on the image in its canonical orientation; ``energy.`` chooses it.

    Args:
        backbone: A classifier of images.
        action: How the group moves images.
        in_chans: Channels of the images.
        prior: Weight of the prior in the loss, at least 0.
        train: What ``phases`` trains.
        seed: Fixes the start of the scoring network.

    Raises:
        ConfigError: If the weight of the prior is negative or no number.
    """

    added: ClassVar[tuple[str, ...]] = ("energy.",)

    def __init__(
        self,
        backbone: nn.Module,
        action: FiniteAction,
        *,
        in_chans: int = 3,
        prior: float = 1.0,
        train: Train = "all",
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, action, train=train)
        if not 0 <= prior < math.inf:
            raise ConfigError(f"prior is {prior}, expected a weight of at least 0. Use 0 to leave the prior out.")
        self.energy = Energy(in_chans, seed=seed).to(next(backbone.parameters()))
        self.prior = prior
        self._loss: Tensor | None = None

    def forward(self, images: Float[Tensor, "n c side side"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        copies = orbit(self.action, images)
        scores = by_element(self.action, self.energy(copies))
        canonical = chosen(scores, by_element(self.action, copies), soft=self.training)
        self._loss = self.prior * prior_loss(scores) if self.training and self.prior else None
        logits: Tensor = self.backbone(canonical)
        return logits

    def extra_loss(self) -> Tensor | None:
        """Return the weighted prior of the latest forward in training mode, once."""
        # Forgotten when read: a graph kept on a module cannot be copied.
        loss, self._loss = self._loss, None
        return loss


def chosen(
    scores: Float[Tensor, "order n"], copies: Float[Tensor, "order n c side side"], *, soft: bool
) -> Float[Tensor, "n c side side"]:
    """Return every image's copy with the highest score; with ``soft`` its gradient is that of the softmax's mix."""
    hard = copies[scores.argmax(dim=0), torch.arange(scores.shape[1], device=scores.device)]
    if not soft:
        return hard
    mix = weighted_sum(scores.softmax(dim=0), copies.detach())
    return hard + (mix - mix.detach())


def prior_loss(scores: Float[Tensor, "order n"]) -> Float[Tensor, ""]:
    """Return the mean of KL(identity || softmax over the orbit) = -log softmax(scores)[identity], nats."""
    return -scores.log_softmax(dim=0)[0].mean()


def _conv(dim: int, out: int, size: int, stride: int, generator: torch.Generator) -> nn.Conv2d:
    layer: nn.Conv2d = skip_init(nn.Conv2d, dim, out, size, stride=stride, padding=size // 2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * math.sqrt(2 / (dim * size**2)))
        nn.init.zeros_(layer.bias) if layer.bias is not None else None
    return layer


def _build(context: MethodContext) -> nn.Module:
    return Canonicalised(
        context.backbone(),
        image_action(context.group),
        in_chans=context.in_chans,
        train=context.train,
        seed=context.seed,
    )


ENTRIES = (
    Method(
        name="canonicalisation",
        guarantee="exact for C1 to D4 but for ties",
        cost="1, and |G| of a small network",
        source="Kaba et al. 2022, arXiv:2211.06489; prior: Mondal et al. 2023, arXiv:2310.01647",
        caveat="discontinuous at ties; the prior supposes upright training images",
        build=_build,
    ),
)
