"""A site's control variate (SCAFFOLD) between two rounds: it stays on the site's own disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from popmi_core.checkpoints import load_state, save_state

FILE = "control.safetensors"


def load_control(folder: Path, run: str) -> dict[str, Tensor] | None:
    """Return the control variate this site kept for ``run``, or None where it has none yet.

    Raises:
        ModelError: If the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    state, notes = load_state(path)
    return state if notes.get("run") == run else None


def save_control(folder: Path, run: str, control: Mapping[str, Tensor]) -> None:
    """Keep the control variate for the next round of ``run``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_state(folder / FILE, control, {"run": run})
