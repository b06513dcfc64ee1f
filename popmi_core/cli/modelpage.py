"""The page of one model: HTML that needs nothing but the pictures beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rich.table import Table

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
figure { margin: 1rem 0 2rem; }
figcaption, .quiet { color: #555; font-size: 0.9rem; }
code { overflow-wrap: anywhere; }
"""


def document(title: str, body: Iterable[str], figures: Mapping[str, Any], closing: str) -> str:
    """Return the whole page; ``body`` is HTML, title and ``closing`` are text."""
    model = figures["model"]
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        f"<h1>{escape(title)}</h1>",
        *body,
        f'<p class="quiet">POPMI {escape(figures["popmi"])}, model sha256 <code>{escape(model["sha256"])}</code>. '
        f"{escape(closing)}</p></body></html>\n",
    ]
    return "\n".join(parts)


def paragraph(text: str, look: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{look}">{escape(text)}</p>' if look else f"<p>{escape(text)}</p>"


def made_of(figures: Mapping[str, Any]) -> str:
    """Return the model's backbone, adapter and image size in words."""
    model = figures["model"]
    around = f", inside {model['method']}" if "method" in model else ""
    return f"{model['backbone']}, adapter {model['adapter']}{around}, {model['image_size']} pixels"


def table_html(table: Table) -> str:
    """Return a table of the screen as HTML."""
    columns = [list(column.cells) for column in table.columns]
    head = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in zip(*columns, strict=True)
    )
    return f"<table><caption>{escape(str(table.title))}</caption><tr>{head}</tr>{rows}</table>"


def pictures_html(pictures: Sequence[str], captions: Mapping[str, str]) -> list[str]:
    """Return the PNGs among the files beside the page, each with its caption (by name without ending)."""
    told = [(name, escape(captions.get(name.removesuffix(".png"), ""))) for name in pictures if name.endswith(".png")]
    return [
        f'<figure><img src="{escape(name)}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        for name, caption in told
    ]
