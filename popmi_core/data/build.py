"""Build a folder completely or not at all, whoever else tries and whenever the power fails."""

from __future__ import annotations

import csv
import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from popmi_core.data.manifest import COLUMNS
from popmi_core.errors import DataError


@contextmanager
def building(target: Path) -> Iterator[Path | None]:
    """Yield an empty folder that becomes ``target`` when the block ends well, or None if ``target`` is there already.

    A second process that builds beside it waits. What a killed process left behind is cleared away by the next.

    Raises:
        DataError: If the place cannot be written, or the disk is full.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):
            if target.exists() and any(target.iterdir()):
                yield None
                return
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                yield partial
                partial.replace(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{target} cannot be written: {error.strerror}. Choose a place with room and permission to write "
            "(POPMI_CACHE names the cache)."
        ) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # The folder itself carries the lock: no lock file stays behind, and the kernel drops it when a process dies.
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_labels(folder: Path, rows: Iterable[Mapping[str, str]], columns: Sequence[str] = COLUMNS) -> None:
    """Write ``folder/labels.csv``; columns a row lacks stay empty (unknown)."""
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def safe_name(text: str) -> str:
    """Return the text as a folder name: lower case, and only letters, digits, dot, dash and underscore."""
    return re.sub(r"[^a-z0-9_.-]+", "_", text.lower()).strip("._") or "unknown"
