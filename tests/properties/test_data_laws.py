"""What must hold for every way of cutting images up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from popmi_core.data.cut import by_dirichlet
from popmi_core.data.holdout import FRACTIONS, split_groups
from popmi_core.data.pool import Pool
from popmi_core.errors import DataError

SIZES = st.lists(st.integers(1, 6), min_size=10, max_size=80)


@given(sizes=SIZES, classes=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_no_lesion_is_torn_and_every_share_is_near_its_goal(sizes: list[int], classes: int, seed: int) -> None:
    groups = [f"lesion {index}" for index, size in enumerate(sizes) for _ in range(size)]
    labels = [f"class {index % classes}" for index, size in enumerate(sizes) for _ in range(size)]
    try:
        splits = split_groups(groups, labels, rng=np.random.default_rng(seed), site="north")
    except DataError:
        # Only a few large lesions can leave a split empty: 10 % of the images are then fewer than the largest lesion.
        assert 0.1 * len(groups) < 2 * max(sizes)
        return
    assert len({(group, split) for group, split in zip(groups, splits, strict=True)}) == len(sizes)
    for split, fraction in FRACTIONS.items():
        # The neediest split gets the next lesion, so none is ever further off than the largest lesion (twice, as
        # three splits share the remainder).
        assert abs(splits.count(split) - fraction * len(groups)) <= 2 * max(sizes)


@given(sizes=SIZES, seed=st.integers(0, 2**32 - 1))
def test_the_split_does_not_depend_on_the_order_of_rows(sizes: list[int], seed: int) -> None:
    groups = [f"lesion {index}" for index, size in enumerate(sizes) for _ in range(size)]
    labels = ["nv"] * len(groups)
    order = np.random.default_rng(seed).permutation(len(groups))
    try:
        straight = split_groups(groups, labels, rng=np.random.default_rng(0), site="north")
    except DataError:
        return
    shuffled = split_groups([groups[i] for i in order], labels, rng=np.random.default_rng(0), site="north")
    assert shuffled == [straight[i] for i in order]


@given(
    sizes=SIZES,
    num_sites=st.integers(2, 5),
    alpha=st.floats(0.05, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_dirichlet_sites_share_all_pictures_and_tear_no_lesion(
    sizes: list[int], num_sites: int, alpha: float, seed: int
) -> None:
    groups = [f"lesion {index}" for index, size in enumerate(sizes) for _ in range(size)]
    targets = [index % 3 for index, size in enumerate(sizes) for _ in range(size)]
    pixels = np.zeros((1, 1, 3), np.uint8)
    pool = Pool("blobs", ("a", "b", "c"), [pixels] * len(groups), targets, groups, ["train"] * len(groups))

    cut = by_dirichlet(pool, num_sites=num_sites, alpha=alpha, rng=np.random.default_rng(seed), least=0)

    assert len(cut) == num_sites
    assert sorted(position for positions in cut.values() for position in positions) == list(range(len(pool)))
    assert sum(len({groups[position] for position in positions}) for positions in cut.values()) == len(sizes)


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(DataError, match="too few to cut into train, val, test"):
        split_groups(["a"] * 9, ["nv"] * 9, rng=np.random.default_rng(0), site="north")
