"""Cut any set of pictures into sites: by label skew, or by what a column says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from popmi_core.data.build import building, safe_name, write_labels
from popmi_core.data.card import DatasetCard, write_card
from popmi_core.data.decode import encode_png
from popmi_core.data.federation import locate
from popmi_core.data.load import load_pool
from popmi_core.data.manifest import COLUMNS
from popmi_core.data.pool import Pool, merge
from popmi_core.errors import DataError

Progress = Callable[[int, int], None]

_DRAWS = 200
_MOST_SITES = 100

Assignment = Mapping[str, Sequence[int]]
"""Site name -> positions of its pictures in the pool."""


def read_pool(source: str, *, image_size: int | None) -> Pool:
    """Read the set to cut, whatever its shape; sites it has already become the column ``site``.

    Args:
        source: A path, or ``auto`` for the data found here.
        image_size: Pixels per side; None keeps an npz file's own and means 64 for anything else.

    Raises:
        DataError: If there are no images, or they cannot be used, or they are the phantom.
    """
    found = locate(source, image_size=image_size or 64)
    if found.phantom:
        raise DataError("the phantom is five sites already and cannot be cut. Name a folder or file of images.")
    pools = {site: load_pool(site, spec, image_size=image_size) for site, spec in found.sites.items()}
    return merge(found.name, found.classes, pools, licence=found.licence)


def by_dirichlet(pool: Pool, *, num_sites: int, alpha: float, rng: np.random.Generator, least: int = 5) -> Assignment:
    """Share every class among the sites in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019, arXiv:1909.06335).

    A small ``alpha`` gives sites with few classes, a large one equal sites. Pictures of one lesion go to one site.
    Drawn again until every site has ``least`` pictures in each split the pool has.

    Raises:
        DataError: If 200 draws gave no such sites.
    """
    members: defaultdict[str, list[int]] = defaultdict(list)
    for position, group in enumerate(pool.groups):
        members[group].append(position)
    by_class: defaultdict[int, list[list[int]]] = defaultdict(list)
    for group in sorted(members):
        by_class[pool.targets[members[group][0]]].append(members[group])
    names = [f"site_{number:0{len(str(num_sites))}d}" for number in range(1, num_sites + 1)]
    for _ in range(_DRAWS):
        drawn = _draw(by_class, num_sites, alpha, rng)
        if all(_fills(pool, positions, least) for positions in drawn):
            return {name: sorted(positions) for name, positions in zip(names, drawn, strict=True)}
    raise DataError(
        f"{pool.name}: {len(pool)} pictures do not give {num_sites} sites of at least {least} pictures in every split "
        f"at alpha {alpha:g}. Take fewer sites or a larger alpha."
    )


def by_column(pool: Pool, column: str) -> Assignment:
    """Make one site of every value of a column. A lesion seen at two sites stays in one split, as it was.

    Raises:
        DataError: If there is no such column, or it has fewer than two or more than a hundred values.
    """
    values = pool.columns.get(column.lower())
    if values is None:
        known = ", ".join(pool.columns) or "none"
        raise DataError(f"{pool.name} has no column {column!r}; it has {known}. Name one of these.")
    sites: defaultdict[str, list[int]] = defaultdict(list)
    for position, value in enumerate(values):
        sites[safe_name(value)].append(position)
    if not 2 <= len(sites) <= _MOST_SITES:
        raise DataError(
            f"{pool.name}: column {column!r} has {len(sites)} value(s), expected 2 to {_MOST_SITES}. "
            "Cut by another column, or use --dirichlet."
        )
    return {site: sites[site] for site in sorted(sites)}


def write_sites(
    pool: Pool, assignment: Assignment, target: Path, *, recipe: str, progress: Progress | None = None
) -> DatasetCard:
    """Write one folder per site, in the shape of a hospital's, and ``dataset.json``; complete or not at all.

    Raises:
        DataError: If ``target`` holds anything already or cannot be written.
    """
    size = int(pool.images[0].shape[0])
    card = DatasetCard(
        name=safe_name(pool.name),
        classes=pool.classes,
        image_size=size,
        source_image_size=size,
        sites=tuple(assignment),
        licence=pool.licence or "unknown: ask whoever gave you the images",
        recipe=recipe,
    )
    with building(target) as folder:
        if folder is None:
            raise DataError(f"{target} is not empty. Name a new folder, or delete this one first.")
        done = 0
        for site, positions in assignment.items():
            images = folder / site / "images"
            images.mkdir(parents=True)
            for position in positions:
                (images / f"{position:06d}.png").write_bytes(encode_png(pool.images[position]))
                done += 1
                if progress is not None and (done % 250 == 0 or done == len(pool)):
                    progress(done, len(pool))
            write_labels(folder / site, [_row(pool, position) for position in positions])
        write_card(folder, card)
    return card


def _draw(
    by_class: Mapping[int, Sequence[Sequence[int]]], num_sites: int, alpha: float, rng: np.random.Generator
) -> list[list[int]]:
    sites: list[list[int]] = [[] for _ in range(num_sites)]
    for target in sorted(by_class):
        groups = by_class[target]
        shares = rng.dirichlet(np.full(num_sites, alpha))
        ends = np.round(np.cumsum(shares)[:-1] * len(groups)).astype(np.int64)
        for site, chosen in enumerate(np.split(rng.permutation(len(groups)), ends)):
            sites[site] += [position for index in chosen for position in groups[index]]
    return sites


def _fills(pool: Pool, positions: Sequence[int], least: int) -> bool:
    counts = dict.fromkeys(pool.splits, 0)
    for position in positions:
        counts[pool.splits[position]] += 1
    return all(count >= least for count in counts.values())


def _row(pool: Pool, position: int) -> dict[str, str]:
    known = {name: values[position] for name, values in pool.columns.items() if name in COLUMNS}
    return {
        **known,
        "image": f"{position:06d}.png",
        "diagnosis": pool.classes[pool.targets[position]],
        "split": pool.splits[position],
    }
