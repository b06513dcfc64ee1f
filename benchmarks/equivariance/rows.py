"""What the study compares: the rows of its tables, in the order in which they are worth running."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["plain", "prea", "method", "distilled"]


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: As the tables call it.
        tier: Rows of tier 0 of all data sets run first, then tier 1, ...
        kind: ``plain``: the backbone; ``prea``: with the adapter; ``method``: an entry of the catalogue; ``distilled``:
            PREA at k = 0 taught by the trained row ``start``.
        options: For ``attach`` (prea, distilled), or name and group of the catalogue's method.
        augment: The random views that are trained on.
        start: The row whose trained model is taken: as the backbone of a method that is trained no further, or in
            part, or as the teacher.
        train: For methods: none, head or all.
        stretch: The epochs are the rule's times this.
        exact: The group under which the answer must not change at all, or none where nothing is promised.
        only: Data sets that have this row; empty: all.
        backbone: Another one than the data set's.
        image_size: Pixels per side that images are enlarged to, where a geometry asks for it.
    """

    name: str
    tier: int
    kind: Kind
    options: dict[str, Any] = field(default_factory=dict)
    augment: str = "none"
    start: str = ""
    train: str = "all"
    stretch: int = 1
    exact: str = ""
    only: tuple[str, ...] = ()
    backbone: str = ""
    image_size: int | None = None


def prea(name: str, tier: int, group: str, merge_block: int | None, **more: Any) -> Row:
    """Return a row of PREA; what ``Row`` does not know goes to ``attach``."""
    known = {key: more.pop(key) for key in list(more) if key in Row.__dataclass_fields__}
    return Row(name, tier, "prea", {"group": group, "merge_block": merge_block, **more}, exact=group, **known)


def rival(name: str, tier: int, method: str, group: str = "C4", *, exact: bool = True, **more: Any) -> Row:
    """Return a row of the catalogue's method."""
    return Row(name, tier, "method", {"method": method, "group": group}, exact=group if exact else "", **more)


def frozen(name: str, tier: int, method: str, group: str = "C4", **more: Any) -> Row:
    """Return a row of a method on the trained plain model, which stays as it is."""
    return rival(name, tier, method, group, start="plain", train="none", **more)


