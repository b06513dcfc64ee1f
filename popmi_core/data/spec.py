"""The text that tells a site where its images lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

_PHANTOM = "phantom:"
_CLASSES = "#classes="
_PART = "#part="
_LABELS = "#labels="


@dataclass(frozen=True)
class SiteSpec:
    """``/path/to/site``, optionally ``#part=NAME`` of a file with several sites, ``#labels=FILE``, ``#classes=a,b,c``.

    Attributes:
        path: A folder or an npz file; None for the phantom.
        phantom: The phantom's site, or None.
        part: Which of the sites inside one npz file, or None.
        classes: The study's classes where no ``dataset.json`` beside the folder says them.
        label_map: File that maps the site's words for findings onto the study's classes; else one in the folder.
    """

    path: Path | None = None
    phantom: str | None = None
    part: str | None = None
    classes: tuple[str, ...] | None = None
    label_map: Path | None = None

    @classmethod
    def phantom_of(cls, site: str) -> SiteSpec:
        """Return the spec of a phantom site."""
        return cls(phantom=site)

    @classmethod
    def parse(cls, text: str) -> SiteSpec:
        """Read what ``str()`` of a spec wrote; a plain path is the common case."""
        if text.startswith(_PHANTOM):
            return cls(phantom=text.removeprefix(_PHANTOM))
        text, _, classes = text.partition(_CLASSES)
        text, _, labels = text.partition(_LABELS)
        text, _, part = text.partition(_PART)
        return cls(
            path=Path(text).expanduser(),
            part=part or None,
            classes=tuple(map(unquote, classes.split(","))) if classes else None,
            label_map=Path(labels).expanduser() if labels else None,
        )

    def __str__(self) -> str:
        if self.phantom is not None:
            return f"{_PHANTOM}{self.phantom}"
        part = f"{_PART}{self.part}" if self.part else ""
        labels = f"{_LABELS}{self.label_map}" if self.label_map else ""
        # A class name may hold a comma.
        classes = ",".join(quote(name, safe=" ") for name in self.classes or ())
        return f"{self.path}{part}{labels}" + (f"{_CLASSES}{classes}" if classes else "")
