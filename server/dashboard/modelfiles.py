"""The files of models below a folder of runs: found among those that exist, read without torch."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["safetensors", "onnx", "md", "certificate.json"]
KINDS: tuple[Kind, ...] = ("safetensors", "onnx", "md", "certificate.json")
MODELS = "models"
LONGEST_HEADER = 32_000_000
"""Bytes of a safetensors header beyond which it is no header of ours."""
_LENGTH_BYTES = 8
_HELD = 512


@dataclass(frozen=True)
class ModelFile:
    """One file of a round's model; ``size`` is in bytes, ``stamp`` changes when the file does."""

    path: Path
    kind: Kind
    size: int
    stamp: tuple[int, int, int]


class Shelf:
    """Looks for models below a folder of runs and remembers their hashes while they stay as they are.

    Args:
        runs: Folder that holds the run folders; None where the pages were given no files to show.
    """

    def __init__(self, runs: Path | None) -> None:
        self.runs = runs
        self._digests: dict[tuple[Path, tuple[int, int, int]], str] = {}
        self._lock = threading.Lock()

    def files(self, folder: str, server_round: int) -> Mapping[Kind, ModelFile]:
        """Return the files of one round by kind; none where nothing is there.

        A folder's name comes from a record and a round's number from a link: both are only ever compared with what
        lies on the disk, and a link that leads out of the folder of runs is no file of it.
        """
        home = self._home(folder)
        if home is None:
            return {}
        found: dict[Kind, ModelFile] = {}
        wanted: dict[str, Kind] = {f"round-{server_round:03d}.{kind}": kind for kind in KINDS}
        for item in _entries(home):
            kind = wanted.get(item.name)
            file = None if kind is None else _file(item, kind)
            if file is not None:
                found[file.kind] = file
        return found

    def sizes(self, folder: str) -> Mapping[int, int]:
        """Return the bytes of each round's safetensors file that is there."""
        home = self._home(folder)
        found: dict[int, int] = {}
        for item in [] if home is None else _entries(home):
            middle = item.name.removeprefix("round-").removesuffix(".safetensors")
            if item.name == f"round-{middle}.safetensors" and middle.isascii() and middle.isdigit():
                file = _file(item, "safetensors")
                if file is not None:
                    found[int(middle)] = file.size
        return found

    def digest(self, file: ModelFile) -> str:
        """Return a file's sha256 (hex); read once, as long as it stays the same.

        Raises:
            OSError: If it cannot be read.
        """
        key = (file.path, file.stamp)
        with self._lock:
            if key in self._digests:
                return self._digests[key]
        with file.path.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        with self._lock:
            while len(self._digests) >= _HELD:
                self._digests.pop(next(iter(self._digests)))
            self._digests[key] = found
        return found

    def _home(self, folder: str) -> Path | None:
        if self.runs is None:
            return None
        for item in _entries(self.runs):
            if item.name == folder:
                home = Path(item.path) / MODELS
                return home if _within(home, self.runs) else None
        return None


def read_card(path: Path) -> dict[str, Any] | None:
    """Return the card in a safetensors file's header; None for a file without one or with one that cannot be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if not 0 < length <= LONGEST_HEADER:
                return None
            header = json.loads(file.read(length))
        card = json.loads(header["__metadata__"]["card"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return card if isinstance(card, dict) else None


def read_json(path: Path, *, longest: int = 1_000_000) -> dict[str, Any] | None:
    """Return a small JSON file's object; None where it is none, or of more than ``longest`` bytes."""
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(longest))
    except (OSError, ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def _file(item: os.DirEntry[str], kind: Kind) -> ModelFile | None:
    try:
        if not item.is_file(follow_symlinks=False):
            return None
        told = item.stat(follow_symlinks=False)
    except OSError:
        return None
    return ModelFile(Path(item.path), kind, told.st_size, (told.st_mtime_ns, told.st_size, told.st_ino))


def _within(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except OSError:
        return False
