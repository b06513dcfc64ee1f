"""What the published rivals may move: units only, every tensor in its own spelling.

Git Re-Basin, OT-Fusion and FedMA know permutations and nothing else. A stream's rotation becomes a permutation (which
keeps LayerNorm as it is, so that gamma and beta move along and nothing is folded), a head's free basis a permutation of
its channels. Heads stay whole: channels never leave their head.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.errors import ModelError
from popmi_core.fusion.update import State
from popmi_core.matching.elements import Element, Move, act, read_axis
from popmi_core.matching.symmetry import Axis, Space, Symmetry

# A tensor of this name beside a space's weights holds where each of its units came from: it moves along.
ORDER = "#order"


@dataclass(frozen=True)
class Permutable:
    """The permutations of an architecture.

    ``spaces`` says what may change places with what; ``units`` the same as plain unit permutations, one space per part
    of a space, named ``space`` or ``space:part``; ``owners`` leads back from such a name to the space.
    """

    spaces: Mapping[str, Space]
    units: Symmetry
    owners: Mapping[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)

    def keys(self, space: str) -> dict[str, str]:
        """Return the names of a space's unit spaces by part."""
        return {key.removeprefix(space).removeprefix(":"): key for key, owner in self.owners.items() if owner == space}

    def axes(self, space: str) -> tuple[Axis, ...]:
        """Return the axes of one space that say which unit is which."""
        return tuple(axis for axis in self.units.axes if axis.counts and self.owners[axis.space] == space)


@dataclass(frozen=True)
class Visit:
    """One step of a pass from the input to the output: a space, and the axes by which it can be matched by then."""

    space: str
    axes: tuple[Axis, ...]


def permutable(symmetry: Symmetry | None, names: Collection[str], *, rule: str) -> Permutable:
    """Return the permutations of an architecture that move exchanged tensors only.

    Args:
        symmetry: The architecture's description.
        names: The tensors that are exchanged; a space with a tensor that is not among them stays as it is.
        rule: Whom an error names.

    Raises:
        ModelError: If the architecture is not described.
    """
    if symmetry is None:
        raise ModelError(
            f"rule {rule} needs the architecture's symmetries but got none. Pass what describe_model says, or take "
            "rule 'average'."
        )
    axes = symmetry.in_own_spelling()
    kept = {name for name in symmetry.spaces if all(axis.tensor in names for axis in axes if axis.space == name)}
    notes = {
        name: "left as it is: not all of its tensors are exchanged" for name in symmetry.spaces if name not in kept
    }
    plain, spaces, owners = [], {}, {}
    for axis in axes:
        if axis.space in kept:
            key = f"{axis.space}:{axis.part}" if axis.part else axis.space
            plain.append(replace(axis, space=key, part=""))
            spaces[key] = Space(key, "permutation", symmetry.spaces[axis.space].width(axis.part))
            owners[key] = axis.space
    plain += [Axis(key + ORDER, 0, key, counts=False) for key in spaces]
    units = Symmetry(symmetry.family, spaces, tuple(plain))
    return Permutable({n: s for n, s in symmetry.spaces.items() if n in kept}, units, owners, notes)


def incoming(axis: Axis) -> bool:
    """Whether an axis belongs to what a unit receives: its row, bias or norm, not the column of the next layer."""
    return axis.axis == 0 or not axis.dual


def forward_order(group: Permutable, state: State, *, arriving: bool) -> list[Visit]:
    """Return the spaces in the order in which they can be matched, starting from the pixels.

    A space is matched by the tensors whose other sides are settled: those fixed by images or classes, or matched
    before. A residual stream is one space written by many layers: it is matched by the embedding first, and once more
    by all its writers after the first pass, followed by all others.

    Args:
        group: What may move.
        state: Any model of the architecture, for its shapes.
        arriving: Use only what units receive (OT-Fusion, FedMA), not what they send.
    """
    usable = {space: _usable(group, space, arriving=arriving) for space in group.spaces}
    visits: list[Visit] = []
    settled: set[str] = set()
    while len(settled) < len(usable):
        name, axes = _next(group, state, {n: axes for n, axes in usable.items() if n not in settled}, settled)
        visits.append(Visit(name, axes))
        settled.add(name)
    again = [Visit(visit.space, usable[visit.space]) for visit in visits]
    return visits if again == visits else visits + again


