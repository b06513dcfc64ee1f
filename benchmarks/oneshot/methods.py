"""What the one-shot study compares: every method one line of a table, its states from the library's own rules.

A method is an alignment (how the others are put into the first parent's basis; empty: not at all, or by the rule
itself) and a rule (how the aligned models become one).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cases import Case, State
from torch import Tensor

from popmi_core.fusion.dispatch import REFERENCES, RULES, fuse, needs
from popmi_core.fusion.update import Fused, Update
from popmi_core.matching import Matcher

Looks = Literal["weights", "unlabelled", "labelled"]


@dataclass(frozen=True)
class Method:
    """One row of every table.

    Attributes:
        name: What the tables call it.
        side: "opm", "rival" or "reference" (no one-shot fusion: shown, never compared).
        looks: What it looks at: weights only, 256 unlabelled images a site, or labelled images too.
        rule: The fusion rule's name.
        align: A key of ``ALIGNMENTS``, or empty.
        path: Whether the fused model is a linear average, so that the line it lies on has a barrier.
        epoch: Whether it is also trained for one epoch after the fusion of four.
        version: Raise it when the method's code changes, so that kept results are not used again.
    """

    name: str
    side: Literal["opm", "rival", "reference"]
    looks: Looks
    rule: str
    align: str = ""
    path: bool = False
    epoch: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1

    def described(self) -> dict[str, Any]:
        """Return what a kept result depends on, besides its parents."""
        return {**asdict(self), "side": ""}


METHODS = (
    Method("average", "rival", "weights", "average", path=True, epoch=True),
    Method("uniform soup", "rival", "weights", "uniform_soup"),
    Method("circuit", "rival", "weights", "circuit"),
    Method("OPM", "opm", "weights", "circuit", "opm", epoch=True),
    Method("OPM-Soup", "opm", "weights", "uniform_soup", "opm", path=True),
    Method("RegMean", "rival", "unlabelled", "regmean"),
    Method("OPM-RegMean", "opm", "unlabelled", "regmean", "opm", epoch=True),
    Method("greedy soup", "rival", "labelled", "greedy_soup"),
    Method("OPM greedy soup", "opm", "labelled", "greedy_soup", "opm"),
    Method("best single", "reference", "labelled", "best_single", epoch=True),
    Method("ensemble", "reference", "weights", "ensemble"),
)


def align_opm(case: Case) -> list[State]:
    """Match every other parent to the first, by weights alone."""
    matcher = Matcher(case.states[0], case.symmetry)
    return [case.states[0], *(matcher.match(state).state for state in case.states[1:])]


ALIGNMENTS: dict[str, Callable[[Case], list[State]]] = {"opm": align_opm}


@dataclass(frozen=True)
class Outcome:
    """A fused model, the other end of the line it lies on (pairs, ``path`` only), and wall seconds."""

    state: dict[str, Tensor]
    partner: dict[str, Tensor] | None
    seconds: float
    chosen: str = ""


def available(method: Method, case: Case) -> bool:
    """Return whether the library has what the method needs for this architecture."""
    needs_symmetry = bool(method.align) or method.side == "opm"
    known = (method.rule in RULES or method.rule in REFERENCES) and (not method.align or method.align in ALIGNMENTS)
    return known and not (needs_symmetry and case.symmetry is None)


class Aligned:
    """The alignments of one case, each made once; ``seconds`` says what each cost."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.kept: dict[str, tuple[list[State], float]] = {"": (list(case.states), 0.0)}

    def get(self, kind: str) -> tuple[list[State], float]:
        if kind not in self.kept:
            started = time.perf_counter()
            states = ALIGNMENTS[kind](self.case)
            self.kept[kind] = (states, time.perf_counter() - started)
        return self.kept[kind]


def apply_method(method: Method, case: Case, aligned: Aligned) -> Outcome:
    """Fuse the case's parents; seconds are alignment and rule together."""
    states, spent = aligned.get(method.align)
    started = time.perf_counter()
    grams = needs(method.rule).grams
    updates = [
        Update(name, state, 1, case.grams(member, state) if grams else {})
        for member, (name, state) in enumerate(zip(case.members, states, strict=True))
    ]
    fused = fuse(
        method.rule,
        updates,
        reference=states[0],
        symmetry=case.symmetry,
        scorer=case.scorer,
        **method.options,
    )
    seconds = spent + time.perf_counter() - started
    partner = _partner(fused, case) if method.path and len(states) == 2 else None
    return Outcome(fused.state, partner, round(seconds, 3), fused.chosen)


def _partner(fused: Fused, case: Case) -> dict[str, Tensor]:
    """Return the model that the rule averaged with the first one: what is left when that is taken off."""
    first, weight = case.states[0], fused.weights[case.members[0]]
    return {
        name: ((tensor.double() - weight * first[name].double()) / (1 - weight)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in fused.state.items()
    }
