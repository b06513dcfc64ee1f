"""Has a site's data set changed on its disk? Told by names, sizes and times of its files, none of which is opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from popmi_core.data.card import FILE_NAME
from popmi_core.data.spec import SiteSpec


def data_stamp(specification: str, *, apart: Path | None = None) -> str:
    """Return a text that is another one once a file of the data set was added, removed, renamed or written to.

    Args:
        specification: As a node is told it: a folder or npz file, perhaps with a label map, or ``phantom:NAME``.
        apart: A folder that does not count, should it lie inside: the site's own, which changes all the time.
    """
    spec = SiteSpec.parse(specification)
    if spec.path is None:
        return specification
    digest = hashlib.sha256(specification.encode("utf-8", "surrogateescape"))
    beside = [spec.path.parent / FILE_NAME, *([spec.label_map] if spec.label_map else [])]
    for line in sorted([*_told(spec.path, apart), *(line for path in beside for line in _told(path, apart))]):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _told(path: Path, apart: Path | None) -> Iterator[str]:
    if not path.is_dir():
        yield _line(path)
        return
    for folder, inner, files in os.walk(path):
        # What is hidden is read by nobody, and may change whenever somebody looks into the folder.
        inner[:] = [name for name in inner if not name.startswith(".") and Path(folder, name) != apart]
        yield from (_line(Path(folder, name)) for name in files if not name.startswith("."))


def _line(path: Path) -> str:
    try:
        told = path.stat()
    except OSError as error:
        return f"{path}\0{error.errno}\n"
    return f"{path}\0{told.st_size}\0{told.st_mtime_ns}\n"