def _usable(group: Permutable, space: str, *, arriving: bool) -> tuple[Axis, ...]:
    axes = [axis for axis in group.axes(space) if incoming(axis) or not arriving]
    # A layer from a space into itself says nothing before the space is matched.
    own = [axis for axis in axes if space not in _others(group, axis)]
    return tuple(own or axes)


def _others(group: Permutable, axis: Axis) -> set[str]:
    """Return the spaces on the other sides of an axis' tensor."""
    sides = (other for other in group.units.axes if other.tensor == axis.tensor and other.axis != axis.axis)
    return {group.owners[other.space] for other in sides}


def _next(
    group: Permutable, state: State, waiting: Mapping[str, tuple[Axis, ...]], settled: set[str]
) -> tuple[str, tuple[Axis, ...]]:
    ready = {name: tuple(axis for axis in axes if _others(group, axis) <= settled) for name, axes in waiting.items()}
    for name, axes in ready.items():
        # A bias alone does not tell units apart well: wait for a matrix.
        if any(state[axis.tensor].ndim > 1 for axis in axes):
            return name, axes
    name = next(iter(waiting))
    return name, ready[name] or waiting[name]


def crossed(
    first: State, second: State, group: Permutable, axes: Iterable[Axis]
) -> dict[str, Float[Tensor, "width width"]]:
    """Return ``sum a_i . b_j`` over the axes by part of their space, float64."""
    total: dict[str, Tensor] = {}
    for axis in axes:
        space = group.units.spaces[axis.space]
        rows = [read_axis(state[axis.tensor], axis, space) for state in (first, second)]
        part = axis.space.removeprefix(group.owners[axis.space]).removeprefix(":")
        # Files of one architecture may differ in number format; half precision is too coarse to compare units in.
        wide = torch.promote_types(torch.promote_types(rows[0].dtype, rows[1].dtype), torch.float32)
        found = (rows[0].to(wide) @ rows[1].T.to(wide)).double()
        total[part] = total[part] + found if part in total else found
    return total


def energies(state: State, group: Permutable, axes: Iterable[Axis]) -> dict[str, Float[Tensor, " width"]]:
    """Return every unit's squared length over the axes by part of their space, float64."""
    total: dict[str, Tensor] = {}
    for axis in axes:
        part = axis.space.removeprefix(group.owners[axis.space]).removeprefix(":")
        found = read_axis(state[axis.tensor], axis, group.units.spaces[axis.space]).double().square().sum(dim=1)
        total[part] = total[part] + found if part in total else found
    return total


def move(state: State, group: Permutable, moves: Mapping[str, Move]) -> dict[str, Tensor]:
    """Return the state with its units moved; tensors that no move touches are shared."""
    touched = {axis.tensor for axis in group.units.axes if axis.space in moves} & set(state)
    axes = tuple(axis for axis in group.units.axes if axis.tensor in touched)
    return {**state, **act({n: state[n] for n in touched}, replace(group.units, axes=axes), Element(moves))}


def traced(state: State, group: Permutable) -> dict[str, Tensor]:
    """Return the state with a tensor beside every space that tells where its units came from."""
    return {**state, **{key + ORDER: torch.arange(space.size) for key, space in group.units.spaces.items()}}


def untraced(state: State) -> dict[str, Tensor]:
    """Return the model without what ``traced`` added."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(ORDER)}


def tell(sites: Sequence[str], states: Sequence[State], group: Permutable) -> dict[str, str]:
    """Return a note per space: how many of its units moved at every site (of channels, where it has parts)."""
    notes = dict(group.notes)
    for space in group.spaces:
        still = {key: torch.arange(group.units.spaces[key].size) for key in group.keys(space).values()}
        counts = (sum(int((state[key + ORDER] != order).sum()) for key, order in still.items()) for state in states)
        told = ", ".join(f"{site} {count}" for site, count in zip(sites, counts, strict=True))
        notes[space] = f"units moved of {sum(len(order) for order in still.values())}: {told}"
    return notes
