"""A hospital's own words for findings, mapped onto the study's classes."""

from __future__ import annotations

import csv
import io
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from popmi_core.data.images import ImageSet, SiteData
from popmi_core.data.labels import DERMOSCOPY_CLASSES
from popmi_core.data.manifest import name_rows
from popmi_core.errors import DataError

FILE_NAMES = ("label_map.toml", "label_map.csv")
EXCLUDE = "exclude"
"""Mapping a word to this leaves its images out on purpose (they are reported, not an error)."""
EXCLUDED = "the label map excludes this label"
_LEFT_OUT = frozenset({EXCLUDE, "ignore", ""})


def read_label_map(path: Path, *, site: str) -> dict[str, str]:
    """Return the site's words -> study classes from ``word = "class"`` lines (TOML) or ``word,class`` rows (CSV).

    Raises:
        DataError: If the file is missing, is neither, or maps one word twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = _toml_pairs(text) if path.suffix.lower() == ".toml" else _csv_pairs(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, csv.Error, ValueError) as error:
        raise DataError(
            f"site {site}: the label map cannot be read ({type(error).__name__}). It holds one 'word,class' row "
            '(CSV) or one \'"word" = "class"\' line (TOML) per word of the site; see docs/data.md.'
        ) from None
    words = [_fold(word) for word, _ in pairs]
    if len(set(words)) != len(words):
        raise DataError(f"site {site}: the label map maps a word twice. Keep one line per word.")
    return dict(pairs)


class LabelMap:
    """From a site's words to class indices; words are compared without case and outer blanks."""

    def __init__(self, classes: tuple[str, ...], words: Mapping[str, str], *, site: str) -> None:
        """Map ``words`` and the class names themselves.

        Raises:
            DataError: If a word is mapped to no class of the study.
        """
        index = {_fold(name): position for position, name in enumerate(classes)}
        unknown = [
            place
            for place, name in enumerate(words.values(), start=1)
            if _fold(name) not in index and _fold(name) not in _LEFT_OUT
        ]
        if unknown:
            # By place, not by name: a map with its columns swapped maps to the site's own words, and this may travel.
            raise DataError(
                f"site {site}: the label map maps {len(unknown)} word(s) to what is no class of the study (entry "
                f"{', '.join(map(str, unknown[:8]))}{' and more' if len(unknown) > 8 else ''}). Map to one of "
                f"{', '.join(classes)}, or to '{EXCLUDE}' (also 'ignore' or '')."
            )
        self.classes = classes
        self._index: dict[str, int | None] = {**index}
        self._index.update({_fold(word): index.get(_fold(name)) for word, name in words.items()})

    def knows(self, word: str) -> bool:
        """Say whether the word has a class or is excluded on purpose."""
        return _fold(word) in self._index

    def target(self, word: str) -> int | None:
        """Return the class index, or None where the map excludes the word."""
        return self._index[_fold(word)]


def explain_unmapped(words: Mapping[int, str], labels: LabelMap, *, site: str) -> str:
    """Return what is wrong with words that have no class, and what to do; empty where each has one.

    Args:
        words: The site's word for every picture, by its row in the table or its place in the listing.
        labels: How words become classes.
        site: Name for the message.
    """
    unmapped = {row: word for row, word in words.items() if not labels.knows(word)}
    if not unmapped:
        return ""
    return (
        f"site {site}: {len({_fold(word) for word in unmapped.values()})} label(s) in {len(unmapped)} row(s) have no "
        f"class ({name_rows(unmapped)}). The study's classes are {', '.join(labels.classes)}. Map the site's words "
        "onto them in label_map.csv or label_map.toml (or to 'exclude'); see docs/data.md."
    )