VIT_SETS = ("blood", "dermoscopy")
RESNET, ODD = "popmi_resnet20", 33
# k of Swin, ResNet, ...: stages; of a ViT: blocks. None is the default that attach chooses.
PREA_ROWS = (
    prea("PREA C4, k = 0", 1, "C4", 0, only=VIT_SETS),
    prea("PREA D4, k = 0", 0, "D4", 0, only=VIT_SETS),
    prea("PREA C4", 0, "C4", None),
    prea("PREA D4", 1, "D4", None, only=VIT_SETS),
    prea("PREA D4", 6, "D4", None, only=("rotated_mnist",)),
    prea("PREA C4, lambda", 2, "C4", None, weights="lambda"),
    prea("PREA C4 + rotations", 2, "C4", None, augment="rotations"),
    prea("PREA D4, k = 0 + rotations", 1, "D4", 0, augment="rotations", only=VIT_SETS),
    prea("PREA C4, k = 0, lifted convolutions", 1, "C4", 0, adapters="lifted-conv", only=VIT_SETS),
    prea("PREA D4, k = 0, lifted convolutions", 2, "D4", 0, adapters="lifted-conv", only=VIT_SETS),
    prea("PREA C4, k = L", 3, "C4", 3, only=VIT_SETS[:1]),
    prea("PREA C4, k = L", 3, "C4", 4, only=VIT_SETS[1:]),
    prea("PREA D4, k = L", 6, "D4", 3, only=VIT_SETS[:1]),
    prea("PREA D4, k = L", 6, "D4", 4, only=VIT_SETS[1:]),
    # Strides keep the symmetry on odd maps all the way: 33, 17, 9, 5.
    prea("PREA C4, k = 0, 33 px", 0, "C4", 0, image_size=ODD, only=("rotated_mnist",)),
    prea("PREA C4, k = 1, 33 px", 1, "C4", 1, image_size=ODD, only=("rotated_mnist",)),
    prea("PREA C4, k = 0, 33 px + rotations", 1, "C4", 0, image_size=ODD, augment="rotations", only=("rotated_mnist",)),
    prea("PREA C4, k = 0, 33 px, lifted convolutions", 2, "C4", 0, image_size=ODD, adapters="lifted-conv",
         only=("rotated_mnist",)),
)  # fmt: skip
DISTILLED = (
    Row("PREA D4, k = 0, distilled", 1, "distilled", {"merge_block": 0}, augment="shifts", start="PREA D4",
        exact="D4",
        only=VIT_SETS),
    Row("PREA C4, k = 0, 33 px, distilled", 1, "distilled", {"merge_block": 0}, augment="shifts",
        start="PREA C4, k = 1, 33 px", exact="C4", only=("rotated_mnist",), image_size=ODD),
)  # fmt: skip
# Other backbones, on one data set.
OTHERS = (
    Row("plain ResNet-20", 3, "plain", backbone=RESNET, only=("blood",)),
    prea("PREA C4 on ResNet-20, k = 0, 33 px", 3, "C4", 0, backbone=RESNET, image_size=ODD, only=("blood",)),
    prea("PREA C4 on ResNet-20", 4, "C4", None, backbone=RESNET, only=("blood",)),
    Row("plain ViT", 3, "plain", backbone="popmi_vit_64", only=("rotated_mnist",)),
    prea("PREA C4 on a ViT", 3, "C4", None, backbone="popmi_vit_64", only=("rotated_mnist",)),
)
ORBIT = (
    rival("equitune C4, logits", 1, "equitune-logits"),
    rival("equitune C4, features", 3, "equitune-features"),
    rival("lambda-equitune C4", 3, "lambda-equitune"),
    rival("EquiAttention C4", 4, "equiattention"),
    rival("canonicalisation C4", 2, "canonicalisation"),
    frozen("equizero C4, plain model", 2, "equizero"),
    frozen("test-time augmentation C4, plain model", 1, "tta"),
    frozen("post-hoc mean C4, plain model", 2, "posthoc-mean"),
    frozen("post-hoc max C4, plain model", 3, "posthoc-max"),
    frozen("post-hoc sum C4, plain model", 3, "posthoc-sum"),
    frozen("post-hoc most probable C4, plain model", 3, "posthoc-most-probable"),
    frozen("post-hoc most certain C4, plain model", 3, "posthoc-most-certain"),
    rival("post-hoc score C4, plain model, head", 3, "posthoc-score", start="plain", train="head"),
    rival("post-hoc attention C4, plain model, head", 3, "posthoc-attention", start="plain", train="head"),
)
NETWORKS = (
    rival("p4 CNN", 0, "p4-cnn"),
    rival("p4m CNN", 2, "p4m-cnn", "D4"),
    rival("octic ViT", 1, "octic-vit", "D4"),
    rival("p4 dense CNN", 4, "p4-densenet"),
    rival("C8 steerable CNN", 4, "c8-steerable", "C8", exact=False),
    rival("GE-ViT p4", 4, "ge-vit-p4"),
    rival("GE-ViT p4m", 5, "ge-vit-p4m", "D4"),
    rival("GSA-Net p4, as published", 5, "gsa-p4", exact=False),
    rival("modern equivariant ViT", 4, "modern-ge-vit"),
    rival("p4 CNN + rotations, six times the epochs", 2, "p4-cnn", augment="rotations", stretch=6,
          only=("rotated_mnist",)),
)  # fmt: skip
ROWS = (
    Row("plain", 0, "plain"),
    Row("plain + rotations", 0, "plain", augment="rotations"),
    *PREA_ROWS,
    *DISTILLED,
    *ORBIT,
    *NETWORKS,
    *OTHERS,
)
