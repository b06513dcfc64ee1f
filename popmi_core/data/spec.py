"""The text that tells a site where its images lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

_PHANTOM = "phantom:"
_CLASSES = "#classes="
_PART = "#part="


@dataclass(frozen=True)
class SiteSpec:
    """``/path/to/site``, optionally ``#part=NAME`` of a file with several sites and ``#classes=a,b,c``.

    Attributes:
        path: A folder or an npz file; None for the phantom.
        phantom: The phantom's site, or None.
        part: Which of the sites inside one npz file, or None.
        classes: The study's classes where no ``dataset.json`` beside the folder says them.
    """

    path: Path | None = None
    phantom: str | None = None
    part: str | None = None
    classes: tuple[str, ...] | None = None

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
        text, _, part = text.partition(_PART)
        return cls(
            Path(text).expanduser(), None, part or None, tuple(map(unquote, classes.split(","))) if classes else None
        )

    def __str__(self) -> str:
        if self.phantom is not None:
            return f"{_PHANTOM}{self.phantom}"
        part = f"{_PART}{self.part}" if self.part else ""
        # A class name may hold a comma.
        classes = ",".join(quote(name, safe=" ") for name in self.classes or ())
        return f"{self.path}{part}" + (f"{_CLASSES}{classes}" if classes else "")
