"""What a site sends and what a rule returns: the one interface of all fusion rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from popmi_core.errors import UpdateError

# One name for the description of a network's symmetries, for every rule of this package.
from popmi_core.matching import Symmetry

__all__ = ["Fused", "State", "Symmetry", "Update", "cast", "in_order", "shares", "stack"]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Update:
    """One site's model after local training; ``num_examples`` is its weight where a rule weighs.

    ``grams``: RegMean's input Gram matrices by layer name, float, divided by the number of images they are summed
    over (see ``popmi_core.fusion.regmean.input_grams``); empty where the rule does not ask for them.
    """

    site: str
    state: State
    num_examples: int
    grams: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Fused:
    """The fused model, the weight every site had in it, and what a person should know per layer.

    ``scores``: where candidates were compared, the validation loss in nats of every candidate at every site;
    ``chosen``: the candidate taken; ``regret``: the most that one site loses (nats) because the choice is not the
    candidate that is best for that site alone.
    """

    state: dict[str, Tensor]
    weights: dict[str, float]
    notes: dict[str, str] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    chosen: str = ""
    regret: float | None = None


def in_order(updates: Sequence[Update], *, reference: State) -> list[Update]:
    """Return the updates sorted by site, so that a float sum never depends on who answered first.

    Raises:
        UpdateError: If there is no update, a site came twice, or an update does not have the reference's names,
            shapes and finite values.
    """
    if not updates:
        raise UpdateError("no site sent an update, expected at least one. Wait for a site or end the run.")
    ordered = sorted(updates, key=lambda update: update.site)
    for first, second in pairwise(ordered):
        if first.site == second.site:
            raise UpdateError(f"site {first.site} sent two updates in one round, expected one. Drop the older one.")
    for update in ordered:
        _check(update, reference)
    return ordered


def _check(update: Update, reference: State) -> None:
    who = f"site {update.site}"
    if set(update.state) != set(reference):
        name = min(set(update.state) ^ set(reference))
        side = "is missing from the update" if name in reference else "is not part of the global model"
        raise UpdateError(f"{who}: '{name}' {side}. Check that the site runs the same model configuration.")
    for name, expected in reference.items():
        tensor = update.state[name]
        if tensor.shape != expected.shape:
            raise UpdateError(
                f"{who}: '{name}' has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}. "
                "Check that the site runs the same model configuration."
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UpdateError(f"{who}: '{name}' holds NaN or infinity. Lower the site's learning rate; it sits out.")


def shares(updates: Sequence[Update]) -> dict[str, float]:
    """Return every site's share of all examples; the shares sum to one.

    Raises:
        UpdateError: If a count is negative or nobody has an example.
    """
    for update in updates:
        if update.num_examples < 0:
            raise UpdateError(
                f"site {update.site}: num_examples is {update.num_examples}, expected a count of at least 0. "
                "Check the site's reply."
            )
    total = sum(update.num_examples for update in updates)
    if total == 0:
        raise UpdateError("every site reports num_examples 0, expected one example somewhere. Check the sites' data.")
    return {update.site: update.num_examples / total for update in updates}


def stack(updates: Sequence[Update], name: str) -> Tensor:
    """Return one tensor of all sites in float64, shape ``[site, ...]``."""
    return torch.stack([update.state[name].double() for update in updates])


def cast(value: Tensor, like: Tensor) -> Tensor:
    """Return ``value`` in the number format of ``like``, laid out row by row; counters are rounded, not cut."""
    return (value if like.is_floating_point() else value.round()).to(like.dtype).contiguous()
