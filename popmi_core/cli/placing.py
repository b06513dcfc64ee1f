"""Put all models of a fusion into one basis: each into one model's, or in turn into that of those before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from popmi_core.cli.aligning import Aligner
from popmi_core.data import ImageSet
from popmi_core.fusion import State, Update
from popmi_core.fusion.average import streamed_mean
from popmi_core.fusion.path import distance
from popmi_core.fusion.shelf import Shelf
from popmi_core.matching.moves import LayerMove, layer_moves


@dataclass(frozen=True, eq=False)
class Placed:
    """A model in the common basis (on the shelf if it moved), what its move did to every layer, and the match's note.

    ``distances``: Frobenius distance to the model whose basis counts, before and after.
    """

    update: Update
    moves: list[LayerMove]
    distances: tuple[float, float]
    note: str


class AlignerFor(Protocol):
    """Makes the aligner to a state, for models that will have this share in the average with it."""

    def __call__(self, reference: State, *, share: float = 0.5) -> Aligner: ...


class Seen(Protocol):
    """Tells which images a model of this label is matched with; None where matching looks at none."""

    def __call__(self, label: str) -> ImageSet | None: ...


def to_one(
    updates: Iterable[Update], reference: State, aligner_for: AlignerFor, seen: Seen, shelf: Shelf
) -> list[Placed]:
    """Return every model in the basis of the reference."""
    aligner = aligner_for(reference)
    return [_place(update, aligner, reference, seen, shelf) for update in updates]


def in_turn(
    updates: Sequence[Update], aligner_for: AlignerFor, seen: Seen, shelf: Shelf, *, again: bool
) -> list[Placed]:
    """Return every model in the basis of the first, each matched to the mean of those before it.

    Against a mean of several models the half way point says little: the place of the line that is judged, or learned
    on, is the share that the model has in the average of all up to it.

    Args:
        updates: The models; the first gives the basis.
        aligner_for: Makes aligners.
        seen: What a model is matched with.
        shelf: Where models that moved wait.
        again: Match each of more than two models once more, as it came, to the mean of all others.
    """
    first, shares = updates[0].state, _shares(updates)
    put = partial(_place, basis=first, seen=seen, shelf=shelf)
    placed = [put(updates[0], aligner_for(first))]
    for index, update in enumerate(updates[1:], start=1):
        so_far = shares[: index + 1]
        mean = _mean(placed, so_far[:-1], first)
        placed.append(put(update, aligner_for(mean, share=so_far[-1] / (sum(so_far) or 1.0))))
    for index, update in enumerate(updates if again and len(updates) > 2 else []):
        others, theirs = ([*listed[:index], *listed[index + 1 :]] for listed in (placed, shares))
        before, placed[index] = (
            placed[index],
            put(update, aligner_for(_mean(others, theirs, first), share=shares[index])),
        )
        shelf.drop(before.update)
    return placed


def _place(update: Update, aligner: Aligner, basis: State, seen: Seen, shelf: Shelf) -> Placed:
    found = aligner.match(update.state, label=update.site, seen=seen(update.site))
    moved, before = not all(found.identity.values()), distance(basis, update.state)
    after = distance(basis, found.state) if moved else before
    own = shelf.take(replace(update, state=found.state)) if moved else update
    return Placed(own, layer_moves(found, aligner.symmetry), (before, after), found.note)


def _mean(placed: Sequence[Placed], shares: Sequence[float], like: State) -> State:
    """Return the average of models in one basis; a lone one as it is."""
    if len(placed) == 1:
        return placed[0].update.state
    mass = sum(shares)
    pairs = zip(shares, placed, strict=True)
    # Models that count nothing still have to be put somewhere: among themselves they count the same.
    return streamed_mean(
        ((share / mass if mass else 1 / len(placed), one.update.state) for share, one in pairs), reference=like
    )


def _shares(updates: Sequence[Update]) -> list[float]:
    total = sum(update.num_examples for update in updates)
    return [update.num_examples / total for update in updates]
