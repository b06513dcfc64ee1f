"""The list that stays at the site: which files and words stand behind a report's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from client.site.census import Same
from client.site.datareport import LocalDetail, LocalDetails
from client.site.listing import Listing
from popmi_core.data import SkippedRow
from popmi_core.data.labelmap import EXCLUDED
from popmi_core.data.look import Look
from popmi_core.data.manifest import name_rows

MOST_ROWS = 20
"""Rows that are named of one word or one reason."""


def tell_names(
    listing: Listing,
    skipped: Sequence[SkippedRow],
    rows: Sequence[int],
    used: Mapping[int, Look],
    same: Sequence[Same],
) -> LocalDetails:
    """Return every file and word to look into.

    Args:
        listing: The data set without its pixels.
        skipped: What could not be used.
        rows: Row of every image that was read, by its position among them.
        used: What the files that would be used say of themselves, by row.
        same: Pictures that are alike.
    """
    names = {file.row: file.name for file in listing.files}
    entries = [
        *(
            LocalDetail(row=entry.row, file=names.get(entry.row, ""), what=entry.reason)
            for entry in skipped
            if entry.reason != EXCLUDED
        ),
        *(
            LocalDetail(
                row=None,
                file="",
                what=f"word without a class: {word!r} in {len(numbers)} row(s): {name_rows(numbers, most=MOST_ROWS)}",
            )
            for word, numbers in listing.words.items()
        ),
        *(
            LocalDetail(row=row, file=names.get(row, ""), what="its patient or lesion lies in more than one split")
            for row in listing.torn
        ),
        *_identifying(used, names),
        *_copies(same, rows, names),
    ]
    return LocalDetails(entries=tuple(entries))


def _identifying(used: Mapping[int, Look], names: Mapping[int, str]) -> Iterator[LocalDetail]:
    for row, look in sorted(used.items()):
        if look.marks is not None and look.marks.identifying:
            what = f"tells who the patient is: {', '.join(sorted(look.marks.identifying))}"
            yield LocalDetail(row=row, file=names.get(row, ""), what=what)
        if look.exif:
            what = f"carries a camera's note: {', '.join(sorted(look.exif))}"
            yield LocalDetail(row=row, file=names.get(row, ""), what=what)


def _copies(same: Sequence[Same], rows: Sequence[int], names: Mapping[int, str]) -> Iterator[LocalDetail]:
    for alike in same:
        first, *others = (rows[position] for position in alike.positions)
        where = "in another split" if len(alike.splits) > 1 else "in the same split"
        for row in others:
            yield LocalDetail(row=row, file=names.get(row, ""), what=f"the same pixels as row {first}, {where}")
