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
    published_on: Annotated[
        str | None,
        typer.Option(
            envvar="POPMI_PAGES_PUBLISHED",
            help="In a container: the machine's address on which the port is published, 127.0.0.1 and no other.",
        ),
    ] = None,
    metrics_name: Annotated[
        str | None,
        typer.Option(envvar="POPMI_METRICS_NAME", help="Host name by which Prometheus may ask for /metrics."),
    ] = None,
    database: Annotated[
        # From the environment as well: on a command line every user of the machine could read its password.
        str | None, typer.Option(envvar="POPMI_DATABASE", help="SQLAlchemy URL of a database of runs, instead of RUNS.")
    ] = None,
) -> None:
    """Show runs, rounds and curves on a page, live; Ctrl-C ends it."""
    shown = f"[{host}]" if ":" in host else host
    apps.load(DASHBOARD)(
        database or runs,
        host=host,
        port=port,
        published_on=published_on,
        metrics_name=metrics_name,
        ready=lambda: typer.echo(
            f"Runs in {'the database' if database else runs}: http://{shown}:{port}  (Ctrl-C ends it)"
        ),
    )
