"""OPM: put every model into one basis, then average weights, and what heads compute where that is not the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from popmi_core.config import FuseConfig
from popmi_core.errors import ConfigError
from popmi_core.fusion import adaptive_circuit
from popmi_core.fusion.average import streamed_mean, weighted_mean
from popmi_core.fusion.score import Scoreboard, Scorer
from popmi_core.fusion.shelf import TEMPORARY, Place, Shelf, shelf_for
from popmi_core.fusion.update import Fused, State, Symmetry, Update, in_order, shares
from popmi_core.matching import Matched, Matcher
from popmi_core.matching.elements import Element

Anchor = Literal["reference", "medoid", "mean_of_others"]
# A site's name and the model whose basis counts -> elements to begin from, in canonical bases.
StartsOf = Callable[[str, State], Iterable[Element]]
# Rounds over all models of the mean-of-others; planted copies settle in two.
_CYCLES = 5
# What a note says of a model that was left because one look certified it.
CERTIFIED = "certified in place"
# A cycle that brings the models closer by less than this share is the last.
_SETTLED = 1e-3


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
    anchor: Anchor = "reference",
    sweeps: int = 10,
    restarts: int = 0,
    starts_of: StartsOf | None = None,
    place: Place = TEMPORARY,
) -> Fused:
    """Match every update to one basis and fuse them by ``adaptive_circuit``, weighted by num_examples.

    Whose basis: ``reference``: that of the global model (rounds of a federation). Without one (one-shot fusion):
    ``medoid``: the model closest to all others once matched (n^2 matches), or ``mean_of_others``: from there, each
    model is matched to the mean of the others until they settle (as MergeMany of Git Re-Basin, arXiv:2209.04836,
    algorithm 3). All maps go through one basis, so that they are consistent around every cycle. ``match.<site>`` in
    the notes says what moved. A lone site's model is returned as it is. Memory beyond the updates: a copy of each
    model that moved (none where sites started from the global model). Models that stay in files (``open_state``) are
    read tensor by tensor and copies wait in files at ``place``: memory then does not grow with the number of sites.

    ``restarts``: further descents in random order, for nets without a rotated stream. ``starts_of``: gives, for a
    site's name and the model whose basis counts, further places to begin from (``start_from`` of activation
    statistics); the scorer then picks among the ends by the loss half way to that model, which tells more than the
    distance does.

    Raises:
        ConfigError: If there is no such anchor.
        UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
    """
    search = Search(sweeps, restarts, starts_of, scorer)
    with shelf_for(updates, place) as shelf:
        basis = Basis.choose(updates, reference=reference, symmetry=symmetry, anchor=anchor, search=search, shelf=shelf)
        aligned = [shelf.take(update) for update in basis.aligned()]
        fused = adaptive_circuit.fuse(aligned, reference=basis.reference, symmetry=symmetry, config=config)
    return replace(fused, notes={**fused.notes, **basis.notes})


@dataclass(frozen=True)
class Search:
    """How hard to look for each model's move (see ``fuse``)."""

    sweeps: int = 10
    restarts: int = 0
    starts_of: StartsOf | None = None
    scorer: Scorer | None = None

    def matcher(self, reference: State, symmetry: Symmetry | None) -> Matcher:
        """Return the matcher to one reference."""
        return Matcher(reference, symmetry, sweeps=self.sweeps, restarts=self.restarts)

    def match(self, matcher: Matcher, update: Update) -> Matched:
        """Return one update in the matcher's basis."""
        if self.starts_of is None:
            return matcher.match(update.state, site=update.site)
        starts = self.starts_of(update.site, matcher.reference)
        judge = None if self.scorer is None else _half_way(matcher.reference, update.site, self.scorer)
        return matcher.match(update.state, site=update.site, starts=starts, judge=judge)


