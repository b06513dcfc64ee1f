"""A site's ``labels.csv`` as typed rows: one schema, whichever spreadsheet program wrote it."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from popmi_core.data.images import SkippedRow
from popmi_core.errors import DataError

Split = Literal["train", "val", "test", "external"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "external")

COLUMNS = ("image", "lesion_id", "diagnosis", "age", "sex", "localization", "split")
"""What a prepared ``labels.csv`` holds; only ``image`` and ``diagnosis`` are required of a hospital."""

_OTHER_NAMES = {
    "image": ("image_id", "isic_id", "image_name", "filename", "file"),
    "lesion_id": ("lesion",),
    "patient_id": ("patient",),
    "diagnosis": ("dx", "label", "class"),
    "split": ("lesion_split",),
}
SPLIT_NAMES: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    "external": "external",
}
_MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Row:
    """One usable line of ``labels.csv``.

    Attributes:
        number: Row number as a spreadsheet shows it, the header being 1.
        image: The picture's name or path inside the site's folder, with or without its ending.
        diagnosis: The site's own word for the finding.
        group: Patient or lesion; rows that share it must stay in one split. Unique where the site gives neither.
        split: The site's own split, or None.
        extra: Every column by its lower-case name.
    """

    number: int
    image: str
    diagnosis: str
    group: str
    split: Split | None
    extra: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Manifest:
    """A whole ``labels.csv``: the rows that can be used, and those that cannot."""

    rows: tuple[Row, ...]
    skipped: tuple[SkippedRow, ...]
    has_split: bool
    columns: tuple[str, ...]


def read_manifest(path: Path, *, site: str) -> Manifest:
    """Read ``labels.csv``; a bad row is set aside, a bad table is an error.

    Comma, semicolon or tab; UTF-8 with or without a byte order mark, UTF-16 with one, else Windows-1252 (what
    spreadsheet programs write); header in any case.

    Raises:
        DataError: If the file is missing or no table, lacks a needed column, names an image twice, or puts one
            lesion into two splits.
    """
    manifest = parse_manifest(path, site=site)
    _refuse_duplicates(manifest.rows, site)
    _refuse_straddling(manifest.rows, site)
    return manifest


def parse_manifest(path: Path, *, site: str) -> Manifest:
    """Read ``labels.csv`` as ``read_manifest`` does, whatever its rows say of each other.

    Raises:
        DataError: If the file is missing or no table, or lacks a needed column.
    """
    header, records = _read_table(path, site)
    columns = _columns(header)
    lacking = [name for name in ("image", "diagnosis") if name not in columns]
    if lacking:
        raise DataError(
            f"site {site}: labels.csv has no column {' and no column '.join(map(repr, lacking))} among its "
            f"{len(header)}. Give the first line these names: {','.join(COLUMNS)} (image and diagnosis are needed)."
        )
    rows: list[Row] = []
    skipped: list[SkippedRow] = []
    for number, cells in records:
        parsed = _parse_row(number, cells, columns, len(header))
        (rows if isinstance(parsed, Row) else skipped).append(parsed)  # type: ignore[arg-type]
    names = tuple(sorted(columns, key=lambda name: columns[name]))
    return Manifest(tuple(_with_patients(rows)), tuple(skipped), "split" in columns, names)


def name_rows(numbers: Iterable[int], *, most: int = 8) -> str:
    """Return row numbers for an error message: ``row 4``, ``rows 4, 9 and 12 more``."""
    ordered = sorted(set(numbers))
    if len(ordered) == 1:
        return f"row {ordered[0]}"
    shown = ", ".join(map(str, ordered[:most]))
    return f"rows {shown}" + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def _read_table(path: Path, site: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    text = _read_text(path, site)
    lines = text.splitlines()
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DataError(f"site {site}: labels.csv is no table: {error}. Save it again as CSV (UTF-8).") from error
    if not table:
        raise DataError(f"site {site}: labels.csv is empty. Its first line must be {','.join(COLUMNS)}.")
    return table[0], [(number, cells) for number, cells in enumerate(table[1:], start=2) if any(cells)]


def _read_text(path: Path, site: str) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"site {site}: labels.csv is larger than {_MAX_BYTES >> 20} MiB. Is it a table of labels?")
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"site {site}: labels.csv cannot be read ({error.strerror}). A site's folder holds labels.csv and images/; "
            "check the path and its permissions."
        ) from error
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"", "utf-8-sig"), (b"", "cp1252")):
        if raw.startswith(mark):
            try:
                text = raw.decode(encoding)
            except UnicodeDecodeError:
                continue
            if "\0" not in text:
                return text
    raise DataError(f"site {site}: labels.csv is not text. Save it as CSV (UTF-8).")


def _columns(header: Sequence[str]) -> dict[str, int]:
    """Return name -> position; the schema's own names win over their other names."""
    names = [cell.strip().lower().replace(" ", "_") for cell in header]
    columns = {name: position for position, name in reversed(list(enumerate(names))) if name}
    for name, others in _OTHER_NAMES.items():
        for other in others:
            if name not in columns and other in columns:
                columns[name] = columns[other]
    return columns


def _parse_row(number: int, cells: Sequence[str], columns: Mapping[str, int], width: int) -> Row | SkippedRow:
    if len(cells) != width:
        return SkippedRow(number, f"has {len(cells)} cells, the header has {width}")
    values = {name: cells[position].strip() for name, position in columns.items()}
    for name in ("image", "diagnosis"):
        if not values[name]:
            return SkippedRow(number, f"{name} is empty")
    split: Split | None = None
    if "split" in columns:
        split = SPLIT_NAMES.get(values["split"].lower())
        if split is None:
            return SkippedRow(number, "split is none of train, val, test, external")
    patient, lesion = values.get("patient_id"), values.get("lesion_id")
    # The widest known unit decides: two lesions of one patient share skin, camera and day.
    group = f"patient {patient}" if patient else f"lesion {lesion}" if lesion else f"row {number}"
    return Row(number, values["image"], values["diagnosis"], group, split, values)


def _with_patients(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the rows; one that names only its lesion belongs to the patient whom other rows name for that lesion.

    Lesions that several patients have (numbered from 1 for each) tell nothing.
    """
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.extra.get("patient_id") and row.extra.get("lesion_id"):
            patients[row.extra["lesion_id"]].add(row.group)
    for row in rows:
        known = patients.get(row.extra.get("lesion_id", ""), set())
        yield replace(row, group=next(iter(known))) if len(known) == 1 else row


def _refuse_duplicates(rows: Sequence[Row], site: str) -> None:
    seen: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows:
        seen[row.image].append(row.number)
    twice = [numbers for numbers in seen.values() if len(numbers) > 1]
    if twice:
        raise DataError(
            f"site {site}: labels.csv names {len(twice)} image(s) more than once "
            f"({name_rows(number for numbers in twice for number in numbers)}). Keep one row per image."
        )


def torn_groups(rows: Sequence[Row]) -> set[str]:
    """Return the patients and lesions that lie in more than one split."""
    splits: defaultdict[str, set[Split | None]] = defaultdict(set)
    for row in rows:
        splits[row.group].add(row.split)
    return {group for group, found in splits.items() if len(found) > 1}


def _refuse_straddling(rows: Sequence[Row], site: str) -> None:
    torn = torn_groups(rows)
    if torn:
        raise DataError(
            f"site {site}: {len(torn)} lesion(s) or patient(s) lie in more than one split "
            f"({name_rows(row.number for row in rows if row.group in torn)}), which would flatter every result. "
            "Put each into one split, or leave the column 'split' out and POPMI splits by lesion."
        )
