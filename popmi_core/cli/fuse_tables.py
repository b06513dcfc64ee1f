"""What `popmi fuse` prints: every layer's move, the gate's scores, how good the result is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from popmi_core.cli.fusing import Job, Outcome
from popmi_core.cli.ruleinputs import AFTER_MATCHING
from popmi_core.fusion import Fused, needs
from popmi_core.matching.moves import LayerMove


def moved(moves: Sequence[LayerMove]) -> bool:
    """Return whether any layer of a model changed."""
    return any(move.moved or move.angle for move in moves)


def moves_table(label: str, moves: Sequence[LayerMove], outcome: Outcome) -> Table:
    """Return one model's gain, angle and moved units by layer."""
    title = f"{label}, matched to {outcome.basis.told}"
    if label in outcome.distances:
        before, after = outcome.distances[label]
        title += f": distance {before:.4g} -> {after:.4g}"
    table = _table(title, "layer", "group", "gain", "angle", "moved")
    for move in moves:
        angle = "-" if move.angle is None else f"{move.angle:.1f}°"
        moved = "-" if move.moved is None else f"{move.moved} of {move.of}"
        table.add_row(move.layer, move.kind, f"{move.gain:.1%}", angle, moved)
    return table


def motion(outcome: Outcome) -> str | None:
    """Return in one line why a rule has no table of moves and what it moved instead; None for the OPM rules."""
    if outcome.moves:
        return None
    name, weights = outcome.rule.replace("_", "-"), outcome.fused.weights
    if moved := units_told(outcome.fused.notes, list(weights)):
        said = ", ".join(f"{label} {count} of {of}" for label, (count, of) in moved.items())
        return f"{name} moves units and turns nothing, so no layer has a gain or an angle; moved: {said}"
    if needs(outcome.rule).matches:
        return f"{name} moves units by transport plans, which may mix several into one: no move of a layer is told"
    rules = ", ".join(rule.replace("_", "-") for rule in AFTER_MATCHING)
    return f"{name} moves nothing: the models are taken in the bases they came in; rules that match: {rules}"


def units_told(notes: Mapping[str, str], labels: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return how many units of how many a rule moved in all, by model, where its notes tell it of every layer."""
    pattern = re.compile(r"units moved of (\d+): " + ", ".join(rf"{re.escape(label)} (\d+)" for label in labels))
    found = [[int(part) for part in match.groups()] for note in notes.values() if (match := pattern.fullmatch(note))]
    total = sum(row[0] for row in found)
    return {label: (sum(row[n] for row in found), total) for n, label in enumerate(labels, start=1)} if found else {}


def gate_table(fused: Fused) -> Table:
    """Return the validation loss of every candidate at every site."""
    sites = sorted({site for row in fused.scores.values() for site in row})
    table = _table("Validation loss, nats", "candidate", *sites)
    for name, row in fused.scores.items():
        cells = [f"{row[site]:.4f}" if site in row else "-" for site in sites]
        table.add_row(f"{name} (taken)" if name == fused.chosen else name, *cells)
    return table


def scores_table(outcome: Outcome) -> Table:
    """Return loss and accuracy of every parent and of the fused model."""
    table = _table(f"On {outcome.images} {outcome.split} images", "model", "loss", "accuracy")
    for name, (loss, accuracy) in outcome.scores.items():
        if name == "fused":
            table.add_section()
        table.add_row(name, f"{loss:.4f}", f"{accuracy:.4f}")
    return table


def plain_words(job: Job, outcome: Outcome, out: Path | None) -> list[str]:
    """Return what the rule noted, that the result loads, and where it is."""
    fused, architecture = outcome.fused, job.architecture
    name = architecture.name if architecture.adapter == "none" else f"{architecture.name} under {architecture.adapter}"
    name += " in regular fields" if architecture.fields == "regular" else ""
    lines = [f"{key}: {note}" for key, note in fused.notes.items()]
    lines += [] if architecture.low_rank is None else [architecture.low_rank.in_words()]
    if fused.regret is not None:
        lines.append(f"regret of the worst site: {fused.regret:.4f} nats")
    rule = outcome.rule.replace("_", "-")
    name += "" if architecture.low_rank is None else " with low-rank adapters"
    lines.append(f"{len(job.parents)} models fused by {rule}; the result loads into timm's {name} with strict=True.")
    lines.append(f"{'nothing was written: give --out' if out is None else out}")
    return lines


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    return table
