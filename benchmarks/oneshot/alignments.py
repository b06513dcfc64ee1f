"""How the study puts parents into one basis before a rule averages them: OPM by weights, by images, and learned.

Pairs are matched to the first parent; of four, each is matched to the mean of those before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from cases import Case, State
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
STEPS, STEPS_WITHOUT_LABELS = 300, 100

Align = Callable[[Case, State, int], State]


def by_weights(case: Case, reference: State, member: int) -> State:
    """Match by weights alone."""
    return _matcher(case, reference).match(case.states[member]).state


def by_probes(case: Case, reference: State, member: int) -> State:
    """Match by weights, also starting where smooth noise says; the noise judges, so that no data are needed."""
    pixels = probe_images((3, 28, 28), 256, torch.Generator().manual_seed(member))
    return _judged(case, reference, member, pixels)


def by_statistics(case: Case, reference: State, member: int) -> State:
    """Match by weights, also starting where activations on unlabelled images say; these images judge."""
    return _judged(case, reference, member, case.pixels(member))


def learnable(case: Case) -> bool:
    """Return whether there is anything to learn: the library learns no order of groups (GroupNorm)."""
    spaces = case.symmetry.spaces.values() if case.symmetry is not None else ()
    return any(space.kind in ("orthogonal", "heads", "permutation") for space in spaces)


def learned(case: Case, reference: State, member: int, *, labels: bool = True) -> State:
    """Let the parent's site learn the map on its own training images.

    Rotations and maps inside heads are learned around the orders that matching found; a net that has neither learns
    its orders.
    """
    matcher, state = _matcher(case, reference), case.states[member]
    matched = matcher.match(state)
    images = case.unlabelled(member, LABELLED) if labels else case.unlabelled(member)
    assert case.symmetry is not None
    found = learn_element(
        case.model,
        reference,
        state,
        case.symmetry,
        normalise(torch.from_numpy(images.images), case.model),
        torch.from_numpy(images.targets) if labels else None,
        start=matched.element,
        steps=STEPS if labels else STEPS_WITHOUT_LABELS,
        generator=torch.Generator().manual_seed(member),
        loss="supervised" if labels else "unsupervised",
        orders="kept" if _turns(case) else "straight-through",
    )
    return apply(state, case.symmetry, found.element, like=reference)


def learned_without_labels(case: Case, reference: State, member: int) -> State:
    """Learn the map against what both models' ensemble says of unlabelled images."""
    return learned(case, reference, member, labels=False)


ALIGNMENTS: dict[str, Align] = {
    "weights": by_weights,
    "probes": by_probes,
    "statistics": by_statistics,
    "learned": learned,
    "learned without labels": learned_without_labels,
}


SETTINGS = {
    "learned": [LABELLED, STEPS],
    "learned without labels": [STEPS_WITHOUT_LABELS],
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
        states.append(align(case, mean(states), member))
    if len(states) > 2 and align not in (learned, learned_without_labels):
        for member in range(len(states)):
            others = [state for other, state in enumerate(states) if other != member]
            states[member] = align(case, mean(others), member)
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


def _judged(case: Case, reference: State, member: int, pixels: Tensor) -> State:
    assert case.symmetry is not None
    state = case.states[member]
    start: Element = start_from(cross_statistics(case.model, reference, state, case.symmetry, pixels), case.symmetry)
    with torch.inference_mode():
        wanted = sum(torch.softmax(run(case.model, end, pixels), 1) for end in (reference, state)) / 2

    def judge(moved: State) -> float:
        """Return the cross-entropy of the middle of the line to what the two ends say on average (nats)."""
        with torch.inference_mode():
            said = torch.log_softmax(run(case.model, on_line(reference, moved, 0.5), pixels), 1)
        return -float((wanted * said).sum(1).mean())

    return _matcher(case, reference).match(state, starts=[start], judge=judge).state