@dataclass
class Basis:
    """The model whose basis counts, and the updates that are to be put into it, one at a time.

    ``notes`` tells, and ``moved`` lists by site, what moved on the way, after ``aligned`` has been gone through.
    """

    updates: list[Update]
    reference: State
    symmetry: Symmetry | None
    search: Search = field(default_factory=Search)
    notes: dict[str, str] = field(default_factory=dict)
    moved: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def choose(
        cls,
        updates: Sequence[Update],
        *,
        reference: State,
        symmetry: Symmetry | None,
        anchor: Anchor = "reference",
        search: Search | None = None,
        shelf: Shelf | None = None,
    ) -> Basis:
        """Check the updates and settle whose basis counts (see ``fuse``); models moved on the way go to the shelf.

        Raises:
            ConfigError: If there is no such anchor.
            UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
        """
        if anchor not in ("reference", "medoid", "mean_of_others"):
            raise ConfigError(f"opm: anchor is {anchor!r}, expected reference, medoid or mean_of_others.")
        ordered, search = in_order(updates, reference=reference), search or Search()
        weights = shares(ordered)
        if anchor == "reference" or len(ordered) == 1 or symmetry is None:
            return cls(ordered, reference, symmetry, search)
        centre = medoid(ordered, symmetry, sweeps=search.sweeps)
        basis = cls(ordered, centre.state, symmetry, search, {"match": f"in the basis of {centre.site}"})
        if anchor == "mean_of_others":
            _settle(basis, weights, shelf or Shelf(None))
        return basis

    def aligned(self) -> Iterator[Update]:
        """Yield every update in the chosen basis, by site's name; Gram matrices stay where nothing moved."""
        if len(self.updates) == 1:
            yield from self.updates
            return
        matcher = self.search.matcher(self.reference, self.symmetry)
        for update in self.updates:
            yield self.put(update, self.search.match(matcher, update))

    def put(self, update: Update, found: Matched) -> Update:
        """Return the update as it was matched, and note what moved."""
        moved = {name for name, stays in found.identity.items() if not stays}
        # A model that was moved before and stays where it is now has still been moved.
        self.moved[update.site] = moved | self.moved.get(update.site, set())
        self.notes[f"match.{update.site}"] = _said(found, len(self.moved[update.site]))
        return replace(update, state=found.state, grams={}) if moved else update


def medoid(updates: Sequence[Update], symmetry: Symmetry, *, sweeps: int = 10) -> Update:
    """Return the update with the least example-weighted sum of squared distances of all others, once matched to it.

    Ties go to the first site by name; of two, this is the one with more examples. Cost: n (n - 1) matches; memory:
    one model beyond the updates.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    if len(ordered) == 2:
        return max(ordered, key=lambda update: update.num_examples)
    costs = []
    for centre in ordered:
        matcher = Matcher(centre.state, symmetry, sweeps=sweeps)
        others = [update for update in ordered if update is not centre]
        costs.append(sum(_distance(update, matcher) for update in others))
    return ordered[costs.index(min(costs))]


def _distance(update: Update, matcher: Matcher) -> float:
    found = matcher.match(update.state, site=update.site)
    return update.num_examples * (found.distances[-1] if found.distances else 0.0)


def _settle(basis: Basis, weights: dict[str, float], shelf: Shelf) -> None:
    """Match each model to the mean of the others until they settle; the basis then reads their mean."""
    models = [shelf.take(update) for update in basis.aligned()]
    spread = _spread(models, weights)
    for cycle in range(_CYCLES):
        tried, notes, moved = list(models), dict(basis.notes), dict(basis.moved)
        for index, update in enumerate(tried):
            others = [(weights[other.site], other.state) for other in tried if other is not update]
            mass = sum(weight for weight, _ in others) or 1.0
            mean = streamed_mean(((weight / mass, state) for weight, state in others), reference=basis.reference)
            # They are near by now: the descent needs no other start.
            matcher = Matcher(mean, basis.symmetry, sweeps=basis.search.sweeps)
            tried[index] = shelf.take(basis.put(update, matcher.match(update.state, site=update.site)))
        after = _spread(tried, weights)
        kept, dropped = (models, tried) if after >= spread else (tried, models)
        for update in dropped:
            if all(update is not other for other in kept):
                shelf.drop(update)
        if after >= spread:
            basis.notes, basis.moved = notes, moved
            break
        models, before, spread = tried, spread, after
        basis.notes["match"] = f"each in the basis of the mean of the others, {cycle + 1} cycles"
        if before - after <= _SETTLED * before:
            break
    basis.updates = models
    basis.reference = weighted_mean(models, weights, reference=basis.reference)


def _spread(models: Sequence[Update], weights: dict[str, float]) -> float:
    """Return the weighted sum of squared distances to the weighted mean."""
    mean = weighted_mean(models, weights, reference=models[0].state)
    return sum(
        weights[update.site] * float((update.state[name].double() - value.double()).square().sum())
        for update in models
        for name, value in mean.items()
        if value.is_floating_point()
    )


def _half_way(reference: State, site: str, scorer: Scorer) -> Callable[[State], float]:
    """Return what judges a moved model: the validation loss of the model half way to the reference."""
    board = Scoreboard(scorer, rule="opm")

    def judge(moved: State) -> float:
        name = f"match/{site}/{len(board.table())}"
        board.add(name, streamed_mean(((0.5, reference), (0.5, moved)), reference=reference))
        return board.losses(name)[0]

    return judge


def _said(found: Matched, moved: int) -> str:
    still = f"nothing moved, {CERTIFIED}" if found.certified else "nothing moved"
    said = f"moved {moved} of {len(found.identity)} bases" if moved else still
    return f"{said}; {found.note}" if found.note else said
