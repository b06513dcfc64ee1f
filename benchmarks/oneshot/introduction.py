"""What the page of the one-shot study says above its tables."""

from __future__ import annotations

# What is made, how the study's OPM rows make it (alignments.py), and how `popmi fuse` does.
DIFFERENCES = (
    (
        "whose basis, N = 4",
        "the mean of those before; then, once, the mean of the others (learned maps: not)",
        "the first model's (`--reference mean`: the medoid's, then the mean of the others until they settle)",
    ),
    (
        "MLP, ResNets (no rotated stream)",
        "three further random orders of the layers; the closest end counts, or, with images, the one that says most "
        "nearly what both models say",
        "none",
    ),
    (
        "statistics (`--match activations`)",
        "256 images; ends are judged at the share they will have (1/2; in a four 1/2, 1/3, 1/4); the activations' own "
        "move, as it is, is one more candidate",
        "512 images; ends are judged half way",
    ),
    (
        "maps learned without labels (`--match learned`)",
        "1,024 images, 200 steps, shares from 0.3 to 0.7 (third and fourth of a four: from 0.8 of their share to 0.5); "
        "without a rotated stream orders are learned straight through, in a third of the steps",
        "4,096 images, 300 steps, shares from 0.3 to 0.7; such orders by Sinkhorn",
    ),
    (
        "OPM-RegMean, OPM greedy soup",
        "basis by statistics or learned maps; 1,024 images for Gram matrices",
        "basis as `--match` says, by weights if it says nothing; 512 images",
    ),
    ("learned maps with labels", "300 steps on up to 8,192 images", "not offered"),
)


def introduction() -> str:
    """Return the text above the tables."""
    rows = [("", "these rows", "`popmi fuse`"), ("---",) * 3, *DIFFERENCES]
    return TEXT.replace("@DIFFERENCES@", "\n".join(f"| {' | '.join(row)} |" for row in rows))


TEXT = """# One-shot fusion of independently trained models

Printed by `python benchmarks/oneshot/study.py --out docs/results/oneshot`; every result is in `oneshot.json`, and
with `--from-json` the page is printed from that file alone.

**Parents.** Small models from different random starts (28 px, AdamW, cosine). *blood*: BloodMNIST content, every parent
has seen the whole training split. *dermoscopy*: four real sites (vidir_molemax, vidir_modern, rosendahl, msk), each
parent has seen its own site's images only, whose classes are skewed differently. Budgets are small (half an hour of one
core for all parents), so dermoscopy parents are weak.

**Fusion.** One shot, no training; every parent counts the same. N = 2: matched to the first. N = 4: each to the mean of
those before it and then, learned maps apart, each once more to the mean of the others. *blood*: all six pairs of four
seeds and all five fours of five. *dermoscopy*: of each of four seeds the six pairs of its four sites (24 pairs in
all) and its one four. What a method may look at: *weights*; *unlabelled* training images of
each site (256 for activation statistics, 1,024 for RegMean's Gram matrices and for maps learned without labels, which
follow the two models' ensemble); *labelled* (up to 8,192 training images of the site for learned maps, the validation
split for soups).
*OPM* averages heads as products, those on whose products the models agree as weights (`adaptive_circuit`);
*OPM-Soup* and learned maps average weights. *probes* are smooth noise, no data.
FedMA is its one-shot part, at fixed width. The rivals run with this library's defaults (Git Re-Basin has four
descents); variants of OT-Fusion and Git Re-Basin are rows of their own. What their best settings change:
[settings.md](settings.md).

**How the OPM rows differ from a plain `popmi fuse`.** They are made by `benchmarks/oneshot/alignments.py` from the
library's parts:

@DIFFERENCES@

Pairs by weights (not of MLPs and ResNets) are what `popmi fuse` does.

**Figures** are of the test images of the sites that take part: median (lowest to highest) over the cases. *Of best
parent*: of the deciding measure, accuracy for blood and AUROC for dermoscopy, where classes are skewed; best by that
very test figure. A soup that keeps one parent is as good as that parent and no fusion. BatchNorm is re-estimated on 256
images a site. Seconds are of one busy core.

*Rise*: the fused model's loss minus the mean of its parents' losses, on the whole test split, for every rule and N
(nats). For a linear average of two that is the rise half way between them. The *barrier* is the highest rise of the
loss above the chord of the two parents' losses at 25 points of the line on which the fused model lies, at least 0, and
on fewer images (512 test, 256 training). OPM (of nets with heads), circuit and RegMean are no linear averages and have
none; it was not measured for the uniform soup (the same model as the average), for the soft variants of OT-Fusion and
for *OT-Fusion, activations*. On dermoscopy a parent is judged on the other sites' images, too, and loses much there: a
rise below zero or a barrier of zero is easily had.

*After one epoch* (fours; average, FedMA, OPM with maps learned without labels): each site trains the fused model for
one epoch on its own images (a third of the parents' rate), then plain average; for *best single*, the best parent in
place of the fused model.

**Verdicts.** Below each table the best OPM variant and the best rival by median are compared, of several on either side
and by the very test figures they are then compared on; a median over different winners need not say who wins more
cases, so both are told. Where OPM is behind, the results are asked three things: whether it is by loss, too; whether
the model tells classes apart at all (balanced accuracy); and whether the same average is better in a basis that was
found with images. What is left may be the sites' class mixes, which no matching changes; nothing here tests that.
"""
