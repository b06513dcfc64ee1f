"""What a check of a site's images found: a report that may be shown around, and a list that stays at the site.

In the report a number is None where it is from 1 to 4, or where it would give such a one away.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from popmi_core import __version__


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitCounts(_Frozen):
    """Images of one split. A count is None where it, or one that follows from it, is of fewer than 5 patients."""

    split: str
    images: int | None
    classes: tuple[int | None, ...] = Field(description="in the order of the project's classes")


class Unread(_Frozen):
    """Files or rows that cannot be used for one reason; rows are numbers only, the table's header being row 1."""

    reason: str
    files: int | None
    rows: tuple[int, ...] = Field(description="the first of them; none where their number is hidden")


class TagCount(_Frozen):
    """An attribute that tells of patients: its name and in how many files it is filled, never what it says."""

    name: str
    kind: str
    files: int | None
    refuses: bool


class Labels(_Frozen):
    """How the site's words for findings meet the project's classes."""

    told: tuple[str, ...] = Field(description="classes with at least 5 images")
    few: tuple[str, ...] = Field(description="classes with fewer than 5 images, or none")
    unmapped_words: int = 0
    unmapped_rows: tuple[int, ...] = ()
    excluded: int | None = Field(default=0, description="images the label map leaves out")


class Leakage(_Frozen):
    """What lies on both sides of a line that a figure depends on."""

    grouped_by: str = Field(description="what keeps images together: patient, lesion, both or nothing")
    torn_groups: int | None = Field(default=0, description="patients or lesions in more than one split")
    same_within: int | None = Field(default=0, description="images with the very pixels of another in their split")
    same_across: int | None = Field(default=0, description="pictures that lie in more than one split")
    same_other_class: int | None = Field(default=0, description="pictures that carry two different classes")


class Shape(_Frozen):
    """Kinds, sizes (width x height in pixels) and colours of the files that are used."""

    kinds: dict[str, int | None] = Field(default_factory=dict)
    smallest: str = ""
    median_side: int = Field(default=0, description="median of the shorter sides")
    largest: str = ""
    colour: int | None = 0
    grey: int | None = 0


class DataReport(_Frozen):
    """A site's data set as far as it may be told; holds no name of a patient or a file, and no value of either."""

    popmi: str = __version__
    verdict: Literal["usable", "refused"]
    reasons: tuple[str, ...] = Field(description="why it is refused")
    warnings: tuple[str, ...]
    source: str = Field(description="the shape the data lie in")
    phantom: bool
    classes: tuple[str, ...]
    splits: tuple[SplitCounts, ...]
    labels: Labels
    unread: tuple[Unread, ...]
    leakage: Leakage
    tags: tuple[TagCount, ...] = Field(description="attributes of DICOM files, most dangerous first")
    camera_notes: dict[str, int | None] = Field(description="kinds of notes in pictures (EXIF) -> files")
    shape: Shape
    leaves: tuple[str, ...] = Field(description="what would leave the site, in words")


class LocalDetail(_Frozen):
    """One thing to look into, with the names that only the site may see."""

    row: int | None
    file: str
    what: str


class LocalDetails(_Frozen):
    """The names behind a report's numbers. STAYS AT THE SITE: holds file names and the site's own words."""

    notice: Literal["STAYS AT THIS SITE: holds file names and the site's own words. Do not send it."] = (
        "STAYS AT THIS SITE: holds file names and the site's own words. Do not send it."
    )
    entries: tuple[LocalDetail, ...]


class Examination(_Frozen):
    """Both results of reading a data set once."""

    report: DataReport
    details: LocalDetails
