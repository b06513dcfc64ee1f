"""Where matched models wait until they are averaged: in files if that is where they came from, else in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from popmi_core.checkpoints import FileState, open_state
from popmi_core.errors import RunError
from popmi_core.fusion.update import Update

_ELSEWHERE = "Matched models wait there until all are averaged; TMPDIR names another folder for them, on a disk."


def at_once(action: Callable[[], Any]) -> Any:
    """Do it once: whoever has no room hears so at once."""
    return action()


@dataclass(frozen=True)
class Place:
    """Where shelves stand, and who waits while there is no room.

    Attributes:
        folder: Made when it is needed; None is the system's folder for temporary files.
        patiently: Calls what it is given, again and again while that raises ``RunError``, and returns what it returns.
        hint: What a person can do where there is no room.
    """

    folder: Path | None = None
    patiently: Callable[[Callable[[], Any]], Any] = at_once
    hint: str = _ELSEWHERE


TEMPORARY = Place()


@dataclass
class Shelf:
    """Takes models; memory does not grow with their number where there is a ``folder``."""

    folder: Path | None
    place: Place = TEMPORARY
    _count: int = field(default=0)

    def take(self, update: Update) -> Update:
        """Return the update with its model in a file of the folder, unless it is in a file already.

        Raises:
            RunError: If the file cannot be written; nothing is left of it then.
        """
        if self.folder is None or isinstance(update.state, FileState):
            return update
        self._count += 1
        path = self.folder / f"{self._count}.safetensors"
        return replace(update, state=self.place.patiently(lambda: self._write(update, path)))

    def _write(self, update: Update, path: Path) -> FileState:
        try:
            # Straight into the file: a checkpoint's proof and fixed order would cost three models of memory.
            save_file({name: _alone(tensor) for name, tensor in update.state.items()}, path)
        except (OSError, SafetensorError) as error:
            if path.exists():
                path.unlink()
            raise RunError(f"site {update.site}: cannot write {path}: {error}. {self.place.hint}") from error
        return open_state(path)[0]

    def drop(self, update: Update) -> None:
        """Remove a model that is not needed any more, if it is in the folder."""
        if isinstance(update.state, FileState) and update.state.path.parent == self.folder:
            update.state.path.unlink()


def _alone(tensor: Tensor) -> Tensor:
    """Return the tensor in memory of its own, as safetensors wants it."""
    own = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if own else tensor.clone(memory_format=torch.contiguous_format)


@contextmanager
def shelf_for(updates: Sequence[Update], place: Place = TEMPORARY) -> Iterator[Shelf]:
    """Yield a shelf in a folder of its own at ``place`` if a model is read from a file, else in memory.

    The folder and the models in it are gone afterwards. It holds at most three copies of every model that moved.

    Raises:
        RunError: If there is no such folder.
    """
    if not any(isinstance(update.state, FileState) for update in updates):
        yield Shelf(None)
        return
    with place.patiently(lambda: _folder(place)) as name:
        yield Shelf(Path(name), place)


def _folder(place: Place) -> tempfile.TemporaryDirectory[str]:
    try:
        if place.folder is not None:
            place.folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="popmi-", dir=place.folder)
    except OSError as error:
        raise RunError(f"no folder for matched models: {error}. {place.hint}") from error
