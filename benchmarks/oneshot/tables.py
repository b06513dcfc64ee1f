"""The tables of the one-shot study: medians over all pairs or fours, lowest and highest behind them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
# The measure that decides who is ahead, chosen before the study ran: classes are even in one set, skewed in the other.
DECIDES = {"blood": "accuracy", "dermoscopy": "auroc"}
LOOKS = ("weights", "unlabelled", "labelled")
SAID = {
    "weights": "weights only",
    "unlabelled": "weights and unlabelled images",
    "labelled": "weights and labelled images",
}
COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "nll": "loss, nats",
    "of_best": "of best parent",
    "repaired": "BatchNorm re-estimated",
    "barrier_test": "barrier, test",
    "barrier_train": "barrier, train",
    "barrier_repaired": "barrier, test, re-estimated",
    "after_epoch": "after one epoch",
    "seconds": "seconds of one core",
}


def report(rows: Sequence[Row]) -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION = """# One-shot fusion of independently trained models

Printed by `python benchmarks/oneshot/study.py --out docs/results/oneshot`; every result is in `oneshot.json`.

**Parents.** Small models from different random starts (28 px, AdamW, cosine). *blood*: BloodMNIST content, every parent
has seen the whole training split. *dermoscopy*: four real sites (vidir_molemax, vidir_modern, rosendahl, msk), each
parent has seen its own site's images only, whose classes are skewed differently. Budgets are small (half an hour of one
core for all parents), so dermoscopy parents are weak.

**Fusion.** One shot, no training; every parent counts the same. N = 2: matched to the first. N = 4: each to the mean of
those before it. What a method may look at: *weights*; *unlabelled* training images of each site (256 for activation
statistics, 1,024 for RegMean's Gram matrices and for maps learned without labels, which follow the two models'
ensemble); *labelled* (up to 8,192 training images of the site for learned maps, the validation split for soups).
*OPM* averages heads as products, *OPM-Soup* and learned maps average weights. *probes* are smooth noise, no data.
FedMA is its one-shot part, at fixed width.

**Figures** are of the test images of the sites that take part: median (lowest to highest) over the cases. The barrier is
the highest rise of the loss above the chord of the two parents' losses at 25 points of the line on which the fused
model lies (512 test, 256 training images; nats); there is one where the rule is a linear average and the table has the
column. *After one epoch*: each site trains the fused model for one epoch on its own images (a third of the parents'
rate), then plain average; for *best single*, the best parent in place of the fused model. *Of best parent*: of the
deciding measure, accuracy for blood and AUROC for dermoscopy, where classes are skewed; a soup that keeps one parent is
as good as that parent and no fusion. BatchNorm is re-estimated on 256 images a site. Seconds are of one busy core.
"""
