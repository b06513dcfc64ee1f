"""What a data set says of itself before a picture is opened: its files, its words for findings, its groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from client.site.census import Listed
from popmi_core.data import SkippedRow
from popmi_core.data.imagefolder import list_pictures
from popmi_core.data.labelmap import EXCLUDE, LabelMap, explain_unmapped, needs_no_map, read_label_map
from popmi_core.data.manifest import Manifest, parse_manifest, torn_groups
from popmi_core.data.medmnist import list_words
from popmi_core.data.reader import find_pictures, labels_of, words_of
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
        unmapped: The site's own words without a class, by row.
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
    unmapped: Mapping[int, str] = field(default_factory=dict)

    @property
    def words(self) -> dict[str, list[int]]:
        """The site's own words without a class, each with its rows."""
        rows: dict[str, list[int]] = {}
        for row, word in sorted(self.unmapped.items()):
            rows.setdefault(word, []).append(row)
        return dict(sorted(rows.items()))


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
    return _list_classes(shape, path, parsed.part, classes, words, site)


def _list_classes(
    shape: str, path: Path, part: str | None, classes: tuple[str, ...], label_map: Words | Path | None, site: str
) -> Listing:
    """Return what class folders or an npz file say: the words are the folders' names, or the file's classes."""
    listing, named = Listing(_SOURCES[shape], path, part), True
    try:
        if shape == "imagefolder":
            pictures = list(enumerate(list_pictures(path), start=1))
            files = tuple(Listed(place, str(file.relative_to(path)), file) for place, (_, _, file) in pictures)
            listing, found = replace(listing, files=files), {place: label for place, (_, label, _) in pictures}
        else:
            names, found = list_words(path, part=part, site=site)
            named = not needs_no_map(names, classes)
        words = read_label_map(label_map, site=site) if isinstance(label_map, Path) else label_map or {}
        labels = LabelMap(classes, words, site=site)
    except DataError as error:
        return replace(listing, problems=(str(error),))
    return _with_words(listing, found if named else {}, words, labels, site)


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
    return _with_words(listing, {row.number: row.diagnosis for row in manifest.rows}, words, labels, site)


def _with_words(listing: Listing, found: Mapping[int, str], words: Words, labels: LabelMap, site: str) -> Listing:
    """Return the listing, with the words among ``found`` (by row) that have no class."""
    unmapped = {row: word for row, word in found.items() if not labels.knows(word)}
    problem = explain_unmapped(found, labels, site=site)
    return replace(
        listing,
        label_map={**words, **dict.fromkeys(unmapped.values(), EXCLUDE)},
        readable=True,
        problems=(problem,) if problem else (),
        unmapped=unmapped,
    )


def _grouped_by(manifest: Manifest) -> str:
    kinds = {row.group.split(" ", 1)[0] for row in manifest.rows}
    named = sorted(kinds - {"row"})
    if not named:
        return "nothing"
    return " and ".join(named) + (", some rows by nothing" if "row" in kinds else "")
