"""One rival of PREA, described: what it promises, what it costs, where it is from, and how it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

Train = Literal["none", "head", "all"]


@dataclass(frozen=True)
class Phase:
    """A part of training in which only some parameters move.

    Args:
        name: For the log, such as ``weights``.
        share: Part of the epochs it takes, in (0, 1]; the shares of a model sum to 1.
        trained: Prefixes of the names of the parameters that are trained, ``("",)`` for all; the rest is frozen.
    """

    name: str
    share: float
    trained: tuple[str, ...]

    def trains(self, parameter: str) -> bool:
        """Return whether the parameter of that name is trained in this phase."""
        return parameter.startswith(self.trained)


def warmed_up(later: tuple[Phase, ...], first: Phase) -> tuple[Phase, ...]:
    """Return ``first`` and then ``later`` in the rest of the epochs; nothing where nothing is trained later."""
    return later and (first, *(Phase(one.name, (1 - first.share) * one.share, one.trained) for one in later))


@runtime_checkable
class Phased(Protocol):
    """A model that is trained in phases, in order; an empty tuple: there is nothing to train."""

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases."""


@runtime_checkable
class ExtraLoss(Protocol):
    """A model with a loss of its own, added to the cross-entropy."""

    def extra_loss(self) -> Tensor | None:
        """Return the scalar of the latest forward in training mode, once; None where there is none."""


@dataclass(frozen=True)
class MethodContext:
    """What a method is built from.

    Args:
        backbone: Makes a fresh classifier [n, in_chans, side, side] -> [n, num_classes] with timm's
            ``forward_features`` and ``forward_head``; called once or more.
        group: C1, C2, C4, D1, D2 or D4 (exact), or C8, C16, ... (rotations; interpolated between quarter turns).
        image_size: Side of the square images, pixels.
        in_chans: Channels of the images.
        num_classes: Width of the logits.
        seed: Fixes every weight the method adds.
        train: What is trained later: ``none`` (used as it is), ``head`` (the classifier and what the method adds)
            or ``all``. It sets ``phases()``.
    """

    backbone: Callable[[], nn.Module]
    group: str
    image_size: int
    in_chans: int
    num_classes: int
    seed: int
    train: Train = "all"


@dataclass(frozen=True)
class Method:
    """One entry of the catalogue.

    Args:
        name: As asked for on a command line.
        guarantee: What holds, for which weights.
        cost: Forward passes of the backbone per image, |G| the order of the group.
        source: Paper and equation.
        caveat: What published code gets wrong, or where the method ends.
        build: Gives a module that maps images [n, in_chans, side, side] to logits [n, num_classes]. The module may
            have ``phases()`` (see ``Phased``; without it there is one phase, all parameters) and ``extra_loss()``.
    """

    name: str
    guarantee: str
    cost: str
    source: str
    caveat: str
    build: Callable[[MethodContext], nn.Module]


def phases_of(model: nn.Module) -> tuple[Phase, ...]:
    """Return how ``model`` is trained: its own phases, or one in which everything moves."""
    return model.phases() if isinstance(model, Phased) else (Phase("all", 1.0, ("",)),)
