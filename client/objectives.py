"""What a site minimises between two rounds: one class per local objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import cross_entropy

from popmi_core.config import LocalConfig
from popmi_core.errors import UpdateError

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Broadcast:
    """What the objectives need besides the images; every tensor is named as the parameter it belongs to.

    Attributes:
        reference: Broadcast parameters; the model's own at the start of the round where it is ``None``.
        control: The site's control variate from its last round; ``None`` is zero.
        server_control: The server's control variate; ``None`` is zero.
    """

    reference: State | None = None
    control: State | None = None
    server_control: State | None = None


@dataclass(frozen=True)
class ControlUpdate:
    """The site's next control variate, which stays on site, and its change, which the server averages."""

    control: dict[str, Tensor]
    change: dict[str, Tensor]


class Objective(Protocol):
    """A loss of one batch, a correction of the gradient it gave, and what is left at the end of the round."""

    def loss(self, logits: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Return the mean loss of the batch, in nats."""

    def correct(self, parameters: Sequence[Parameter]) -> None:
        """Change ``parameters``' gradients in place, after the backward pass and before the optimiser's step."""

    def finish(self) -> ControlUpdate | None:
        """Return what the objective keeps for the next round."""


class Plain:
    """Cross-entropy."""

    def loss(self, logits: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the batch, in nats."""
        return cross_entropy(logits, target)

    def correct(self, parameters: Sequence[Parameter]) -> None:
        """Leave the gradients as they are."""

    def finish(self) -> ControlUpdate | None:
        """Return ``None``: nothing is kept."""
        return None


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
            torch._foreach_add_(gradients(parameters), drift, alpha=self.mu)


class Calibrated(Plain):
    """Cross-entropy of ``logits + tau * log prior``, the prior being the site's own class frequencies.

    Logit adjustment (Menon et al. 2021, arXiv:2007.07314) with the local prior, as in FedLC (Zhang et al. 2022,
    arXiv:2209.00189). One image is added to every class (Laplace), so a class the site lacks has a small prior and no
    infinite logit; such a class is then hardly pushed down, which is the purpose. Evaluation uses the bare logits.
    """

    def __init__(self, target: Int[Tensor, " n"], num_classes: int, tau: float) -> None:
        counts = torch.bincount(target, minlength=num_classes).double() + 1
        self.offset = (tau * torch.log(counts / counts.sum())).float()

    def loss(self, logits: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the shifted logits, in nats."""
        return cross_entropy(logits + self.offset.to(logits), target)


class ControlVariates(Plain):
    """SCAFFOLD: every gradient is moved by ``c - c_i``, the server's control variate minus the site's.

    Karimireddy et al. 2020, arXiv:1910.06378, option II: ``c_i+ = c_i - c + (w_global - w_i) / (steps * lr)``. Under
    plain SGD the last term is the mean of the moved gradients, so ``c_i+`` is the mean of the gradients before they
    were moved. That mean is what is computed here, for any optimiser: AdamW's steps are not in the unit of a gradient,
    and dividing them by the learning rate would make the correction a hundred times too large.
    The server adds ``sites answering / sites in all * mean(change)`` to ``c``.
    """

    def __init__(self, names: Sequence[str], control: Sequence[Tensor], server_control: Sequence[Tensor]) -> None:
        self.names = list(names)
        self.control = [tensor.detach().clone() for tensor in control]
        self.shift = torch._foreach_sub([tensor.detach() for tensor in server_control], self.control)
        self.total = [torch.zeros_like(tensor) for tensor in self.control]
        self.steps = 0

    def correct(self, parameters: Sequence[Parameter]) -> None:
        """Add ``c - c_i`` to the gradients, after adding them to their own mean."""
        own = gradients(parameters)
        torch._foreach_add_(self.total, own)
        torch._foreach_add_(own, self.shift)
        self.steps += 1

    def finish(self) -> ControlUpdate | None:
        """Return ``c_i+`` and ``c_i+ - c_i``, on the CPU."""
        mean = torch._foreach_div(self.total, max(self.steps, 1))
        change = torch._foreach_sub(mean, self.control)
        return ControlUpdate(
            control={name: tensor.cpu() for name, tensor in zip(self.names, mean, strict=True)},
            change={name: tensor.cpu() for name, tensor in zip(self.names, change, strict=True)},
        )


def build_objective(
    local: LocalConfig,
    named: Mapping[str, Parameter],
    target: Int[Tensor, " n"],
    num_classes: int,
    broadcast: Broadcast,
) -> Objective:
    """Return the objective that ``local`` names, for the trained parameters ``named`` and a site's ``target``.

    Raises:
        UpdateError: If the broadcast lacks a trained parameter or has it in another shape.
    """
    if local.objective == "proximal":
        start = {name: p.detach() for name, p in named.items()}
        reference = broadcast.reference if broadcast.reference is not None else start
        return Proximal(_pick(reference, named, "the broadcast model"), local.proximal_mu)
    if local.objective == "control_variates":
        zero = {name: torch.zeros_like(p) for name, p in named.items()}
        return ControlVariates(
            list(named),
            _pick(broadcast.control or zero, named, "the site's control variate"),
            _pick(broadcast.server_control or zero, named, "the server's control variate"),
        )
    if local.objective == "calibrated":
        return Calibrated(target, num_classes, local.calibration_tau)
    return Plain()


def gradients(parameters: Sequence[Parameter]) -> list[Tensor]:
    """Return the gradients; a parameter the loss does not reach gets a zero one."""
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    return [p.grad for p in parameters if p.grad is not None]


def _pick(state: State, named: Mapping[str, Parameter], whose: str) -> list[Tensor]:
    for name, p in named.items():
        got = f"of shape {tuple(state[name].shape)}" if name in state else "missing"
        if name not in state or state[name].shape != p.shape:
            raise UpdateError(
                f"{whose}: '{name}' is {got}, expected shape {tuple(p.shape)}. "
                "Check that the site and the server run the same backbone and adapter."
            )
    return [state[name].detach().to(p) for name, p in named.items()]
