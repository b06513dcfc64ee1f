"""equizero (Basu et al. 2023, arXiv:2305.09900): only the copy whose output looks best counts.

M_G(x) = g*^-1 M(g* x), g* = argmax_g s(M(g x)) with a proxy score s that the group does not change (the paper minimises
a loss, -s). It needs no training.

Guarantee: exactly equivariant but for ties: where two different copies have the same best score, rounding decides, and
near such inputs the answer jumps. Cost: |G| forward passes. Trained, gradients reach the chosen copy alone, which is
the gradient of this function wherever it has one.

Published code: nothing wrong was found in the choice of a copy. What it shares with lambda-equitune of the same paper,
it has wrong: softmax is applied before a cross-entropy that applies it again, and of classes, on which g* acts
trivially, there is no inverse action to see. Differs: here logits are raw, ``outputs`` turns what is not a class back,
and the proxies are scores of the output alone, such as its largest logit, so that any classifier has one.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.errors import ConfigError
from popmi_core.groups import FiniteAction, image_action
from popmi_core.invariance.method import Method, MethodContext, Train
from popmi_core.invariance.orbit import OrbitModel

Proxy = Literal["logit", "confidence", "entropy"]


class Equizero(OrbitModel):
    """The output of the best copy.

    Args:
        backbone: M, any model that gives [n, ..., scores].
        action: How the group moves inputs.
        outputs: How it moves outputs; None: not at all, as with classes.
        proxy: ``logit`` (the largest output), ``confidence`` (the largest probability) or ``entropy`` (its negative);
            with more than one row of scores an input, such as one a word, their mean: then every row depends on all
            others, which a language model's may not.
        train: What ``phases`` trains.

    Raises:
        ConfigError: If the proxy is none of these.
    """

    def __init__(
        self,
        backbone: nn.Module,
        action: FiniteAction,
        *,
        outputs: FiniteAction | None = None,
        proxy: Proxy = "logit",
        train: Train = "all",
    ) -> None:
        super().__init__(backbone, action, train=train)
        if proxy not in get_args(Proxy):
            raise ConfigError(f"proxy {proxy!r} is no score, expected one of {', '.join(get_args(Proxy))}.")
        self.outputs, self.proxy = outputs, proxy

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the best copies: for images [n, c, side, side], logits [n, classes]."""
        copies = self.copies(inputs)
        best = self.scores(copies).argmax(dim=0)
        if self.outputs is not None:
            copies = torch.stack([self.outputs.undo(index, copy) for index, copy in enumerate(copies)])
        return copies[best, torch.arange(copies.shape[1], device=copies.device)]

    def scores(self, copies: Float[Tensor, "order n *rows scores"]) -> Float[Tensor, "order n"]:
        """Return the proxy score of every copy; no permutation of classes or words changes it."""
        if self.proxy == "logit":
            score = copies.amax(dim=-1)
        else:
            log = copies.log_softmax(dim=-1)
            score = log.amax(dim=-1) if self.proxy == "confidence" else (log.exp() * log).sum(dim=-1)
        return score.flatten(2).mean(dim=2) if score.ndim > 2 else score


def _build(context: MethodContext) -> nn.Module:
    return Equizero(context.backbone(), image_action(context.group), train=context.train)


ENTRIES = (
    Method(
        name="equizero",
        guarantee="exact for C1 to D4 but for ties",
        cost="|G|",
        source="Basu et al. 2023, arXiv:2305.09900: g* = argmin l(M(g x))",
        caveat="discontinuous where the best copy changes; published code puts softmax before the cross-entropy",
        build=_build,
    ),
)
