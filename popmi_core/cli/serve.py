"""`popmi serve`: look at runs in a browser, and at a server's federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from popmi_core.cli import apps
from popmi_core.errors import ConfigError

PAGES = "server.dashboard.serving:serve"
BINDING = "server.dashboard.access.binding:Binding"
LIMITS = "server.centre.sessions:SessionLimits"
CENTRE = "server.centre:centre_database"
LOCAL = ["127.0.0.1", "::1"]


def serve(
    runs: Annotated[Path | None, typer.Argument(help="Folder of run folders, or one run folder; default runs.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    home: Annotated[
        Path | None, typer.Option(help="A server's folder: its runs, and its accounts.", file_okay=False)
    ] = None,
    centre: Annotated[
        str | None, typer.Option(help="File or SQLAlchemy URL of the accounts, if neither the home's nor --database.")
    ] = None,
    runs_folder: Annotated[
        Path | None, typer.Option("--runs", help="Folder with the runs' model files, if not RUNS.", file_okay=False)
    ] = None,
    database: Annotated[
        # From the environment as well: on a command line every user of the machine could read its password.
        str | None, typer.Option(envvar="POPMI_DATABASE", help="SQLAlchemy URL of a database of runs, instead of RUNS.")
    ] = None,
    published_on: Annotated[
        str | None,
        typer.Option(
            envvar="POPMI_PAGES_PUBLISHED",
            help="In a container: the machine's address on which the port is published, 127.0.0.1 and no other.",
        ),
    ] = None,
    published_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="In a container: the machine's port, if it is another.")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(envvar="POPMI_PAGES_TLS_CERTIFICATE", help="PEM file; the pages then speak TLS.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar="POPMI_PAGES_TLS_KEY", help="PEM file of its key.")] = None,
    behind_proxy: Annotated[
        str | None,
        typer.Option(envvar="POPMI_PAGES_BEHIND_PROXY", help="https://NAME of a proxy that speaks TLS for the pages."),
    ] = None,
    proxy_address: Annotated[
        list[str] | None,
        typer.Option(
            envvar="POPMI_PAGES_PROXY_ADDRESS", help="Address or network of that proxy; default: this machine."
        ),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(envvar="POPMI_PAGES_NAME", help="Another host name by which the pages answer.")
    ] = None,
    metrics_name: Annotated[
        str | None,
        typer.Option(envvar="POPMI_METRICS_NAME", help="Host name by which Prometheus may ask for /metrics."),
    ] = None,
    idle_hours: Annotated[float, typer.Option(min=0.1, max=168, help="Signed out after so long without an act.")] = 8,
    session_hours: Annotated[float, typer.Option(min=0.1, max=168, help="Signed out after so long in any case.")] = 24,
) -> None:
    """Show runs, sites and models on pages, live; Ctrl-C ends it."""
    if home is not None and runs is not None:
        raise ConfigError("RUNS and --home go not together: a home has its own runs. Leave one out.")
    if home is not None and not (home / "server.toml").is_file():
        raise ConfigError(f"{home} is no server's home: it has no server.toml. Make one with `popmi server init`.")
    folder = runs if runs is not None else home / "runs" if home is not None else Path("runs")
    apps.load(PAGES)(
        database or folder,
        apps.load(BINDING)(
            host=host,
            port=port,
            published_on=published_on,
            published_port=published_port,
            certificate=tls_certificate,
            key=tls_key,
            behind_proxy=behind_proxy,
            proxy_addresses=tuple(proxy_address or LOCAL),
            names=tuple(name or ()),
            metrics_name=metrics_name,
        ),
        centre=_centre(centre, home, database),
        runs_folder=runs_folder or (folder if home is not None else None),
        limits=apps.load(LIMITS)(idle_seconds=idle_hours * 3600, whole_seconds=session_hours * 3600),
        ready=lambda opened: _tell(opened, "the database" if database else folder),
    )


def _centre(said: str | None, home: Path | None, database: str | None) -> Any:
    """Return where the accounts are: as said, in a database that is no file, in the home; None: nobody signs in."""
    if said is not None:
        return said
    if database is not None and not database.startswith("sqlite:"):
        return database
    return None if home is None else apps.load(CENTRE)(home)


def _tell(opened: Any, where: str | Path) -> None:
    typer.echo(f"Runs in {where}: {opened.address}  (Ctrl-C ends it)")
    if opened.first_admin is not None:
        typer.echo(
            "There is no account yet. Whoever opens this address within an hour becomes the first admin:\n"
            f"    {opened.first_admin}"
        )
