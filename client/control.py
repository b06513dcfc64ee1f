"""A site's control variate (SCAFFOLD) between two rounds: it stays on the site's own disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from popmi_core.checkpoints import load_state, save_state

KEPT_ROUNDS = 5
"""Rounds kept: a resumed run repeats at most the round in flight, or the few void rounds it failed over."""


def load_control(folder: Path, run: str, server_round: int) -> dict[str, Tensor] | None:
    """Return the control variate this site had before ``server_round`` of ``run``, or None where it had none.

    A round that is repeated after a crash starts from what its first attempt started from, not from its result.

    Raises:
        ModelError: If a file is damaged.
    """
    # Of another run there may be newer files in the same folder; each says whose it is.
    for number, path in sorted(_files(folder).items(), reverse=True):
        if number < server_round:
            state, notes = load_state(path)
            if notes.get("run") == run:
                return state
    return None


def save_control(folder: Path, run: str, server_round: int, control: Mapping[str, Tensor]) -> None:
    """Keep the control variate that ``server_round`` of ``run`` led to.

    Raises:
        ModelError: If the folder cannot be written.
    """
    save_state(_path(folder, server_round), control, {"run": run})
    for number, path in _files(folder).items():
        if number <= server_round - KEPT_ROUNDS:
            path.unlink(missing_ok=True)


def _path(folder: Path, server_round: int) -> Path:
    return folder / f"control-{server_round:03d}.safetensors"


def _files(folder: Path) -> dict[int, Path]:
    return {int(path.stem.rpartition("-")[2]): path for path in folder.glob("control-*.safetensors")}
