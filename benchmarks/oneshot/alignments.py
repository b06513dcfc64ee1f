"""How the study puts parents into one basis before a rule averages them: OPM by weights, by images, and learned.

Pairs are matched to the first parent; of four, each is matched to the mean of those before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from cases import MORE_UNLABELLED, Case, State
from torch import Tensor

from popmi_core.fusion.path import on_line, run
from popmi_core.fusion.update import Update
from popmi_core.matching import Matcher
from popmi_core.matching.elements import Element, apply
from popmi_core.matching.learn import learn_element
from popmi_core.matching.probes import probe_images
from popmi_core.matching.starts import start_from
from popmi_core.matching.statistics import cross_statistics
from popmi_core.models import normalise

# Descents in random order for nets without a rotated stream; Git Re-Basin is given as many.
RESTARTS = 3
# Labelled images a site learns its map on, at most, and the steps of both ways of learning.
LABELLED = 8192
STEPS, STEPS_WITHOUT_LABELS = 300, 200

# The reference, which parent is put into its basis, and the share that parent will have in the average of the two.
Align = Callable[[Case, State, int, float], State]


def by_weights(case: Case, reference: State, member: int, share: float) -> State:
    """Match by weights alone."""
    del share
    return _matcher(case, reference).match(case.states[member]).state


def by_probes(case: Case, reference: State, member: int, share: float) -> State:
    """Match by weights, also starting where smooth noise says; no data are needed.

    The distance picks the start: agreement on noise is a poor judge of models of images.
    """
    del share
    assert case.symmetry is not None
    pixels = probe_images((3, 28, 28), 256, torch.Generator().manual_seed(member))
    seen = cross_statistics(case.model, reference, case.states[member], case.symmetry, pixels)
    return _matcher(case, reference).match(case.states[member], starts=[start_from(seen, case.symmetry)]).state


def by_statistics(case: Case, reference: State, member: int, share: float) -> State:
    """Match by weights, also starting where activations on unlabelled images say; these images judge."""
    return _judged(case, reference, member, share, case.pixels(member))[0]


def learned(case: Case, reference: State, member: int, share: float, *, labels: bool = True) -> State:
    """Let the parent's site learn the map on its own training images, from where statistics lead.

    Rotations and maps inside heads are learned around the orders that matching found; a net that has neither learns
    its orders, in a third of the steps, as each takes an assignment in every layer.
    """
    assert case.symmetry is not None
    images, turns = case.unlabelled(member, LABELLED if labels else MORE_UNLABELLED), _turns(case)
    steps = STEPS if labels else STEPS_WITHOUT_LABELS
    found = learn_element(
        case.model,
        reference,
        case.states[member],
        case.symmetry,
        normalise(torch.from_numpy(images.images), case.model),
        torch.from_numpy(images.targets) if labels else None,
        start=_judged(case, reference, member, share, case.pixels(member))[1],
        steps=steps if turns else steps // 3,
        generator=torch.Generator().manual_seed(member),
        loss="supervised" if labels else "unsupervised",
        orders="kept" if turns else "straight-through",
        span=(0.3, 0.7) if share == 0.5 else (0.8 * share, 0.5),
    )
    return apply(case.states[member], case.symmetry, found.element, like=reference)


def learned_without_labels(case: Case, reference: State, member: int, share: float) -> State:
    """Learn the map against what both models' ensemble says of unlabelled images."""
    return learned(case, reference, member, share, labels=False)


ALIGNMENTS: dict[str, Align] = {
    "weights": by_weights,
    "probes": by_probes,
    "statistics": by_statistics,
    "learned": learned,
    "learned without labels": learned_without_labels,
}


SETTINGS = {
    "learned": [LABELLED, STEPS],
    "learned without labels": [MORE_UNLABELLED, STEPS_WITHOUT_LABELS],
}
"""What kept results of an alignment depend on, besides the number of restarts."""


class Aligned:
    """The alignments of one case, each made once."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.kept: dict[str, tuple[list[State], float]] = {"": (list(case.states), 0.0)}

    def get(self, kind: str) -> tuple[list[State], float]:
        """Return all parents in one basis, the first as it is in a pair, and the seconds of one core it took."""
        if kind not in self.kept:
            started = time.process_time()
            states = in_one_basis(self.case, ALIGNMENTS[kind])
            self.kept[kind] = (states, time.process_time() - started)
        return self.kept[kind]


def in_one_basis(case: Case, align: Align) -> list[State]:
    """Match every parent to the mean of those before it, and, of more than two, each again to the mean of the others.

    Learned maps are left as they are: a second turn moved nothing for the better when it was tried.
    """
    states: list[State] = [case.states[0]]
    for member in range(1, len(case.parents)):
        states.append(align(case, mean(states), member, 1 / (member + 1)))
    if len(states) > 2 and align not in (learned, learned_without_labels):
        for member in range(len(states)):
            others = [state for other, state in enumerate(states) if other != member]
            states[member] = align(case, mean(others), member, 1 / len(states))
    return states


def mean(states: Sequence[State]) -> State:
    """Return the uniform average; a lone state as it is."""
    if len(states) == 1:
        return states[0]
    return {
        name: (torch.stack([state[name].double() for state in states]).mean(0)).to(tensor.dtype)
        for name, tensor in states[0].items()
    }


def statistics_of(case: Case, updates: Sequence[Update]) -> dict[str, Any]:
    """Return what activation-based rivals ask for: every parent beside the first on its own site's images."""
    assert case.symmetry is not None
    return {
        update.site: cross_statistics(case.model, case.states[0], update.state, case.symmetry, case.pixels(member))
        for member, update in enumerate(updates)
    }


def _matcher(case: Case, reference: State) -> Matcher:
    assert case.symmetry is not None
    return Matcher(reference, case.symmetry, restarts=0 if _turns(case) else RESTARTS)


def _turns(case: Case) -> bool:
    assert case.symmetry is not None
    return any(space.kind in ("orthogonal", "heads") for space in case.symmetry.spaces.values())


def _judged(case: Case, reference: State, member: int, share: float, pixels: Tensor) -> tuple[State, Element]:
    """Return the moved parent, and its move, that the fused model's agreement with both models calls best.

    The candidates: what the descent makes of every start, and the activations' own move as it is.
    """
    assert case.symmetry is not None
    state = case.states[member]
    start = start_from(cross_statistics(case.model, reference, state, case.symmetry, pixels), case.symmetry)
    with torch.inference_mode():
        ends = [torch.softmax(run(case.model, end, pixels), 1) for end in (reference, state)]
    wanted = (1 - share) * ends[0] + share * ends[1]

    def judge(moved: State) -> float:
        """Return the cross-entropy of the fused model to what the two say on average (nats)."""
        with torch.inference_mode():
            said = torch.log_softmax(run(case.model, on_line(reference, moved, share), pixels), 1)
        return -float((wanted * said).sum(1).mean())

    matched = _matcher(case, reference).match(state, starts=[start], judge=judge)
    seen = apply(state, case.symmetry, start, like=reference)
    return (seen, start) if judge(seen) < judge(matched.state) else (matched.state, matched.element)
