"""What would leave the site, in words: what the client app's answers hold (reports and tensors)."""

from __future__ import annotations

from collections.abc import Mapping

from popmi_core.config import RunConfig
from popmi_core.metrics.summary import MIN_CELL

NEVER = (
    "Never: an image, a file name, a row of labels.csv, the site's own words for findings, a patient's or lesion's id, "
    "the score of a single image, this report unless you send it."
)


def what_leaves(sizes: Mapping[str, int | None], config: RunConfig | None) -> tuple[str, ...]:
    """Return what a run would send from here, one sentence each; ``popmi site dry-run`` lists every tensor.

    Args:
        sizes: Images per split, None for a small one.
        config: The planned run; without it, what a run may ask for is told as such.
    """
    told = ", ".join(f"{size if size is not None else '(hidden here)'} {name}" for name, size in sizes.items())
    return (
        f"Once: the site's name, the number of images in each split ({told or 'not known yet'}), and how many rows "
        "were left out.",
        _model(config),
        f"Every round: loss and figures per split, and histograms of scores in which every cell holds at least "
        f"{MIN_CELL} patients; of a split with fewer images only their number.",
        _class_counts(config),
        _sums(config),
        "Texts of errors: kinds and row numbers, never a name or a cell of the table.",
        NEVER,
    )


def _model(config: RunConfig | None) -> str:
    if config is None:
        return "Every round: the tensors of the model trained here."
    kept = config.personal.keep_local
    stays = f"; tensors whose names hold {', '.join(kept)} stay here" if kept else ""
    noise = (
        f", trained with noise that keeps epsilon below {config.privacy.target_epsilon:g} over all rounds"
        if config.privacy is not None
        else ""
    )
    tensors = f"the tensors of the model trained here ({config.model.backbone})"
    return f"Each of {config.rounds} rounds: {tensors}{noise}{stays}."


def _class_counts(config: RunConfig | None) -> str:
    counts = (
        f"the number of training images of every class (fewer than {MIN_CELL} as none; where that is one class only, "
        "its number follows from the sum of all)"
    )
    if config is None:
        return f"Only if the run asks for it (personal.class_prior): {counts}."
    if config.personal.class_prior == "own":
        return f"Once, because this run asks for it: {counts}."
    return "Not asked for by this run: the number of images of each class."


def _sums(config: RunConfig | None) -> str:
    sums = "sums over training images of what single layers answer (Gram matrices, activations)"
    if config is not None and config.privacy is not None:
        return f"Refused here, because the run has a privacy budget: {sums}."
    return f"Only if the run's rule asks for it (RegMean, matching by activations): {sums}."
