"""What the study compares: the rows of its tables, in the order in which they are worth running."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

Kind = Literal["plain", "prea", "method", "network", "distilled"]


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: As the tables call it.
        tier: Rows of tier 0 of all data sets run first, then tier 1, ...
        kind: ``plain``: the backbone; ``prea``: with the adapter; ``method``: an entry of the catalogue around it;
            ``network``: a network of its own; ``distilled``: PREA at k = 0 taught by the trained row ``start``.
        options: For ``attach`` (prea, distilled), or name and group of the catalogue's method.
        augment: The random views that are trained on.
        start: The row whose trained model is taken: as the backbone of a method that is trained no further, or in
            part, or as the teacher.
        train: For methods: none, head or all.
        stretch: The epochs are the rule's times this.
        exact: The group under which the answer must not change at all, or none where nothing is promised.
        only: Data sets that have this row; empty: all.
        backbone: Another one than the data set's.
        image_size: Pixels per side that images are brought to, where a geometry or a cost asks for it.
        rate: Another learning rate than the data set's.
        images: Training images, drawn once, where all of them would take hours of a core; the table says how many
            images a row has seen.
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
    rate: float | None = None
    images: int | None = None


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
ODD = 25
# At full resolution, eight layers; its two strides keep the symmetry at 29 (29, 15, 8) and 33 (33, 17, 9) pixels.
RESNET8 = "study_resnet8"
CONVOLUTIONS, ATTENTION = 1e-2, 2e-3
# k of Swin, ResNet, ...: stages; of a ViT: blocks. None is the default that attach chooses: on the digits' ResNet
# k = L, where what comes before the head is averaged, as in equitune on features.
PREA_ROWS = (
    prea("PREA C4, k = 0", 2, "C4", 0, only=VIT_SETS),
    prea("PREA D4, k = 0", 0, "D4", 0, only=VIT_SETS),
    prea("PREA C4", 0, "C4", None),
    prea("PREA D4", 1, "D4", None, only=VIT_SETS),
    prea("PREA C4, lambda", 2, "C4", None, weights="lambda"),
    prea("PREA C4 + rotations", 2, "C4", None, augment="rotations"),
    prea("PREA D4, k = 0 + rotations", 3, "D4", 0, augment="rotations", only=VIT_SETS),
    prea("PREA C4, k = 0, lifted convolutions", 3, "C4", 0, adapters="lifted-conv", only=VIT_SETS),
    prea("PREA C4, k = L", 3, "C4", 3, only=VIT_SETS[:1]),
    # Strides keep the symmetry on odd maps all the way: 25, 13, 7, 4 or 33, 17, 9, 5.
    prea("PREA C4, k = 0, 25 px", 0, "C4", 0, image_size=ODD, only=("rotated_mnist",)),
    prea("PREA C4, k = 1, 25 px", 1, "C4", 1, image_size=ODD, only=("rotated_mnist",)),
    prea("PREA C4, k = 0, 25 px + rotations", 3, "C4", 0, image_size=ODD, augment="rotations", only=("rotated_mnist",)),
    prea("PREA C4, regular fields", 1, "C4", None, fields="regular", only=VIT_SETS),
    prea("PREA C4, regular fields, 25 px", 0, "C4", None, fields="regular", image_size=ODD, only=("rotated_mnist",)),
    prea("PREA C4, regular fields, 25 px + rotations, twice the epochs", 1, "C4", None, fields="regular",
         image_size=ODD, augment="rotations", stretch=2, only=("rotated_mnist",)),
)  # fmt: skip
DISTILLED = (
    Row("PREA D4, k = 0, distilled", 1, "distilled", {"merge_block": 0}, augment="shifts", start="PREA D4",
        exact="D4", only=VIT_SETS),
    Row("PREA C4, k = 0, 25 px, distilled", 1, "distilled", {"merge_block": 0}, augment="shifts",
        start="PREA C4, k = 1, 25 px", exact="C4", only=("rotated_mnist",), image_size=ODD),
)  # fmt: skip


def on_resnet8(data_set: str, plain_side: int, exact_side: int) -> tuple[Row, ...]:
    """Return the rows of a convolutional network at full resolution, plain and under PREA."""
    common: dict[str, Any] = {"backbone": RESNET8, "rate": CONVOLUTIONS, "only": (data_set,)}
    exact: dict[str, Any] = {**common, "image_size": exact_side}
    regular = prea("PREA C4 on ResNet-8, regular fields", 0, "C4", None, fields="regular", **exact)
    plain = Row("plain ResNet-8", 0, "plain", image_size=plain_side, **common)
    if data_set == "rotated_mnist":
        longer = replace(regular, name=f"{regular.name} + rotations, twice the epochs", tier=1, augment="rotations",
                         stretch=2)  # fmt: skip
        return plain, regular, longer
    taught = Row("PREA C4 on ResNet-8, regular fields, distilled", 1, "distilled", {"fields": "regular"},
                 augment="shifts", start="PREA C4 on ResNet-8", exact="C4", **exact)  # fmt: skip
    return (
        plain,
        regular,
        prea("PREA D4 on ResNet-8, regular fields", 2, "D4", None, fields="regular", **exact),
        prea("PREA C4 on ResNet-8", 1, "C4", None, image_size=plain_side, **common),
        taught,
    )


OTHERS = (*on_resnet8("rotated_mnist", 28, 29), *on_resnet8("blood", 28, 29), *on_resnet8("dermoscopy", 33, 33))
# All seven post-hoc aggregations, the learned ones too: posthoc.py.
ORBIT = (
    rival("equitune C4, logits", 1, "equitune-logits"),
    rival("lambda-equitune C4", 3, "lambda-equitune", start="plain"),
    rival("canonicalisation C4", 2, "canonicalisation"),
    frozen("equizero C4, plain model", 2, "equizero"),
    frozen("test-time augmentation C4, plain model", 1, "tta"),
    frozen("post-hoc mean C4, plain model", 2, "posthoc-mean"),
    frozen("post-hoc max C4, plain model", 3, "posthoc-max"),
    frozen("post-hoc most certain C4, plain model", 3, "posthoc-most-certain"),
)


def network(name: str, tier: int, registered: str, exact: str, rate: float, **more: Any) -> Row:
    """Return a row of a network that is equivariant from its first layer on."""
    return Row(name, tier, "network", exact=exact, backbone=registered, rate=rate, **more)


SMALL_SETS, LARGE_SETS = ("rotated_mnist", "blood"), ("dermoscopy",)
# Rivals of which all images would take hours of a core learn from these, drawn once; beside them, what others make of
# the same images. GE-ViT p4m, of which an image costs three times as much again: a quarter of them, digits alone.
FEW = 1000


def networks(name: str, tier: int, registered: str, exact: str, rate: float, **more: Any) -> tuple[Row, Row]:
    """Return a network's row for the small images, and one at half the resolution for the large ones."""
    told = f"{name}, {more['images']:,} images" if "images" in more else name
    return (
        network(told, tier, registered, exact, rate, only=SMALL_SETS, **more),
        network(f"{told}, 32 px", tier, registered, exact, rate, only=LARGE_SETS, image_size=32, **more),
    )


