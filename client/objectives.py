"""What a site minimises between two rounds: one class per local objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import cross_entropy

from popmi_core.config import LocalConfig
from popmi_core.errors import UpdateError

State = Mapping[str, Tensor]


class Objective(Protocol):
    """A loss of one batch and a correction of the gradient it gave."""

    def loss(self, logits: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Return the mean loss of the batch, in nats."""

    def correct(self, parameters: Sequence[Parameter]) -> None:
        """Change ``parameters``' gradients in place, after the backward pass and before the optimiser's step."""


class Plain:
    """Cross-entropy."""

    def loss(self, logits: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the batch, in nats."""
        return cross_entropy(logits, target)

    def correct(self, parameters: Sequence[Parameter]) -> None:
        """Leave the gradients as they are."""


class Proximal(Plain):
    """FedProx: cross-entropy plus ``mu / 2 * ||w - w_global||**2`` over the trained parameters.

    Li et al. 2020, Federated optimization in heterogeneous networks, arXiv:1812.06127. The term enters by its gradient
    ``mu * (w - w_global)``; the loss reported stays the cross-entropy, so that objectives can be compared.
    """

    def __init__(self, reference: Sequence[Tensor], mu: float) -> None:
        self.reference = [tensor.detach().clone() for tensor in reference]
        self.mu = mu

    def correct(self, parameters: Sequence[Parameter]) -> None:
        """Add ``mu * (w - w_global)`` to the gradients."""
        with torch.no_grad():
            drift = torch._foreach_sub(list(parameters), self.reference)
            torch._foreach_add_([p.grad for p in parameters], drift, alpha=self.mu)


def build_objective(local: LocalConfig, named: Mapping[str, Parameter], *, reference: State | None) -> Objective:
    """Return the objective that ``local`` names, for the trained parameters ``named``.

    Raises:
        UpdateError: If the reference lacks a trained parameter or has it in another shape.
    """
    if local.objective == "proximal":
        return Proximal(pick(reference, named, "the broadcast model"), local.proximal_mu)
    return Plain()


def pick(state: State | None, named: Mapping[str, Parameter], whose: str) -> list[Tensor]:
    """Return ``state``'s tensors in the order of ``named``; ``None`` stands for the parameters themselves.

    Raises:
        UpdateError: If a tensor is missing or has another shape.
    """
    if state is None:
        return [p.detach().clone() for p in named.values()]
    for name, p in named.items():
        got = tuple(state[name].shape) if name in state else "nothing"
        if got != tuple(p.shape):
            raise UpdateError(
                f"{whose}: '{name}' is {got}, expected shape {tuple(p.shape)}. "
                "Check that the site and the server run the same backbone and adapter."
            )
    return [state[name].detach().to(p) for name, p in named.items()]
