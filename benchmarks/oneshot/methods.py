"""What the one-shot study compares: every method one line of a table, its states from the library's own rules.

A method is an alignment (how the others are put into the first parent's basis; empty: not at all, or by the rule
itself) and a rule (how the aligned models become one).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from alignments import ALIGNMENTS, Aligned, statistics_of
from cases import Case
from torch import Tensor

from popmi_core.fusion.dispatch import REFERENCES, RULES, fuse, needs
from popmi_core.fusion.update import Fused, Update

Looks = Literal["weights", "unlabelled", "labelled"]


@dataclass(frozen=True)
class Method:
    """One row of every table.

    Attributes:
        name: What the tables call it.
        side: "opm", "rival" or "reference" (no one-shot fusion: shown, never compared).
        looks: What it looks at: weights only, unlabelled images of the sites, or labelled ones too.
        rule: The fusion rule's name.
        align: A key of ``ALIGNMENTS``, or empty.
        path: Whether the fused model is a linear average, so that the line it lies on has a barrier.
        epoch: Whether it is also trained for one epoch after the fusion of four.
        sees: Whether the rule itself is given activation statistics.
        version: Raise it when the method's code changes, so that kept results are not used again.
    """

    name: str
    side: Literal["opm", "rival", "reference"]
    looks: Looks
    rule: str
    align: str = ""
    path: bool = False
    epoch: bool = False
    sees: bool = False
    version: int = 1

    def described(self) -> dict[str, Any]:
        """Return what a kept result depends on, besides its parents."""
        return {name: value for name, value in asdict(self).items() if name not in ("side", "epoch")}


METHODS = (
    Method("average", "rival", "weights", "average", path=True, epoch=True),
    Method("uniform soup", "rival", "weights", "uniform_soup"),
    Method("circuit", "rival", "weights", "circuit"),
    Method("Git Re-Basin", "rival", "weights", "git_rebasin", path=True),
    Method("OT-Fusion", "rival", "weights", "ot_fusion", path=True),
    Method("OT-Fusion, soft", "rival", "weights", "ot_fusion_soft"),
    Method("FedMA", "rival", "weights", "fedma", path=True, epoch=True),
    Method("OPM-Soup", "opm", "weights", "uniform_soup", "weights", path=True),
    Method("OPM", "opm", "weights", "adaptive_circuit", "weights"),
    Method("OPM, probes", "opm", "weights", "adaptive_circuit", "probes", version=2),
    Method("RegMean", "rival", "unlabelled", "regmean", version=2),
    Method("Git Re-Basin, activations", "rival", "unlabelled", "git_rebasin_activations", path=True,
           sees=True),
    Method("OT-Fusion, activations", "rival", "unlabelled", "ot_fusion", sees=True),
    Method("OT-Fusion, soft, activations", "rival", "unlabelled", "ot_fusion_soft", sees=True),
    Method("OPM-Soup, statistics", "opm", "unlabelled", "uniform_soup", "statistics", path=True),
    Method("OPM, statistics", "opm", "unlabelled", "adaptive_circuit", "statistics"),
    Method("OPM-RegMean", "opm", "unlabelled", "regmean", "statistics", version=2),
    Method("OPM, maps learned without labels", "opm", "unlabelled", "uniform_soup", "learned without labels",
           path=True, epoch=True, version=2),
    Method("OPM-RegMean, maps learned without labels", "opm", "unlabelled", "regmean", "learned without labels",
           version=2),
    Method("greedy soup", "rival", "labelled", "greedy_soup"),
    Method("OPM greedy soup", "opm", "labelled", "greedy_soup", "statistics"),
    Method("OPM, learned maps", "opm", "labelled", "uniform_soup", "learned", path=True, version=2),
    Method("OPM greedy soup, learned maps", "opm", "labelled", "greedy_soup", "learned", version=2),
    Method("best single", "reference", "labelled", "best_single", epoch=True),
    Method("ensemble", "reference", "weights", "ensemble"),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """A fused model, the other end of the line it lies on (pairs, ``path`` only), and seconds of one core."""

    state: dict[str, Tensor]
    partner: dict[str, Tensor] | None
    seconds: float
    chosen: str = ""


def available(method: Method, case: Case) -> bool:
    """Return whether the library has what the method needs for this architecture."""
    needs_symmetry = bool(method.align) or needs(method.rule).symmetry if method.rule in RULES else False
    known = (method.rule in RULES or method.rule in REFERENCES) and (not method.align or method.align in ALIGNMENTS)
    return known and not (needs_symmetry and case.symmetry is None)


def apply_method(method: Method, case: Case, aligned: Aligned) -> Outcome:
    """Fuse the case's parents; seconds are alignment and rule together."""
    states, spent = aligned.get(method.align)
    started = time.process_time()
    grams = needs(method.rule).grams
    options: dict[str, Any] = {}
    updates = [
        Update(name, state, 1, case.grams(member, state) if grams else {})
        for member, (name, state) in enumerate(zip(case.members, states, strict=True))
    ]
    if method.sees:
        options["statistics"] = statistics_of(case, updates)
    fused = fuse(
        method.rule,
        updates,
        reference=states[0],
        symmetry=case.symmetry,
        scorer=case.scorer,
        **options,
    )
    seconds = spent + time.process_time() - started
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
