"""What would leave the site, in words: what the client app's answers hold (reports and tensors)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import get_args

from popmi_core.asking import Asks, Part
from popmi_core.config import RunConfig
from popmi_core.limits import MIN_CELL

NEVER = (
    "Never: an image, a file name, a row of labels.csv, the site's own words for findings, a patient's or lesion's id, "
    "the score of a single image, this report unless you send it."
)
PARTS: Mapping[Part, tuple[str, str]] = {
    "class_counts": (
        "Once",
        f"the number of training images of every class (fewer than {MIN_CELL} as none; where that is one class only, "
        "its number follows from the sum of all)",
    ),
    "epsilon": (
        "Every round",
        "how much of the privacy budget this site's images have spent (epsilon), and in how many rounds",
    ),
    "control": (
        "Every round",
        "by how much the site's control variate changed: the mean gradient over its training images",
    ),
    "gram": ("Every round", "second moments of what layers take in (Gram matrices), summed over training images"),
    "activations": (
        "Every round",
        "how the activations of the model trained here go with the broadcast one's, summed over training images",
    ),
    "matching": ("Every round", "how well the layers of the trained model were matched to the broadcast one's"),
    "judged": (
        "Every round, for every candidate that is compared",
        f"loss, accuracy and AUROC on the validation images and their number (of fewer than {MIN_CELL} the number "
        "alone)",
    ),
    "norms": (
        "Every round, for the fused model and every candidate that is compared",
        "mean, variance and number of what every BatchNorm layer takes in, over training images; nothing of a model "
        "without such layers",
    ),
    "turned": (
        "In the rounds that [measure] names",
        "how turning validation images changes the answers, by angle and, on a few of them, by layer: means over at "
        f"least {MIN_CELL} images",
    ),
    "trained_on": (
        "In the last round",
        "the same figures and histograms of the training images as of the validation images",
    ),
}
"""What only some runs ask for: how often, and what it is."""
BARE: frozenset[Part] = frozenset({"class_counts", "gram", "activations", "norms", "trained_on"})
"""Refused in a run with a privacy budget: it would be told without noise."""
SHORT: Mapping[Part, str] = {
    "class_counts": "the number of images of each class",
    "epsilon": "epsilon",
    "control": "control variates",
    "gram": "Gram matrices",
    "activations": "sums of activations",
    "matching": "how layers were matched",
    "judged": "figures of candidates",
    "norms": "BatchNorm statistics",
    "turned": "figures of turned images",
    "trained_on": "figures of training images",
}
"""The same in short, for a run that does not ask for it."""


def what_leaves(sizes: Mapping[str, int | None], config: RunConfig | None) -> tuple[str, ...]:
    """Return what a run would send from here, one sentence each; ``popmi site dry-run`` lists every tensor.

    What the run asks for is what ``Asks`` says, by which the server asks.

    Args:
        sizes: Images per split, None for a small one.
        config: The planned run; without it, what a run may ask for is told as such.
    """
    bare = ", none of the training images," if config is not None and config.privacy is not None else ""
    told = ", ".join(f"{size if size is not None else '(hidden here)'} {name}" for name, size in sizes.items())
    return (
        f"Once: the site's name, its POPMI version, the number of images in each split ({told or 'not known yet'}), "
        f"how many of them are of each class{bare} (fewer than {MIN_CELL}, and what would give such a number away, "
        f"hidden), and how many rows were left out (fewer than {MIN_CELL} as none).",
        _model(config),
        "Every round: the number of training images, the loss of training and how long it took.",
        f"Every round: loss and figures on the validation images, after the last one on the test images, too, and "
        f"histograms of scores and a table of classes and answers in which every cell holds at least {MIN_CELL} "
        "patients; of a split with fewer images only their number.",
        *_parts(config),
        "Texts of errors: kinds, counts and row numbers, never a name or a cell of the table.",
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


def _parts(config: RunConfig | None) -> Iterator[str]:
    """Yield what this run asks for beside that, then what it does not."""
    if config is None:
        yield from (f"Only if the run asks for it: {what}." for _, what in PARTS.values())
        return
    refused: frozenset[Part] = BARE if config.privacy is not None else frozenset()
    asked = [part for part in Asks(config).parts if part not in refused]
    yield from (f"{PARTS[part][0]}, because this run asks for it: {PARTS[part][1]}." for part in asked)
    if refused:
        yield f"Refused here, because the run has a privacy budget: {_listed(refused)}."
    if others := {part for part in get_args(Part) if part not in asked} - refused:
        yield f"Not asked for by this run: {_listed(others)}."


def _listed(parts: AbstractSet[Part]) -> str:
    return ", ".join(name for part, name in SHORT.items() if part in parts)
