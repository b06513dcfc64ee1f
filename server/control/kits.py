"""The kits of invited sites on the centre's board, where the pages hand them out. A kit holds no secret."""

from __future__ import annotations

import base64
from pathlib import Path

from sqlalchemy.engine import Engine

from popmi_core.errors import SetupError
from server.centre.board import kit_key, write_board


def post_kit(centre: Engine, site: str, path: Path) -> None:
    """Put a kit on the board.

    Raises:
        SetupError: If the kit cannot be read.
        RunError: If the centre cannot be written now.
    """
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise SetupError(
            f"kit {path} cannot be read: {error.strerror}. Make it anew: `popmi server add-site {site}`."
        ) from error
    write_board(centre, kit_key(site), {"name": path.name, "base64": base64.b64encode(packed).decode()})
