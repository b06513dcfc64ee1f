"""Count what lies in a site's files: what they are, what they tell of patients, which of them are alike."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.site.datareport import Shape, SplitCounts, TagCount
from popmi_core.data import ImageSet
from popmi_core.data.confidential import REFUSED_KINDS, TOLD_KINDS
from popmi_core.data.decode import UnusableImage
from popmi_core.data.identify import name_tag
from popmi_core.data.look import Look, look_at
from popmi_core.limits import MIN_CELL, hide_few
from popmi_core.metrics.suppression import classes_to_tell


@dataclass(frozen=True)
class Listed:
    """A file of the data set by its row (or its place in the listing); ``path`` is None where it is not there."""

    row: int
    name: str
    path: Path | None


@dataclass(frozen=True)
class Same:
    """Pictures with the very same pixels, by position; and whether they lie in several splits or classes."""

    positions: tuple[int, ...]
    splits: frozenset[str]
    classes: frozenset[int]


def look_at_all(files: Iterable[Listed]) -> dict[int, Look]:
    """Return what every readable file says of itself, by row; the reader tells of the others."""
    looks: dict[int, Look] = {}
    for file in files:
        if file.path is not None:
            try:
                looks[file.row] = look_at(file.path)
            except UnusableImage:
                continue
    return looks


def tell_counts(counts: Sequence[int]) -> tuple[int | None, ...]:
    """Return counts, with None for each below 5 and for those that would give one away."""
    told = classes_to_tell(np.array(counts, dtype=np.int64), min_cell=MIN_CELL)
    return tuple(count if shown else None for count, shown in zip(counts, told.tolist(), strict=True))


def tell_parts(counts: Mapping[str, int]) -> dict[str, int | None]:
    """Return the parts of a whole that may be known, with None for those to hide; a part of none is told as such."""
    filled = {name: count for name, count in counts.items() if count}
    if all(count >= MIN_CELL for count in filled.values()):
        return dict(counts)
    told = dict(zip(filled, tell_counts(list(filled.values())), strict=True))
    return {name: told.get(name, 0) for name in counts}


def count_splits(sets: dict[str, ImageSet], num_classes: int) -> tuple[SplitCounts, ...]:
    """Return images per split and class with small cells suppressed; a split without images is left out."""
    sizes = {split: len(images) for split, images in sets.items() if len(images)}
    told = tell_parts(sizes)
    nothing = (None,) * num_classes
    return tuple(
        SplitCounts(
            split=split,
            images=told[split],
            classes=nothing if told[split] is None else tell_counts(sets[split].counts(num_classes).tolist()),
        )
        for split in sizes
    )


def find_same(sets: dict[str, ImageSet]) -> list[Same]:
    """Return the groups of pictures that are alike pixel by pixel; positions count through the splits in order."""
    seen: defaultdict[bytes, list[tuple[int, str, int]]] = defaultdict(list)
    position = 0
    for split, images in sets.items():
        for pixels, target in zip(images.images, images.targets.tolist(), strict=True):
            seen[hashlib.sha256(pixels.tobytes()).digest()].append((position, split, target))
            position += 1
    return [
        Same(
            tuple(place for place, _, _ in alike),
            frozenset(split for _, split, _ in alike),
            frozenset(target for _, _, target in alike),
        )
        for alike in seen.values()
        if len(alike) > 1
    ]


def count_tags(looks: Iterable[Look]) -> tuple[TagCount, ...]:
    """Return in how many DICOM files each attribute that tells of patients is filled, refusing ones first."""
    marks = [look.marks for look in looks if look.marks is not None]
    refusing = Counter(name for mark in marks for name in mark.identifying)
    told = Counter(name for mark in marks for name in mark.told)
    dummies = Counter(name for mark in marks for name in mark.pseudonyms)
    return (
        *(
            TagCount(name=name_tag(name), kind=REFUSED_KINDS[name], files=hide_few(number), refuses=True)
            for name, number in sorted(refusing.items())
        ),
        *(
            TagCount(name=name_tag(name), kind="taken for a pseudonym", files=hide_few(number), refuses=False)
            for name, number in sorted(dummies.items())
        ),
        *(
            TagCount(name=name_tag(name), kind=TOLD_KINDS[name], files=hide_few(number), refuses=False)
            for name, number in sorted(told.items())
        ),
    )


def describe_shape(looks: Sequence[Look]) -> Shape:
    """Return kinds, sizes and colours of files."""
    if not looks:
        return Shape()
    ordered = sorted(looks, key=lambda look: look.width * look.height)
    small, large = ordered[0], ordered[-1]
    colour = sum(look.colour for look in looks)
    told = tell_parts({"colour": colour, "grey": len(looks) - colour})
    return Shape(
        kinds=tell_parts(dict(sorted(Counter(look.kind for look in looks).items()))),
        smallest=f"{small.width} x {small.height}",
        median_side=int(np.median([min(look.width, look.height) for look in looks])),
        largest=f"{large.width} x {large.height}",
        colour=told["colour"],
        grey=told["grey"],
    )
