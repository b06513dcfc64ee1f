"""What a data set says of itself before a picture is opened: its files, its words for findings, its groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from client.site.census import Listed
from popmi_core.data import SkippedRow
from popmi_core.data.imagefolder import list_pictures
from popmi_core.data.labelmap import EXCLUDE
from popmi_core.data.manifest import Manifest, parse_manifest, torn_groups
from popmi_core.data.reader import explain_unmapped, find_pictures, labels_of, words_of
from popmi_core.data.shape import shape_of
from popmi_core.data.spec import SiteSpec
from popmi_core.errors import DataError

Words = Mapping[str, str]

_SOURCES = {"site": "folder with labels.csv", "imagefolder": "class folders", "npz": "MedMNIST npz file"}


@dataclass(frozen=True)
class Listing:
    """A data set without its pixels.

    Attributes:
        source: Its shape, in words.
        path: Where it lies; None for the phantom or where nothing is.
        part: Which of the sites inside one npz file.
        phantom: The phantom's site; empty for real data.
        label_map: Words -> classes; words that have no class are mapped to *exclude*, so that the rest can be counted.
        files: Every file, by row of labels.csv or place in the folders.
        readable: Whether the images can be read at all.
        problems: Why the data set cannot be used, as far as the table alone shows it.
        skipped: Rows of the table that cannot be used.
        grouped_by: What keeps images together when they are split.
        torn: Rows of patients or lesions that lie in more than one split.
        torn_groups: Number of those patients or lesions.
        unmapped: Rows whose word has no class.
        words: The site's own words without a class, with the number of rows.
    """

    source: str
    path: Path | None = None
    part: str | None = None
    phantom: str = ""
    label_map: Words | Path | None = None
    files: tuple[Listed, ...] = ()
    readable: bool = False
    problems: tuple[str, ...] = ()
    skipped: tuple[SkippedRow, ...] = ()
    grouped_by: str = "nothing"
    torn: tuple[int, ...] = ()
    torn_groups: int = 0
    unmapped: tuple[int, ...] = ()
    words: tuple[tuple[str, int], ...] = ()


def list_data(specification: str, classes: tuple[str, ...], label_map: Words | Path | None, *, site: str) -> Listing:
    """Return what a data set says of itself; what is wrong with it becomes one of its problems."""
    parsed = SiteSpec.parse(specification)
    if parsed.phantom is not None:
        return Listing("phantom", phantom=parsed.phantom)
    try:
        return _list_files(parsed, classes, parsed.label_map or label_map, site)
    except OSError as error:
        problem = (
            f"site {site}: a file or folder of the data set cannot be read ({error.strerror}). Give the user that runs "
            "POPMI the right to read all of it, and to open every folder."
        )
        return Listing("nothing", problems=(problem,))


def _list_files(parsed: SiteSpec, classes: tuple[str, ...], words: Words | Path | None, site: str) -> Listing:
    path = parsed.path
    shape = None if path is None else shape_of(path)
    if path is None or shape not in _SOURCES:
        problem = (
            f"site {site}: there are no images of a shape POPMI reads at the given place: neither labels.csv with "
            "images/, nor class folders of pictures, nor a MedMNIST npz file. Check the path; see docs/data.md."
        )
        return Listing("nothing", problems=(problem,))
    if shape == "site":
        return _list_table(path, classes, words, site)
    files: tuple[Listed, ...] = ()
    if shape == "imagefolder":
        pictures = (file for _, _, file in list_pictures(path))
        files = tuple(Listed(row, str(file.relative_to(path)), file) for row, file in enumerate(pictures, start=1))
    return Listing(_SOURCES[shape], path, parsed.part, label_map=words, files=files, readable=True)


def _list_table(path: Path, classes: tuple[str, ...], label_map: Words | Path | None, site: str) -> Listing:
    try:
        manifest = parse_manifest(path / "labels.csv", site=site)
    except DataError as error:
        return Listing(_SOURCES["site"], path, problems=(str(error),))
    found = find_pictures(manifest.rows, path)
    files = tuple(
        Listed(row.number, row.image, place if isinstance(place, Path) else None)
        for row, place in zip(manifest.rows, found, strict=True)
    )
    groups = torn_groups(manifest.rows)
    listing = Listing(
        _SOURCES["site"],
        path,
        files=files,
        skipped=manifest.skipped,
        grouped_by=_grouped_by(manifest),
        torn=tuple(row.number for row in manifest.rows if row.group in groups),
        torn_groups=len(groups),
    )
    try:
        words = words_of(path, label_map, site)
        labels = labels_of(manifest.rows, classes, words, site=site)
    except DataError as error:
        return replace(listing, problems=(str(error),))
    unmapped = [row for row in manifest.rows if not labels.knows(row.diagnosis)]
    counts: dict[str, int] = {}
    for row in unmapped:
        counts[row.diagnosis] = counts.get(row.diagnosis, 0) + 1
    problem = explain_unmapped(manifest.rows, labels, site=site)
    return replace(
        listing,
        label_map={**words, **dict.fromkeys(counts, EXCLUDE)},
        readable=True,
        problems=(problem,) if problem else (),
        unmapped=tuple(row.number for row in unmapped),
        words=tuple(sorted(counts.items())),
    )


def _grouped_by(manifest: Manifest) -> str:
    kinds = {row.group.split(" ", 1)[0] for row in manifest.rows}
    named = sorted(kinds - {"row"})
    if not named:
        return "nothing"
    return " and ".join(named) + (", some rows by nothing" if "row" in kinds else "")
