"""What a site keeps from round to round on its own disk: its control variate, and the parts of the model it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from popmi_core.checkpoints import load_state, save_state

Kind = Literal["control", "personal"]
KEPT_ROUNDS = 5
"""Rounds kept: a resumed run repeats at most the round in flight, or the few void rounds it failed over."""


def load_kept(folder: Path, kind: Kind, run: str, *, before: int) -> dict[str, Tensor] | None:
    """Return what this site kept of the last round of ``run`` below ``before``, or None where it kept nothing.

    A round that is repeated after a crash starts from what its first attempt started from, not from its result.

    Raises:
        ModelError: If a file is damaged.
    """
    # Of another run there may be newer files in the same folder; each says whose it is.
    for number, path in sorted(_files(folder, kind).items(), reverse=True):
        if number < before:
            state, notes = load_state(path)
            if notes.get("run") == run:
                return state
    return None


def save_kept(folder: Path, kind: Kind, run: str, server_round: int, tensors: Mapping[str, Tensor]) -> None:
    """Keep what ``server_round`` of ``run`` led to.

    Raises:
        ModelError: If the folder cannot be written.
    """
    save_state(folder / f"{kind}-{server_round:03d}.safetensors", tensors, {"run": run})
    for number, path in _files(folder, kind).items():
        if number <= server_round - KEPT_ROUNDS:
            path.unlink(missing_ok=True)


def _files(folder: Path, kind: Kind) -> dict[int, Path]:
    return {int(path.stem.rpartition("-")[2]): path for path in folder.glob(f"{kind}-*.safetensors")}
