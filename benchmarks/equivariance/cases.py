"""One run of the study: a row, a data set and a seed, with everything the result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rows import ROWS, Row

LITE0 = "tf_efficientnet_lite0_imagenet.safetensors"
DATASETS = ("rotated_mnist", "blood", "dermoscopy")
# The rule for all rows of a data set: the same number of passes over the training images, batch, decay and warm-up.
# What the figure that chooses the epoch is: validation accuracy, balanced where classes are skewed.
RECIPES: dict[str, dict[str, Any]] = {
    "rotated_mnist": {"backbone": "study_resnet20", "epochs": 6, "learning_rate": 1e-2, "choose": "accuracy"},
    "blood": {"backbone": "popmi_vit_64", "epochs": 6, "learning_rate": 1e-3, "choose": "accuracy"},
    "dermoscopy": {"backbone": "popmi_vit_nano", "patch_size": 16, "epochs": 8, "learning_rate": 1e-3,
                   "choose": "balanced_accuracy"},
    # Those of posthoc.py.
    "upright_mnist": {"backbone": "study_resnet20", "epochs": 6, "learning_rate": 1e-2, "choose": "accuracy"},
    "tenth_mnist": {"backbone": "study_resnet20", "epochs": 40, "learning_rate": 1e-2, "choose": "accuracy"},
    "pretrained": {"backbone": "tf_efficientnet_lite0", "weights": LITE0, "epochs": 2, "learning_rate": 5e-4,
                   "choose": "balanced_accuracy"},
}  # fmt: skip
COMMON = {"batch_size": 64, "weight_decay": 0.05, "warmup": 0.1}
# How figures are measured: images that are turned and probed, drawn once. A test set is read whole unless that takes
# longer than ``patience`` seconds, then ``fewer`` of its images, then ``fewest``; models slower than ``slow`` images a
# second turn ``turned_slow`` of them only.
MEASURED = {
    "version": 2,
    "turned": 256,
    "turned_slow": 64,
    "slow": 400,
    "lie": 32,
    "fewer": 10_000,
    "fewest": 1000,
    "patience": 30,
}
# Raised when what a run gives has changed in a way its description does not show.
VERSION = 1


@dataclass(frozen=True)
class Case:
    """A row of one data set, trained from one seed."""

    dataset: str
    row: Row
    seed: int

    @property
    def recipe(self) -> dict[str, Any]:
        """Return backbone and training of this run."""
        found = {**COMMON, **RECIPES[self.dataset]}
        if self.row.backbone:
            found |= {"backbone": self.row.backbone}
            if not self.row.backbone.startswith("popmi_octic"):
                found.pop("patch_size", None)
        if self.row.rate is not None:
            found["learning_rate"] = self.row.rate
        return {**found, "epochs": found["epochs"] * self.row.stretch, "augment": self.row.augment}

    def described(self) -> dict[str, Any]:
        """Return everything the result depends on, the trained model it starts from included."""
        row = asdict(self.row)
        for told_only in ("name", "tier", "only"):
            row.pop(told_only)
        found = {"dataset": self.dataset, "seed": self.seed, "row": row, "recipe": self.recipe, "version": VERSION}
        if self.row.start:
            found["start"] = self.start().described()
        return found

    def training(self) -> dict[str, Any]:
        """Return what the weights depend on: ``described`` without what is only measured."""
        found = self.described()
        found["row"] = {key: value for key, value in found["row"].items() if key != "exact"}
        return found

    @property
    def key(self) -> str:
        """Return the name the result is kept under."""
        return digest({**self.described(), "measured": MEASURED})

    @property
    def weights_key(self) -> str:
        """Return the name the trained weights are kept under."""
        return digest(self.training())

    def plain(self) -> Case:
        """Return the run of the plain backbone that this row's cost is compared with."""
        own = "" if self.row.kind == "network" else self.row.backbone
        plain = (row for row in rows_of(self.dataset) if row.kind == "plain" and row.backbone == own)
        return Case(self.dataset, next(plain, Row("plain", 0, "plain", backbone=own)), self.seed)

    def start(self) -> Case:
        """Return the run whose model this one starts from."""
        return Case(self.dataset, named(self.row.start, self.dataset), self.seed)


def digest(described: dict[str, Any]) -> str:
    """Return a short hash of a description."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def rows_of(dataset: str) -> list[Row]:
    """Return the rows of a data set's table, in the order of the table."""
    return [row for row in ROWS if not row.only or dataset in row.only]


def named(name: str, dataset: str) -> Row:
    """Return a row by its name."""
    return next(row for row in rows_of(dataset) if row.name == name)


def cases(datasets: Sequence[str], seeds: int) -> Iterator[Case]:
    """Yield all runs: the most telling rows (tiers 0 and 1) from every seed, then every other row once before twice."""
    found = [
        (row.tier > 1, seed, row.tier, Case(dataset, row, seed))
        for seed in range(seeds)
        for dataset in datasets
        for row in rows_of(dataset)
    ]
    for *_, case in sorted(found, key=lambda entry: entry[:3]):
        yield case
