"""What `popmi fuse` does between reading and writing: choose a basis, match, fuse, and judge the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from popmi_core.cli.aligning import WITH_IMAGES, Aligner
from popmi_core.cli.cards import check_reference
from popmi_core.cli.parents import FUSED, Architecture, Parent, fitted, read_parent
from popmi_core.cli.placing import in_turn, to_one
from popmi_core.cli.ruleinputs import AFTER_MATCHING, RuleInputs
from popmi_core.cli.sites import part_of, together
from popmi_core.config import FuseConfig
from popmi_core.data import ImageSet, SiteData
from popmi_core.errors import ModelError
from popmi_core.fusion import Fused, Scorer, State, Update, fuse, needs
from popmi_core.fusion.gate import never_worse
from popmi_core.fusion.opm import Basis, Search, medoid
from popmi_core.fusion.path import evaluate
from popmi_core.fusion.shelf import shelf_for
from popmi_core.matching import Matcher, describe_model
from popmi_core.matching.moves import LayerMove, layer_moves
from popmi_core.matching.symmetry import Symmetry

# What no rule has chosen by comes first.
_JUDGED_ON = ("test", "external", "val", "train")
_MEDOID, _MEAN, _IN_TURN = "medoid", "mean", "in-turn"


@dataclass(frozen=True, eq=False)
class Job:
    """Everything a fusion needs.

    ``rules``: one, or the gate's candidates. ``match`` and ``starts``: how OPM rules match (see ``Aligner``).
    ``reference``: first, in-turn, medoid, mean or a file. ``sites``: perhaps none.
    """

    parents: list[Parent]
    architecture: Architecture
    rules: tuple[str, ...]
    gate: bool
    match: str
    reference: str
    weights: tuple[int, ...]
    sites: dict[str, SiteData]
    repair: bool
    starts: int = 1

    @property
    def inputs(self) -> RuleInputs:
        """What rules need beyond the models."""
        return RuleInputs(self.architecture.model, self.parents, self.sites, self.repair)

    @property
    def updates(self) -> list[Update]:
        """The models as fusion rules take them."""
        pairs = zip(self.parents, self.weights, strict=True)
        return [Update(parent.label, parent.state, weight) for parent, weight in pairs]


@dataclass(frozen=True, eq=False)
class Reference:
    """The state whose basis counts, in words whose it is, and the sha256 of its file where it is one file's."""

    state: State
    told: str
    sha256: str | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """The fused model, what matching did to every parent, and how good everything is on ``images`` of ``split``.

    ``distances``: Frobenius distance of every parent to the basis before and after matching. ``scores``: loss (nats)
    and accuracy, by parent and ``fused``.
    """

    fused: Fused
    rule: str
    basis: Reference
    moves: dict[str, list[LayerMove]] = field(default_factory=dict)
    distances: dict[str, tuple[float, float]] = field(default_factory=dict)
    split: str = ""
    images: int = 0
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)


def perform(job: Job, tell: Callable[[str], None]) -> Outcome:
    """Fuse the models and judge the result where there are images.

    Raises:
        ModelError: If a rule needs the architecture described and it is not, or the reference file does not fit.
        UpdateError: If a model is unfit.
    """
    tell("describing the architecture")
    symmetry, note = _described(job)
    tell("matching and fusing")
    outcome = _gated(job, symmetry) if job.gate else _single(job, job.rules[0], symmetry)
    fused = outcome.fused
    if note:
        fused = replace(fused, notes={**fused.notes, "architecture": note})
    if job.repair:
        tell("measuring norm statistics anew")
        fused = replace(fused, state=job.inputs.repaired(fused.state))
    outcome = replace(outcome, fused=fused)
    if not job.sites:
        return outcome
    tell("judging")
    return _judged(job, outcome)


def _described(job: Job) -> tuple[Symmetry | None, str]:
    # Rules that match, and a medoid, cannot do without.
    wanted = any(needs(rule).symmetry for rule in job.rules) or job.reference in (_MEDOID, _MEAN)
    try:
        return describe_model(job.architecture.model, image_size=job.architecture.image_size), ""
    except ModelError as error:
        if wanted:
            raise
        return None, str(error)


def _single(job: Job, rule: str, symmetry: Symmetry | None) -> Outcome:
    inputs = job.inputs
    # Before any matching: it fails where there are no validation images.
    scorer = inputs.scorer() if needs(rule).scorer else None
    chosen = _reference(job, symmetry)
    reference = chosen.state
    if rule in AFTER_MATCHING and symmetry is not None:
        return _matched(job, rule, symmetry, chosen, scorer)
    updates, options = inputs.with_grams([rule], job.updates), inputs.options(rule, reference, symmetry)
    fused = fuse(rule, updates, reference=reference, symmetry=symmetry, config=FuseConfig(), scorer=scorer, **options)
    return Outcome(fused, rule, chosen)


