"""Put what sites send on disk as it comes: the server's memory then does not grow with the number of sites."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from popmi_core.checkpoints import FileState
from popmi_core.errors import RunError
from popmi_core.fusion.shelf import TEMPORARY, Place
from server.results import MatchedUpdate, TrainedUpdate

State = Mapping[str, Tensor]
Patiently = Callable[[Callable[[], Any]], Any]
HINT = "Check that the folder can be written and has room."


class Spool:
    """Files of one round below a folder; nothing in them outlives the round.

    Args:
        folder: Made when the first update comes; None keeps everything in memory, as a simulation does.
        patiently: Calls what it is given, again and again while there is no room, and returns what that returns.
    """

    def __init__(self, folder: Path | None, patiently: Patiently = lambda action: action()) -> None:
        self.folder, self._patiently = folder, patiently

    def raw(self, update: TrainedUpdate) -> TrainedUpdate:
        """Return the update with its model, change and Gram matrices in files.

        Raises:
            RunError: If there is no room.
        """
        change = update.control_change
        return replace(
            update,
            state=self._filed(f"{update.site}.raw", update.state),
            control_change=None if change is None else self._filed(f"{update.site}.change", change),
            grams=self._filed(f"{update.site}.grams", update.grams),
        )

    def matched(self, update: MatchedUpdate) -> MatchedUpdate:
        """Return the matched update with its model in a file; one that lies in a file already stays there.

        Raises:
            RunError: If there is no room.
        """
        return replace(update, state=self._filed(f"{update.site}.matched", update.state))

    @property
    def place(self) -> Place:
        """Where models that a fusion rule moved wait: on the same disk, and cleared away with the rest."""
        return TEMPORARY if self.folder is None else Place(self.folder, self._patiently, HINT)

    def clear(self) -> None:
        """Remove the round's files, and what a killed process left."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _filed(self, name: str, tensors: State) -> State:
        if self.folder is None or not tensors or isinstance(tensors, FileState):
            return tensors
        path = self.folder / f"{name}.safetensors"
        filed: State = self._patiently(lambda: self._write(path, tensors))
        return filed

    def _write(self, path: Path, tensors: State) -> State:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        except (OSError, SafetensorError) as error:
            path.unlink(missing_ok=True)
            raise RunError(f"cannot write {path}: {error}. {HINT}") from error
        return FileState(path)
