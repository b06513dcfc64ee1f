"""Which images a site trains on and which it keeps: by lesion or patient, never by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from popmi_core.data.manifest import Split
from popmi_core.errors import DataError

FRACTIONS: Mapping[Split, float] = {"train": 0.7, "val": 0.1, "test": 0.2}


def split_groups(
    groups: Sequence[str],
    labels: Sequence[str],
    *,
    rng: np.random.Generator,
    site: str,
    fractions: Mapping[Split, float] = FRACTIONS,
) -> list[Split]:
    """Return the split of every image; images of one group share it, and every class is cut alike.

    Groups are shuffled within their class (that of their first image) and each goes to the split that is furthest
    below its share, so shares hold for any run of groups and not only overall. Same input and generator, same split.

    Raises:
        DataError: If so few groups exist that a split would stay empty.
    """
    members: defaultdict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    by_class: defaultdict[str, list[str]] = defaultdict(list)
    for group in sorted(members):
        by_class[labels[members[group][0]]].append(group)
    assigned: dict[Split, float] = dict.fromkeys(fractions, 0.0)
    chosen: list[Split] = [next(iter(fractions))] * len(groups)
    placed = 0
    for label in sorted(by_class):
        for position in rng.permutation(len(by_class[label])):
            indices = members[by_class[label][position]]
            placed += len(indices)
            split = max(fractions, key=lambda name: fractions[name] * placed - assigned[name])
            assigned[split] += len(indices)
            for index in indices:
                chosen[index] = split
    if any(count == 0 for count in assigned.values()):
        raise DataError(
            f"site {site}: {len(members)} lesion(s) or patient(s) are too few to cut into {', '.join(fractions)}. "
            "Add images, or give the split yourself in the column 'split'."
        )
    return chosen
