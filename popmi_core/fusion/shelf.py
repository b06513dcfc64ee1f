"""Where matched models wait until they are averaged: in files if that is where they came from, else in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from popmi_core.checkpoints import FileState, open_state
from popmi_core.errors import RunError
from popmi_core.fusion.update import Update

_ELSEWHERE = "Matched models wait there until all are averaged; TMPDIR names another folder for them, on a disk."


@dataclass
class Shelf:
    """Takes models; memory does not grow with their number where there is a ``folder``."""

    folder: Path | None
    _count: int = field(default=0)

    def take(self, update: Update) -> Update:
        """Return the update with its model in a file of the folder, unless it is in a file already.

        Raises:
            RunError: If the file cannot be written.
        """
        if self.folder is None or isinstance(update.state, FileState):
            return update
        self._count += 1
        path = self.folder / f"{self._count}.safetensors"
        try:
            # Straight into the file: a checkpoint's proof and fixed order would cost three models of memory.
            save_file({name: _alone(tensor) for name, tensor in update.state.items()}, path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"site {update.site}: cannot write {path}: {error}. {_ELSEWHERE}") from error
        return replace(update, state=open_state(path)[0])

    def drop(self, update: Update) -> None:
        """Remove a model that is not needed any more, if it is in the folder."""
        if isinstance(update.state, FileState) and update.state.path.parent == self.folder:
            update.state.path.unlink()


def _alone(tensor: Tensor) -> Tensor:
    """Return the tensor in memory of its own, as safetensors wants it."""
    own = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if own else tensor.clone(memory_format=torch.contiguous_format)


@contextmanager
def shelf_for(updates: Sequence[Update]) -> Iterator[Shelf]:
    """Yield a shelf in the system's folder for temporary files if a model is read from a file, else in memory.

    The folder and the models in it are gone afterwards. It holds at most three copies of every model that moved.

    Raises:
        RunError: If there is no such folder.
    """
    if not any(isinstance(update.state, FileState) for update in updates):
        yield Shelf(None)
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix="popmi-")
    except OSError as error:
        raise RunError(f"no folder for temporary files: {error}. {_ELSEWHERE}") from error
    with folder as name:
        yield Shelf(Path(name))
