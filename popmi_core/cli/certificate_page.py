"""A certificate as a page of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popmi_core.cli.certificate_tables import all_tables
from popmi_core.cli.certifying import Certificate, plain_words
from popmi_core.cli.modelpage import document, made_of, paragraph, pictures_html, table_html

_CAPTIONS = {
    "weights": "How far each weight that the group constrains is off the symmetric ones, in proportion to its size.",
    "layers": "Terms of the exact telescoping sum: what a layer adds to f(gx) - f(x). Terms may cancel, so their sizes "
    "do not add up. Between quarter turns they hold the blur of interpolation as well.",
    "sites": "Every site's bound holds for new images of that site, at the angles sampled.",
}


def page(found: Certificate, figures: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """Return the page; ``pictures`` are names of files beside it."""
    first, *rest = plain_words(found)
    body = [
        paragraph(f"{made_of(figures)}, split {figures['split']}."),
        paragraph(first, "verdict proved" if found.algebra.verdict == "proved" else "verdict"),
        *(paragraph(line) for line in rest),
        *(table_html(table) for table in all_tables(found)),
        *([paragraph(f"Part 2 is left out: {found.untold}", "quiet")] if found.untold else []),
        *pictures_html(pictures, _CAPTIONS),
    ]
    title = f"Certificate of equivariance: {figures['model']['file']}"
    return document(title, body, figures, "Every figure is in certificate.json; how to read it: docs/certificate.md.")
