"""What comes out: a place that can be written, found out before the work, and JSON that every reader takes."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from popmi_core.errors import ConfigError


def require_writable(out: Path, folder: Path) -> None:
    """Try the folder that ``--out`` needs, or the nearest one above it that is there; nothing is left behind.

    Raises:
        ConfigError: If nothing can be written there.
    """
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(
            f"--out {out}: nothing can be written in {folder} ({error.strerror}). Choose another place."
        ) from error


def as_json(figures: Any, *, indent: int | None = 2) -> str:
    """Return JSON that every reader takes: a figure that is no number (a model that overflows) becomes null."""
    return json.dumps(_finite(figures), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