def infer_classes(words: Iterable[str], mapped: Mapping[str, str]) -> tuple[str, ...]:
    """Return the study's classes where nobody named them.

    The seven dermoscopy classes if every word is one of them, so that sites lacking a class still agree on the order
    of outputs; otherwise the names found, one spelling of each, sorted.
    """
    folded = {_fold(word): name for word, name in mapped.items()}
    found = {folded.get(_fold(word), word.strip()) for word in words}
    return unite_classes([[name for name in found if _fold(name) not in _LEFT_OUT]])


def renamed(names: Sequence[str], mapped: Mapping[str, str]) -> tuple[str, ...]:
    """Return names as the map has them, in their order, each once and without those it leaves out."""
    folded = {_fold(word): name for word, name in mapped.items()}
    if not any(_fold(name) in folded for name in names):
        return tuple(names)
    found = [folded.get(_fold(name), name) for name in names]
    return tuple(dict.fromkeys(name for name in found if _fold(name) not in _LEFT_OUT))


def unite_classes(sites: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Return the classes of several sites together: names that differ in case or blanks only are one class.

    The seven dermoscopy classes if there is no other; else sorted, in the spelling that sorts first.
    """
    spelled: dict[str, str] = {}
    for name in sorted(name for names in sites for name in names):
        spelled.setdefault(_fold(name), name)
    return DERMOSCOPY_CLASSES if set(spelled) <= set(DERMOSCOPY_CLASSES) else tuple(sorted(spelled.values()))


def same_classes(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists are the same classes in the same order; case and blanks do not count."""
    return [_fold(name) for name in one] == [_fold(name) for name in other]


def are_places(classes: Sequence[str]) -> bool:
    """Whether a list names nothing but the places of its classes, as that of a file without names does."""
    return list(classes) == [str(place) for place in range(len(classes))]


def needs_no_map(found: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether targets that index into ``found`` index into ``wanted`` as they are.

    They do where both lists are the same, or where ``found`` holds places without names and both are as long.
    """
    return tuple(found) == tuple(wanted) or (are_places(found) and len(found) == len(wanted))


def onto_classes(data: SiteData, classes: Sequence[str]) -> SiteData:
    """Return the same images with targets that index into ``classes``: the order and number of a model's outputs.

    Where either list holds nothing but places ("0", "1", ...; an npz file without names) and both are as long, targets
    stay as they are; names that there are stay, too.

    Raises:
        DataError: If an image is of a class that ``classes`` does not have.
    """
    theirs, wanted = data.classes, tuple(classes)
    if len(theirs) == len(wanted) and are_places(wanted):
        return data
    if same_classes(theirs, wanted) or (len(theirs) == len(wanted) and are_places(theirs)):
        return replace(data, classes=wanted)
    index = {_fold(name): place for place, name in enumerate(wanted)}
    places_of = np.array([index.get(_fold(name), -1) for name in theirs], np.int64)
    parts = (data.train, data.val, data.test, data.external)
    counts = np.sum([part.counts(len(theirs)) for part in parts], axis=0)
    if unknown := [name for name, place, count in zip(theirs, places_of, counts, strict=True) if place < 0 and count]:
        raise DataError(
            f"site {data.site} has images of {', '.join(unknown)}, the model knows {', '.join(wanted)}. Give images of "
            "the classes it was trained on, or say with a label map which of them yours are (docs/data.md)."
        )
    train, val, test, external = (ImageSet(part.images, places_of[part.targets]) for part in parts)
    return replace(data, classes=wanted, train=train, val=val, test=test, external=external)


def _fold(word: str) -> str:
    return " ".join(word.casefold().split())


def _toml_pairs(text: str) -> list[tuple[str, str]]:
    table = tomllib.loads(text)
    if not all(isinstance(name, str) for name in table.values()):
        raise ValueError("a class name is not a string")
    return list(table.items())


def _csv_pairs(text: str) -> list[tuple[str, str]]:
    lines = text.splitlines()
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row)]
    if any(len(row) != 2 for row in rows):
        raise ValueError("a row has not two cells")
    return [(word.strip(), name.strip()) for word, name in rows if (_fold(word), _fold(name)) != ("label", "class")]
