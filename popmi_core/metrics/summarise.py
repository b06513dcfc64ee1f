"""How a site turns its scores into the summary it sends."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from popmi_core.errors import ConfigError
from popmi_core.metrics.checks import FloatArray, check_probabilities, check_scores
from popmi_core.metrics.discrimination import confusion
from popmi_core.metrics.histograms import EMPTY_RUNS, Runs, count_cells, merge_small_cells
from popmi_core.metrics.summary import MIN_CELL, ScoreSummary
from popmi_core.metrics.suppression import classes_to_tell, hide_counts, interval


def summarise_scores(scores: ArrayLike, target: ArrayLike, *, min_cell: int = MIN_CELL) -> ScoreSummary:
    """Summarise a site's scores for `pool_summaries`.

    Args:
        scores: Probabilities, shape [n, C]; the first of tied classes is the prediction.
        target: Shape [n], class numbers.
        min_cell: Nothing is told of fewer patients than this.

    Raises:
        ConfigError: If ``min_cell`` is less than 2, which would suppress nothing.
        UpdateError: If shapes, numbers or class numbers are wrong, or scores are not probabilities.
    """
    if min_cell < 2:
        raise ConfigError(f"min_cell is {min_cell}, expected at least 2: smaller ones suppress nothing. Use 5.")
    values, labels = check_scores(scores, target)
    check_probabilities(values)
    num_images, num_classes = values.shape
    if num_images < min_cell:
        return _withheld(num_classes, min_cell)
    preds = values.argmax(axis=1)
    table = confusion(preds, labels, num_classes)
    support, hits = table.sum(axis=1), np.diag(table)
    told = classes_to_tell(support, min_cell=min_cell)

    def runs(column: int, images: NDArray[np.bool_]) -> Runs:
        cells = count_cells(values[images, column])
        return merge_small_cells(cells, min_cell=min_cell) if told[column] else EMPTY_RUNS

    wrong, right = _confidence_runs(values.max(axis=1), preds == labels, min_cell)
    return ScoreSummary(
        min_cell=min_cell,
        num_examples=num_images,
        correct=interval(int(hits.sum()), num_images, min_cell=min_cell),
        told=told,
        hits=hide_counts(hits, support, told, min_cell=min_cell),
        false_alarms=hide_counts(table.sum(axis=0) - hits, num_images - support, told, min_cell=min_cell),
        positive=tuple(runs(c, labels == c) for c in range(num_classes)),
        negative=tuple(runs(c, labels != c) for c in range(num_classes)),
        wrong=wrong,
        right=right,
    )


def _confidence_runs(confidence: FloatArray, hit: NDArray[np.bool_], min_cell: int) -> tuple[Runs, Runs]:
    num_hits, num_misses = int(hit.sum()), int((~hit).sum())
    if num_misses >= min_cell and num_hits >= min_cell:
        wrong, right = (merge_small_cells(count_cells(confidence[side]), min_cell=min_cell) for side in (~hit, hit))
        return wrong, right
    together = merge_small_cells(count_cells(confidence), min_cell=min_cell)
    # With fewer than two full groups, saying which one is small would already bound the other from below.
    return (together, EMPTY_RUNS) if num_hits < min_cell <= len(hit) - min_cell else (EMPTY_RUNS, together)


def _withheld(num_classes: int, min_cell: int) -> ScoreSummary:
    nothing = np.zeros((num_classes, 2), dtype=np.int64)
    empty = (EMPTY_RUNS,) * num_classes
    told = np.zeros(num_classes, dtype=np.bool_)
    return ScoreSummary(min_cell, 0, (0, 0), told, nothing, nothing.copy(), empty, empty, EMPTY_RUNS, EMPTY_RUNS)
