"""`popmi serve`: look at runs in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from popmi_core.cli import apps

DASHBOARD = "server.dashboard.app:serve"


def serve(
    runs: Annotated[Path, typer.Argument(help="Folder of run folders, or one run folder.")] = Path("runs"),
    host: Annotated[str, typer.Option(help="Address to listen on; this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL of a database of runs, instead of RUNS.")] = None,
) -> None:
    """Show runs, rounds and curves on a page, live; Ctrl-C ends it."""
    shown = f"[{host}]" if ":" in host else host
    apps.load(DASHBOARD)(
        database or runs,
        host=host,
        port=port,
        ready=lambda: typer.echo(
            f"Runs in {'the database' if database else runs}: http://{shown}:{port}  (Ctrl-C ends it)"
        ),
    )
