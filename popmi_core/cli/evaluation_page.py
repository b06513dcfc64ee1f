"""An evaluation as a page of its own: HTML that needs nothing but the pictures beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from popmi_core.cli import evaluation_tables as tables
from popmi_core.cli.evaluation import Evaluation

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: 0.3rem; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 500; color: #555; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0 2rem; }
figcaption, .quiet { color: #555; font-size: 0.9rem; }
code { overflow-wrap: anywhere; }
"""
_CAPTIONS = {
    "rotation": "What turning does. Left: how far answers move from the upright ones; the floor is an invariant "
    "function on the same turned images, so it shows interpolation alone. Right: accuracy at every angle; the bar is "
    "the 95 % interval, over images, of the accuracy at the worst angle.",
    "calibration": "Calibration at every angle: the expected calibration error (15 bins of equal mass) and the Brier "
    "score; lower is better.",
    "worst_angle": "Images whose answer changes most, upright and at their worst angle, as the model sees them. They "
    "show patients: keep this picture where the images may be.",
    "lee": "LEE by generator, per pixel of movement, over the spread of logits between images.",
    "lee_layers": "Which layers the change comes from: shares of the layers' root mean squares, largest first.",
}


def page(found: Evaluation, figures: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """Return the page; ``pictures`` are names of files beside it."""
    model = figures["model"]
    title = f"Evaluation of {model['file']}"
    made = f"{model['backbone']}, adapter {model['adapter']}, {model['image_size']} pixels"
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(made)}. {sum(found.sites.values())} images of the split {escape(figures['split'])}.</p>",
        *(f"<p>{escape(line)}</p>" for line in tables.plain_words(found)),
        *(_table(table) for table in tables.all_tables(found)),
        *(_figure(name) for name in pictures if name.endswith(".png")),
        f'<p class="quiet">POPMI {escape(figures["popmi"])}, model sha256 <code>{escape(model["sha256"])}</code>. '
        "Every figure is in evaluation.json; conventions in docs/metrics.md.</p></body></html>\n",
    ]
    return "\n".join(parts)


def _table(table: Any) -> str:
    columns = [list(column.cells) for column in table.columns]
    head = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in zip(*columns, strict=True)
    )
    return f"<table><caption>{escape(str(table.title))}</caption><tr>{head}</tr>{rows}</table>"


def _figure(name: str) -> str:
    caption = _CAPTIONS.get(name.removesuffix(".png"), "")
    return (
        f'<figure><img src="{escape(name)}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
    )
