"""Where results go: found out before the work, not after it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from popmi_core.errors import ConfigError


def require_writable(out: Path, folder: Path) -> None:
    """Make the folder that ``--out`` needs and try it.

    Raises:
        ConfigError: If nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"--out {out}: nothing can be written in {folder} ({error.strerror}). Choose another place."
        ) from error
