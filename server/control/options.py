"""What the commands of `popmi server` share: their options, and how they open home and SuperLink."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from popmi_core.errors import SetupError

if TYPE_CHECKING:
    from server.control.flower import FlowerControl
    from server.control.home import ServerHome

Home = Annotated[Path, typer.Option(envvar="POPMI_SERVER_HOME", help="The server's folder.", file_okay=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
HOME = Path("popmi-server")


def open_home(folder: Path) -> ServerHome:
    """Return the home in a folder.

    Raises:
        SetupError: If it is none. Said at once, whatever was asked: not that there is no run in a folder that is no
            home.
    """
    from server.control.home import ServerHome

    home = ServerHome(folder)
    home.settings()
    return home


def open_control(home: ServerHome) -> FlowerControl:
    """Return the SuperLink's control plane.

    Raises:
        SetupError: If a package it needs is not installed.
    """
    settings = home.settings()
    try:
        from server.control.flower import FlowerControl
    except ModuleNotFoundError as error:
        raise SetupError(
            f"this needs the package '{error.name}', which is not installed. Install popmi[server]."
        ) from error
    return FlowerControl(settings.superlink, home.ca)
