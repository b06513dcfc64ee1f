"""Images in memory before they become a site's data: what every reader makes, and what ``split`` cuts up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from popmi_core.data.decode import Pixels
from popmi_core.data.holdout import FRACTIONS, split_groups
from popmi_core.data.images import ImageSet, SiteData, SkippedRow
from popmi_core.data.manifest import SPLITS, Split, name_rows
from popmi_core.errors import DataError

_SPLIT_SEED = 0
_FEWEST_TO_SHARE = 8


@dataclass(frozen=True, eq=False)
class Pool:
    """Usable images of one origin; entry ``i`` of every sequence belongs to one picture.

    Attributes:
        name: The origin, for messages.
        classes: Class names; ``targets`` index into them.
        images: ``uint8 [size, size, 3]`` each.
        targets: Class index of each.
        groups: Patient, lesion or (where unknown) the picture itself; never torn between splits or sites.
        splits: Each picture's split.
        columns: What else is known of each, by column name.
        skipped: What could not be used.
        licence: Licence of the pictures, empty where unknown.
    """

    name: str
    classes: tuple[str, ...]
    images: Sequence[Pixels]
    targets: Sequence[int]
    groups: Sequence[str]
    splits: Sequence[Split]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    skipped: tuple[SkippedRow, ...] = ()
    licence: str = ""

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: Sequence[int]) -> Pool:
        """Return the pool of the pictures at these positions."""
        return replace(
            self,
            images=[self.images[position] for position in index],
            targets=[self.targets[position] for position in index],
            groups=[self.groups[position] for position in index],
            splits=[self.splits[position] for position in index],
            columns={name: [values[position] for position in index] for name, values in self.columns.items()},
        )

    def to_site(self, site: str, *, image_size: int, to_train: bool = False) -> SiteData:
        """Return the pool as one site's data.

        Raises:
            DataError: If there is nothing to train or to test on (see ``refuse_empty``).
        """
        self.refuse_empty(site, to_train=to_train)
        sets = self.by_split(image_size=image_size)
        return SiteData(
            site, self.classes, sets["train"], sets["val"], sets["test"], sets["external"], skipped=self.skipped
        )

    def by_split(self, *, image_size: int) -> dict[Split, ImageSet]:
        """Return the images of every split, in the pool's order; some may be empty."""
        splits = np.array(self.splits, dtype=object)
        targets = np.array(self.targets, dtype=np.int64)
        sets: dict[Split, ImageSet] = {}
        for split in SPLITS:
            index = np.flatnonzero(splits == split)
            chosen = [self.images[position] for position in index]
            sets[split] = ImageSet(np.stack(chosen), targets[index]) if chosen else ImageSet.empty(image_size)
        return sets

    def refuse_empty(self, site: str, *, to_train: bool) -> None:
        """Stop where there is nothing to train or to test on.

        Images of which all are external are a test set that no site trains on: fine, unless they are to train.

        Raises:
            DataError: With the splits that are empty and why images were left out.
        """
        filled = set(self.splits)
        if to_train and filled == {"external"}:
            raise DataError(
                f"site {site}: every usable image is of split external, which no site trains on or is tested on in a "
                f"run. {explain_skipped(self.skipped)} Put images into train and test, or leave the column 'split' out "
                "and POPMI splits by patient or lesion."
            )
        lacking = [split for split in FRACTIONS if split != "val" and split not in filled]
        if lacking and filled != {"external"}:
            raise DataError(
                f"site {site}: no usable image in split {' and '.join(lacking)}. {explain_skipped(self.skipped)} "
                "Fill these splits, or give no split at all and POPMI splits by lesion."
            )


def merge(name: str, classes: tuple[str, ...], pools: Mapping[str, Pool], *, licence: str) -> Pool:
    """Return all sites' pictures as one pool with the column ``site``; columns not every site has are dropped.

    Lesions and patients keep their names, so one that two sites photographed stays one.
    """
    ordered = sorted(pools.items())
    shared = set.intersection(*(set(pool.columns) for _, pool in ordered))
    columns = {
        column: [value for _, pool in ordered for value in pool.columns[column]] for column in sorted(shared - {"site"})
    }
    columns["site"] = [site for site, pool in ordered for _ in range(len(pool))]
    return Pool(
        name,
        classes,
        [image for _, pool in ordered for image in pool.images],
        [target for _, pool in ordered for target in pool.targets],
        [_shared_group(site, group) for site, pool in ordered for group in pool.groups],
        [split for _, pool in ordered for split in pool.splits],
        columns,
        licence=licence,
    )


def _shared_group(site: str, group: str) -> str:
    # "row 7" of one site is not "row 7" of another; a lesion's own name is.
    return group if group.startswith(("lesion ", "patient ")) else f"{site} {group}"


def complete_splits(
    given: Sequence[Split | None], groups: Sequence[str], labels: Sequence[str], *, site: str
) -> list[Split]:
    """Return every image's split: the given one, or one made by patient or lesion, always in the same way.

    Where no split is given, 70/10/20; where train and test are but no validation images, an eighth
    of training, if that is eight lesions or more.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    if None in given:
        return split_groups(groups, labels, rng=rng, site=site)
    splits = [split for split in given if split is not None]
    training = [index for index, split in enumerate(splits) if split == "train"]
    if "val" in splits or len({groups[index] for index in training}) < _FEWEST_TO_SHARE:
        return splits
    cut = split_groups(
        [groups[index] for index in training],
        [labels[index] for index in training],
        rng=rng,
        site=site,
        fractions={"train": 0.875, "val": 0.125},
    )
    for index, split in zip(training, cut, strict=True):
        splits[index] = split
    return splits


def explain_skipped(skipped: Sequence[SkippedRow]) -> str:
    """Return why rows were left out, one clause per reason."""
    reasons: dict[str, list[int]] = {}
    for entry in skipped:
        reasons.setdefault(entry.reason, []).append(entry.row)
    told = "; ".join(f"{reason} ({name_rows(numbers, most=4)})" for reason, numbers in sorted(reasons.items()))
    return f"Skipped: {told}." if told else "No row was skipped."