NETWORKS = (
    *networks("p4 CNN", 0, "popmi_p4_cnn", "C4", CONVOLUTIONS),
    network("p4 CNN + rotations, twice the epochs", 1, "popmi_p4_cnn", "C4", CONVOLUTIONS, augment="rotations",
            stretch=2, only=("rotated_mnist",)),
    *networks("p4m CNN", 2, "popmi_p4m_cnn", "D4", CONVOLUTIONS),
    *networks("Z2 CNN (plain twin of p4)", 3, "popmi_z2_cnn", "", CONVOLUTIONS),
    network("octic ViT", 1, "popmi_octic_vit_28", "D4", 1e-3, only=SMALL_SETS),
    network("octic ViT", 1, "popmi_octic_vit_nano", "D4", 1e-3, only=LARGE_SETS),
    *networks("C8 steerable CNN", 4, "popmi_c8_steerable", "C4", CONVOLUTIONS),
    Row(f"plain, {FEW:,} images", 3, "plain", images=FEW),
    prea(f"PREA C4, {FEW:,} images", 3, "C4", None, images=FEW),
    rival(f"EquiAttention C4, {FEW:,} images", 3, "equiattention", images=FEW),
    *networks("p4 CNN", 3, "popmi_p4_cnn", "C4", CONVOLUTIONS, images=FEW),
    *networks("p4 dense CNN", 3, "popmi_p4_densenet", "C4", CONVOLUTIONS, images=FEW),
    *networks("GE-ViT p4", 3, "popmi_ge_vit_p4", "C4", ATTENTION, images=FEW),
    network(f"GE-ViT p4m, {FEW // 4:,} images", 4, "popmi_ge_vit_p4m", "D4", ATTENTION, images=FEW // 4,
            only=("rotated_mnist",)),
    *networks("GSA-Net p4, as published", 4, "popmi_gsa_p4", "", ATTENTION, images=FEW),
    *networks("modern equivariant ViT", 3, "popmi_modern_ge_vit", "C4", ATTENTION, images=FEW),
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
