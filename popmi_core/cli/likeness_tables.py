"""The figures of `popmi barrier` as tables and plain sentences for a terminal."""

from __future__ import annotations

import math

import numpy as np
from rich.table import Table

from popmi_core.cli.likeness import Likeness
from popmi_core.fusion.comparison import PRODUCTS
from popmi_core.metrics.checks import FloatArray
from popmi_core.metrics.linebound import LineBound


def path_table(found: Likeness) -> Table:
    """Return loss and accuracy at every point of the line, before and after matching."""
    count = sum(len(part) for part in found.inputs.parts.values())
    title = f"From A (share 0) to B (share 1): {count} {found.inputs.split} images"
    table = _table(title, "share of B", "loss before", "loss after", "accuracy before", "accuracy after")
    before, after = found.before.path, found.after.path
    for alpha, *row in zip(
        before.alphas, before.losses, after.losses, before.accuracies, after.accuracies, strict=True
    ):
        table.add_row(f"{alpha:.3f}", *(f"{value:.3f}" for value in row))
    return table


def summary_table(found: Likeness) -> Table:
    """Return the barriers, and what the models and their averages reach."""
    table = _table("Barriers, and what averaging makes of the two", "what", "loss", "accuracy")
    for when, line in (("before", found.before), ("after", found.after)):
        name = f"barrier {when} matching (distance {line.distance:.4g})"
        table.add_row(name, f"{line.path.barrier:.4f}", f"{line.path.accuracy_barrier:.4f}")
    table.add_section()
    for name, (loss, accuracy) in found.scores.items():
        table.add_row(name, f"{loss:.4f}", f"{accuracy:.4f}")
    return table


def heads_table(found: Likeness) -> Table:
    """Return the mean cosine of heads in the same place, layer by layer."""
    columns = [f"{product.replace('_', '-')} {when}" for product in PRODUCTS for when in ("before", "after")]
    table = _table("Likeness of heads in the same place (mean cosine)", "layer", *columns)
    for layer, before in found.heads_before.items():
        after = found.heads_after[layer]
        means = [float(np.diagonal(side[product]).mean()) for product in PRODUCTS for side in (before, after)]
        table.add_row(layer, *(f"{mean:.3f}" for mean in means))
    return table


def layers_table(found: Likeness) -> Table:
    """Return linear CKA block by block; matching itself does not change it."""
    pairs = list(next(iter(found.layers.values())))
    table = _table("Likeness of features (linear CKA)", "layer", *pairs)
    for layer, row in found.layers.items():
        table.add_row(layer, *(f"{row[pair]:.3f}" for pair in pairs))
    return table


def bound_tables(found: Likeness, *, shown: int) -> list[Table]:
    """Return the measured loss beside the bounds at about ``shown`` points of the line after matching, by constant."""
    assert found.bounds is not None
    alphas = found.after.path.alphas
    points = np.unique(np.linspace(0, len(alphas) - 1, min(shown, len(alphas))).round().astype(int))
    tables = []
    for kind, bound in (("the steepest step", found.bounds.slope), ("the largest gradient", found.bounds.gradient)):
        title = f"Proposition 2 on the line after matching, nats; K from {kind}"
        table = _table(title, "share of B", "measured", "stated", "provable", "tight")
        for index in points:
            values = (bound.losses[index], bound.stated[index], bound.provable[index], bound.tight[index])
            table.add_row(f"{alphas[index]:.3f}", *(f"{value:.3f}" for value in values))
        tables.append(table)
    return tables


def plain_words(found: Likeness) -> list[str]:
    """Return which file is which, what matching had to say, and what the bound is worth here."""
    lines = [f"{parent.label}: {parent.file}" for parent in found.inputs.parents]
    low_rank = found.inputs.architecture.low_rank
    lines += [] if low_rank is None else [low_rank.in_words()]
    lines += [f"matching: {found.note}"] if found.note else []
    if found.bounds is None:
        return [*lines, "The two models are the same: there is no line, no barrier and nothing to bound."]
    classes = found.inputs.architecture.classes
    kinds = (
        ("the steepest step", found.bounds.slope_constant, found.bounds.slope),
        ("the largest gradient", found.bounds.gradient_constant, found.bounds.gradient),
    )
    lines.append(
        f"An answer without looking costs {found.bounds.slope.trivial:.3f} nats here (ln {classes} = "
        f"{math.log(classes):.3f} at most): a bound above that is vacuous."
    )
    return lines + [_worth(name, constant, bound) for name, constant, bound in kinds]


def _worth(name: str, constant: float, bound: LineBound) -> str:
    points = len(bound.losses)
    said = f"K from {name} ({constant:.3g} nats a unit of weight): "
    forms = (("stated", bound.stated), ("provable", bound.provable), ("tight", bound.tight))
    return said + "; ".join(f"{form} {_verdict(bound, values, points)}" for form, values in forms) + "."


def _verdict(bound: LineBound, values: FloatArray, points: int) -> str:
    broken, vacuous = bound.broken(values), bound.vacuous(values)
    if broken:
        return f"form is broken at {broken} of {points} points"
    return f"form holds, vacuous at {vacuous} of {points} points" if vacuous else "form holds and is nowhere vacuous"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        # Folded where there is no room: a figure cut off would be another figure.
        table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold", no_wrap=index == 0)
    return table
