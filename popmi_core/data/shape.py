"""What lies at a path?"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from popmi_core.data.card import FILE_NAME
from popmi_core.data.imagefolder import is_imagefolder
from popmi_core.data.prepare.dermoscopy import INDEX

Shape = Literal["prepared", "raw", "site", "sites", "imagefolder", "npz"]


def shape_of(path: Path) -> Shape | None:
    """Return which of the shapes POPMI reads lies at ``path``, or None.

    ``prepared`` has a dataset.json, ``raw`` the dermoscopy index, ``site`` a labels.csv, ``sites`` folders that do.
    """
    if path.is_file():
        return "npz" if path.suffix == ".npz" else None
    if not path.is_dir():
        return None
    marks: tuple[tuple[str, Shape], ...] = ((FILE_NAME, "prepared"), (INDEX, "raw"), ("labels.csv", "site"))
    for name, shape in marks:
        if (path / name).is_file():
            return shape
    if site_folders(path):
        return "sites"
    return "imagefolder" if is_imagefolder(path) else None


def site_folders(path: Path) -> list[Path]:
    """Return the folders directly below that hold a labels.csv, sorted."""
    return [child for child in _folders(path) if (child / "labels.csv").is_file()]


def nested_sets(path: Path) -> list[Path]:
    """Return the prepared or raw data sets directly below, or where there are none the npz files; sorted."""
    prepared = [child for child in _folders(path) if (child / FILE_NAME).is_file() or (child / INDEX).is_file()]
    return prepared or sorted(path.glob("*.npz"))


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