def _matched(job: Job, rule: str, symmetry: Symmetry, chosen: Reference, scorer: Scorer | None) -> Outcome:
    """Match here, where every layer's move can be told, and leave the second half of the rule to the library."""
    inputs, model, size = job.inputs, job.architecture.model, job.architecture.image_size
    aligner_for = partial(Aligner, symmetry=symmetry, model=model, method=job.match, image_size=size, starts=job.starts)

    def seen(label: str) -> ImageSet | None:
        return inputs.seen(label) if job.match in WITH_IMAGES else None

    with shelf_for(job.updates) as shelf:
        if job.reference == _IN_TURN:
            # A second turn of learned maps moved nothing for the better when the one-shot study tried it.
            placed = in_turn(job.updates, aligner_for, seen, shelf, again=job.match != "learned")
        else:
            placed = to_one(job.updates, chosen.state, aligner_for, seen, shelf)
        updates = [one.update for one in placed]
        then = AFTER_MATCHING[rule]
        fused = fuse(
            then, inputs.with_grams([then], updates), reference=chosen.state, symmetry=symmetry, config=FuseConfig(),
            scorer=scorer,
        )  # fmt: skip
    notes = {f"match.{one.update.site}": one.note for one in placed if one.note}
    moves = {one.update.site: one.moves for one in placed}
    distances = {one.update.site: one.distances for one in placed}
    return Outcome(replace(fused, notes={**fused.notes, **notes}), rule, chosen, moves, distances)


def _gated(job: Job, symmetry: Symmetry | None) -> Outcome:
    inputs, scorer = job.inputs, job.inputs.scorer()
    chosen = _reference(job, symmetry)
    reference = chosen.state
    fused = never_worse(
        job.rules,
        inputs.with_grams(job.rules, job.updates),
        reference=reference,
        symmetry=symmetry,
        config=FuseConfig(),
        scorer=scorer,
        options={rule: inputs.options(rule, reference, symmetry) for rule in job.rules},
    )
    moves: dict[str, list[LayerMove]] = {}
    if fused.chosen in AFTER_MATCHING and symmetry is not None:
        # The gate tells scores, not moves: match once more for the table.
        matcher = Matcher(reference, symmetry)
        moves = {u.site: layer_moves(matcher.match(u.state, site=u.site), symmetry) for u in job.updates}
    return Outcome(fused, fused.chosen, chosen, moves)


def _reference(job: Job, symmetry: Symmetry | None) -> Reference:
    """Return the reference, held in memory: every model is compared with it."""
    if symmetry is not None and job.match == "permutations":
        symmetry = symmetry.permutations_only()
    updates, files = job.updates, {parent.label: parent.sha256 for parent in job.parents}
    if job.reference == _IN_TURN:
        told = f"{updates[0].site}, each in turn matched to the mean of those before it"
        return Reference(dict(updates[0].state), told, files[updates[0].site])
    if job.reference == "first":
        return Reference(dict(updates[0].state), updates[0].site, files[updates[0].site])
    if job.reference == _MEDOID and symmetry is not None:
        centre = medoid(updates, symmetry)
        return Reference(dict(centre.state), f"{centre.site} (the medoid)", files[centre.site])
    if job.reference == _MEAN and symmetry is not None:
        with shelf_for(updates) as shelf:
            found = Basis.choose(
                updates,
                reference=updates[0].state,
                symmetry=symmetry,
                anchor="mean_of_others",
                search=Search(restarts=job.starts - 1),
                shelf=shelf,
            )
        return Reference(dict(found.reference), "the mean of all, each matched to the mean of the others", None)
    parent = read_parent(Path(job.reference))
    check_reference(parent, job.architecture)
    parent = fitted([parent], job.architecture)[0]
    return Reference(dict(parent.state), parent.file, parent.sha256)


def _judged(job: Job, outcome: Outcome) -> Outcome:
    split = next((s for s in _JUDGED_ON if any(len(getattr(data, s)) for data in job.sites.values())), _JUDGED_ON[0])
    whole = together(part_of(job.sites, split, remedy="Give images with --data."))
    model = job.architecture.model
    states = {parent.label: parent.state for parent in job.parents} | {FUSED: outcome.fused.state}
    scores = {name: evaluate(model, state, whole) for name, state in states.items()}
    return replace(outcome, split=split, images=len(whole), scores=scores)
