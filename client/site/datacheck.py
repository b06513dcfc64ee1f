"""Read a site's data set as a run would, and tell whether it can be used, what is wrong, and what would leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from client.site.census import Same, count_splits, count_tags, describe_shape, find_same, look_at_all
from client.site.datadetails import MOST_ROWS, tell_names
from client.site.datareport import DataReport, Examination, Labels, Leakage, Unread
from client.site.leaving import what_leaves
from client.site.listing import Listing, list_data
from client.site.verdict import find_reasons, find_warnings
from popmi_core.config import RunConfig
from popmi_core.data import ImageSet, SkippedRow, make_phantom_site
from popmi_core.data.labelmap import EXCLUDED, onto_classes
from popmi_core.data.load import load_pool
from popmi_core.data.look import Look
from popmi_core.data.manifest import SPLITS
from popmi_core.data.pool import Pool
from popmi_core.data.spec import SiteSpec
from popmi_core.errors import DataError
from popmi_core.limits import MIN_CELL, hide_few

_PHANTOM_IMAGES = 300


@dataclass(frozen=True)
class Content:
    """The images of a site that could be read, by split, and what was left out."""

    sets: dict[str, ImageSet] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    skipped: tuple[SkippedRow, ...] = ()
    problems: tuple[str, ...] = ()


def check_data(
    specification: str,
    classes: tuple[str, ...],
    label_map: Mapping[str, str] | Path | None,
    image_size: int,
    *,
    site: str = "here",
    config: RunConfig | None = None,
) -> DataReport:
    """Return what may be told of a site's data set, with the verdict; never raises for what is wrong with the data.

    Args:
        specification: As for ``load_site``: a folder, an npz file or ``phantom:<site>``.
        classes: The project's classes, in the order of the model's outputs.
        label_map: The site's words for findings -> classes, or the file that says so; None for the folder's own.
        image_size: Pixels per side that the run uses.
        site: The site's name, for messages.
        config: The planned run, to say exactly what would leave the site.
    """
    return examine(specification, classes, label_map, image_size, site=site, config=config).report


def examine(
    specification: str,
    classes: tuple[str, ...],
    label_map: Mapping[str, str] | Path | None,
    image_size: int,
    *,
    site: str = "here",
    config: RunConfig | None = None,
) -> Examination:
    """Return the report and the local list of one reading; arguments as for ``check_data``."""
    listing = list_data(specification, classes, label_map, site=site)
    content = _read(listing, classes, image_size, site)
    unusable = {entry.row for entry in content.skipped}
    looks = look_at_all(listing.files)
    used = {row: look for row, look in looks.items() if row not in unusable}
    same = find_same(content.sets)
    splits = count_splits(content.sets, len(classes))
    leakage, tags, notes = _leakage(listing, same), count_tags(used.values()), _camera_notes(used.values())
    unread = _unread(content.skipped)
    reasons = find_reasons((*listing.problems, *content.problems), leakage, tags)
    report = DataReport(
        verdict="refused" if reasons else "usable",
        reasons=reasons,
        warnings=find_warnings(unread, leakage, tags, notes),
        source=listing.source,
        phantom=bool(listing.phantom),
        classes=classes,
        splits=splits,
        labels=_labels(listing, content, classes),
        unread=unread,
        leakage=leakage,
        tags=tags,
        camera_notes=notes,
        # Of the files in use only: with all of them, those left out would follow from the sum.
        shape=describe_shape(list(used.values())),
        leaves=what_leaves({told.split: told.images for told in splits}, config),
    )
    return Examination(report=report, details=tell_names(listing, content.skipped, content.rows, used, same))


def _read(listing: Listing, classes: tuple[str, ...], image_size: int, site: str) -> Content:
    """Return the images as a run would read them; but identifying files are read, and unmapped words left out."""
    if listing.readable:
        try:
            pool = load_pool(
                site,
                str(SiteSpec(path=listing.path, part=listing.part)),
                image_size=image_size,
                classes=classes,
                label_map=listing.label_map,
                allow_identifying=True,
            )
            return _content(pool, listing, classes, image_size, site)
        except DataError as error:
            return Content(skipped=listing.skipped, problems=(str(error),))
    if not listing.phantom:
        return Content(skipped=listing.skipped)
    try:
        data = make_phantom_site(listing.phantom, num_images=_PHANTOM_IMAGES, image_size=image_size, seed=0)
        data = onto_classes(data, classes)
    except DataError as error:
        return Content(problems=(str(error),))
    sets: dict[str, ImageSet] = {split: getattr(data, split) for split in SPLITS}
    return Content(sets, tuple(range(1, 1 + sum(map(len, sets.values())))))


def _content(pool: Pool, listing: Listing, classes: tuple[str, ...], image_size: int, site: str) -> Content:
    if pool.classes != classes:
        raise DataError(
            f"site {site}: its classes are {', '.join(pool.classes)}, the project's are {', '.join(classes)}. Map the "
            "site's labels to the project's list."
        )
    problems: tuple[str, ...] = ()
    try:
        pool.refuse_empty(site, to_train=True)
    except DataError as error:
        problems = (str(error),)
    dropped = {entry.row for entry in pool.skipped}
    listed = [file.row for file in listing.files] or range(1, 1 + len(pool) + len(dropped))
    rows = [row for row in listed if row not in dropped]
    order = [place for split in SPLITS for place, given in enumerate(pool.splits) if given == split]
    by_split = pool.by_split(image_size=image_size)
    sets: dict[str, ImageSet] = {split: by_split[split] for split in SPLITS}
    return Content(sets, tuple(rows[place] for place in order), pool.skipped, problems)


def _unread(skipped: Sequence[SkippedRow]) -> tuple[Unread, ...]:
    reasons: dict[str, list[int]] = {}
    for entry in skipped:
        if entry.reason != EXCLUDED:
            reasons.setdefault(entry.reason, []).append(entry.row)
    return tuple(_unread_for(reason, sorted(rows)) for reason, rows in sorted(reasons.items()))


def _unread_for(reason: str, rows: Sequence[int]) -> Unread:
    files = hide_few(len(rows))
    # Rows can be counted: where there are few, only the list that stays at the site names them.
    return Unread(reason=reason, files=files, rows=() if files is None else tuple(rows[:MOST_ROWS]))


def _leakage(listing: Listing, same: Sequence[Same]) -> Leakage:
    return Leakage(
        grouped_by=listing.grouped_by,
        torn_groups=hide_few(listing.torn_groups),
        same_within=hide_few(sum(len(alike.positions) - len(alike.splits) for alike in same)),
        same_across=hide_few(sum(len(alike.splits) > 1 for alike in same)),
        same_other_class=hide_few(sum(len(alike.classes) > 1 for alike in same)),
    )


def _labels(listing: Listing, content: Content, classes: tuple[str, ...]) -> Labels:
    counts = sum((part.counts(len(classes)) for part in content.sets.values()), np.zeros(len(classes), np.int64))
    told = tuple(name for name, count in zip(classes, counts.tolist(), strict=True) if count >= MIN_CELL)
    excluded = sum(entry.reason == EXCLUDED and entry.row not in listing.unmapped for entry in content.skipped)
    return Labels(
        told=told,
        few=tuple(name for name in classes if name not in told),
        unmapped_words=len(listing.words),
        unmapped_rows=tuple(sorted(listing.unmapped)[:MOST_ROWS]),
        excluded=hide_few(excluded),
    )


def _camera_notes(looks: Iterable[Look]) -> dict[str, int | None]:
    counts = Counter(kind for look in looks for kind in look.exif)
    return {kind: hide_few(number) for kind, number in sorted(counts.items())}
