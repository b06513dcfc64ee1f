"""An evaluation as a page of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popmi_core.cli import evaluation_tables as tables
from popmi_core.cli.evaluation import Evaluation
from popmi_core.cli.modelpage import document, made_of, paragraph, pictures_html, table_html

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
    body = [
        paragraph(f"{made_of(figures)}. {sum(found.sites.values())} images of the split {figures['split']}."),
        *(paragraph(line) for line in tables.plain_words(found)),
        *(table_html(table) for table in tables.all_tables(found)),
        *pictures_html(pictures, _CAPTIONS),
    ]
    title = f"Evaluation of {figures['model']['file']}"
    return document(title, body, figures, "Every figure is in evaluation.json; conventions in docs/metrics.md.")
