"""What a site keeps from round to round on its own disk: its control variate, and the parts of the model it keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from popmi_core.checkpoints import load_state, save_state
from popmi_core.errors import ModelError, RunError

Kind = Literal["control", "personal"]
KEPT_ROUNDS = 5
"""Rounds kept: a resumed run repeats at most the round in flight, or the few void rounds it failed over."""


def load_kept(folder: Path, kind: Kind, run: str, *, before: int) -> dict[str, Tensor] | None:
    """Return what this site kept of the last round of ``run`` below ``before``, or None where it kept nothing.

    A round that is repeated after a crash starts from what its first attempt started from, not from its result.

    Raises:
        ModelError: If a file is damaged; the text names no place, because it may travel to the server.
    """
    for number, path in sorted(_files(folder, kind, run), reverse=True):
        if number < before:
            try:
                state, notes = load_state(path)
            except ModelError as error:
                raise ModelError(
                    f"what this site kept of round {number} ({kind}) cannot be read, expected a whole file. Restore "
                    f"{path.name} in the site's state folder from a backup, or remove it: the site then starts from "
                    "the round before."
                ) from error
            if notes.get("run") == run:
                return state
    return None


def save_kept(folder: Path, kind: Kind, run: str, server_round: int, tensors: Mapping[str, Tensor]) -> None:
    """Keep what ``server_round`` of ``run`` led to.

    Raises:
        RunError: If the folder cannot be written; the text names no place, because it may travel to the server.
    """
    try:
        save_state(folder / f"{kind}-{server_round:03d}-{_tag(run)}.safetensors", tensors, {"run": run})
    except RunError as error:
        why = error.__cause__.strerror if isinstance(error.__cause__, OSError) else "reason unknown"
        raise RunError(
            f"what the site keeps of round {server_round} ({kind}) cannot be written: {why}. Check room and owner of "
            "its state folder."
        ) from error
    for number, path in _files(folder, kind, run):
        if number <= server_round - KEPT_ROUNDS:
            path.unlink(missing_ok=True)


def _files(folder: Path, kind: Kind, run: str) -> list[tuple[int, Path]]:
    """Return the rounds of a run of which something is kept; of two runs by turns neither overwrites the other's."""
    return [(int(path.stem.split("-")[1]), path) for path in folder.glob(f"{kind}-*-{_tag(run)}.safetensors")]


def _tag(run: str) -> str:
    # The name comes from the server: it is no part of a path.
    return hashlib.sha256(run.encode()).hexdigest()[:12]
