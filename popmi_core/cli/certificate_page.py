"""A certificate as a page of its own: HTML that needs nothing but the pictures beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.table import Table

from popmi_core.cli.certificate_tables import all_tables
from popmi_core.cli.certifying import Certificate, plain_words

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: 0.3rem; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 500; color: #555; }
.verdict { font-size: 1.3rem; padding: 0.6rem 1rem; border-left: 6px solid #D55E00; background: #fdf3ec; }
.proved { border-color: #009E73; background: #eef8f4; }
img { max-width: 100%; height: auto; }
figcaption, .quiet { color: #555; font-size: 0.9rem; }
code { overflow-wrap: anywhere; }
"""
_CAPTIONS = {
    "weights": "How far each weight that the group constrains is off the symmetric ones, in proportion to its size.",
    "layers": "Terms of the exact telescoping sum: what a layer adds to f(gx) - f(x). Terms may cancel, so their sizes "
    "do not add up. Between quarter turns they hold the blur of interpolation as well.",
    "sites": "Every site's bound holds for new images of that site, at the angles sampled.",
}


def page(found: Certificate, figures: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """Return the page; ``pictures`` are names of files beside it."""
    model, (first, *rest) = figures["model"], plain_words(found)
    title = f"Certificate of equivariance: {model['file']}"
    look = "verdict proved" if found.algebra.verdict == "proved" else "verdict"
    made = f"{model['backbone']}, adapter {model['adapter']}, {model['image_size']} pixels, split {figures['split']}"
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        f'<h1>{escape(title)}</h1><p>{escape(made)}.</p><p class="{look}">{escape(first)}</p>',
        *(f"<p>{escape(line)}</p>" for line in rest),
        *(_table(table) for table in all_tables(found)),
        *([f'<p class="quiet">Part 2 is left out: {escape(found.untold)}</p>'] if found.untold else []),
        *(_figure(name) for name in pictures if name.endswith(".png")),
        f'<p class="quiet">POPMI {escape(figures["popmi"])}, model sha256 <code>{escape(model["sha256"])}</code>. '
        "Every figure is in certificate.json; how to read it: docs/certificate.md.</p></body></html>\n",
    ]
    return "\n".join(parts)


def _table(table: Table) -> str:
    columns = [list(column.cells) for column in table.columns]
    head = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in zip(*columns, strict=True)
    )
    return f"<table><caption>{escape(str(table.title))}</caption><tr>{head}</tr>{rows}</table>"


def _figure(name: str) -> str:
    caption = escape(_CAPTIONS.get(name.removesuffix(".png"), ""))
    return f'<figure><img src="{escape(name)}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
