"""Find the runs to show: a folder of run folders, one run folder, or one database of many runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from popmi_core.errors import ConfigError, RunError
from server.dashboard.health import is_silent
from server.store import RunReader
from server.store.records import Pulse
from server.store.schema import RECORD_NAME, display_name


class NotFound(LookupError):
    """A run or table that is not there: the pages answer 404."""


class Catalogue(Protocol):
    """What the pages need to know about where runs lie."""

    where: str

    def names(self) -> tuple[str, ...]:
        """Return the runs' names in URLs."""
        ...

    def open(self, key: str) -> tuple[RunReader, int]:
        """Return the reader and id of a run; ``NotFound`` for an unknown key, ``RunError`` for a bad record."""
        ...

    def fingerprints(self) -> dict[str, str]:
        """Return for each run a text that changes when the run does."""
        ...


def open_catalogue(runs: str | Path) -> Catalogue:
    """Return the catalogue for a folder, a run folder or a database URL.

    Raises:
        ConfigError: If ``runs`` is a file.
    """
    if "://" in str(runs):
        return DatabaseCatalogue(str(runs))
    root = Path(runs)
    if root.is_file():
        raise ConfigError(f"{root} is a file, expected a folder of runs. Name the folder that holds the run folders.")
    if (root / RECORD_NAME).is_file():
        whole = root.resolve()
        return FolderCatalogue(whole.parent, only=whole.name)
    return FolderCatalogue(root)


class FolderCatalogue:
    """Each sub-folder with a ``record.sqlite`` is a run; new ones appear by themselves."""

    def __init__(self, root: Path, *, only: str | None = None) -> None:
        self.where = str(root / only if only else root)
        self.root = root
        self._only = only
        self._readers: dict[str, RunReader] = {}
        self._seen: dict[str, tuple[object, Pulse | RunError]] = {}

    def names(self) -> tuple[str, ...]:
        try:
            folders = sorted(item.name for item in self.root.iterdir() if (item / RECORD_NAME).is_file())
        except OSError:
            return ()
        return tuple(name for name in folders if self._only in (None, name))

    def open(self, key: str) -> tuple[RunReader, int]:
        # Compared with the names that exist, never joined to a path unseen: '..' cannot be a key.
        if key not in self.names():
            raise NotFound(key)
        reader = self._reader(key)
        ids = list(reader.pulses())
        if not ids:
            raise RunError(f"record of {key}: holds no run yet. Wait for the run to begin.")
        return reader, ids[-1]

    def fingerprints(self) -> dict[str, str]:
        keys = self.names()
        for gone in self._seen.keys() - set(keys):
            self._seen.pop(gone, None)
            self._readers.pop(gone, None)
        return {key: _fingerprint(self._pulse(key)) for key in keys}

    def _reader(self, key: str) -> RunReader:
        if key not in self._readers:
            self._readers[key] = RunReader(self.root / key / RECORD_NAME)
        return self._readers[key]

    def _pulse(self, key: str) -> Pulse | RunError:
        stamp, settled = self._stamp(key)
        held = self._seen.get(key)
        if held is not None and held[0] == stamp and settled and isinstance(held[1], Pulse):
            return held[1]
        try:
            pulses = list(self._reader(key).pulses().values())
            found: Pulse | RunError = pulses[-1] if pulses else RunError("holds no run yet")
        except RunError as error:
            found = error
        self._seen[key] = (stamp, found)
        return found

    def _stamp(self, key: str) -> tuple[object, bool]:
        stamps = []
        for name in (RECORD_NAME, f"{RECORD_NAME}-wal"):
            try:
                info = (self.root / key / name).stat()
            except OSError:
                continue
            stamps.append((info.st_mtime_ns, info.st_size, info.st_ino))
        newest = max((stamp[0] for stamp in stamps), default=0)
        # File clocks tick in milliseconds: a file written just now is read again although its stamp is the same.
        return stamps, time.time_ns() - newest > 1_000_000_000


class DatabaseCatalogue:
    """Every run of one database; the key is the run's id."""

    def __init__(self, url: str) -> None:
        self._reader = RunReader(url)
        self.where = display_name(url)

    def names(self) -> tuple[str, ...]:
        return tuple(str(run_id) for run_id in self._reader.pulses())

    def open(self, key: str) -> tuple[RunReader, int]:
        if key not in self.names():
            raise NotFound(key)
        return self._reader, int(key)

    def fingerprints(self) -> dict[str, str]:
        try:
            return {str(run_id): _fingerprint(pulse) for run_id, pulse in self._reader.pulses().items()}
        except RunError as error:
            return {"": _fingerprint(error)}


def _fingerprint(found: Pulse | RunError) -> str:
    if isinstance(found, RunError):
        return f"unreadable: {found}"
    return fingerprint(found.revision, found.status, found.heartbeat)


def fingerprint(revision: int, status: str, heartbeat: float) -> str:
    """Return a text that changes when a run does, or falls silent; it ends in ``-1`` for a silent run."""
    return f"{revision}-{status}-{is_silent(status, heartbeat, time.time()):d}"
