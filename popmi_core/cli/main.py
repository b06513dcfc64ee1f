"""The `popmi` command: its sub-commands, and how errors end it."""

from __future__ import annotations

import os
import sys

# Before anything imports Flower: no call home, no update check, no install at run time.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
# Threads that wait for one another must not spin: beside another busy process that slows training down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer

from popmi_core import __version__
from popmi_core.cli import apps, data
from popmi_core.cli.barrier import barrier
from popmi_core.cli.certify import certify
from popmi_core.cli.distill import distill
from popmi_core.cli.evaluate import evaluate
from popmi_core.cli.fit import fit
from popmi_core.cli.fuse import fuse
from popmi_core.cli.geometry import geometry
from popmi_core.cli.onnx import onnx
from popmi_core.cli.serve import serve
from popmi_core.cli.simulate import simulate
from popmi_core.cli.tracking import mlflow
from popmi_core.errors import PopmiError

commands = typer.Typer(
    name="popmi",
    help="Federated, rotation-equivariant image classifiers for hospitals that cannot share images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
commands.add_typer(data.app, name="data")
commands.add_typer(apps.load(apps.SERVER_COMMANDS), name="server")
commands.add_typer(apps.load(apps.SITE_COMMANDS), name="site")
commands.command()(simulate)
commands.command()(serve)
commands.command()(fuse)
commands.command()(barrier)
commands.command()(geometry)
commands.command()(certify)
commands.command()(evaluate)
commands.command()(fit)
commands.command()(distill)
commands.command()(onnx)
commands.command()(mlflow)


@commands.callback(invoke_without_command=True)
def about(version: bool = typer.Option(False, "--version", help="Show the version and end.")) -> None:
    """Federated, rotation-equivariant image classifiers for hospitals that cannot share images."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def app() -> None:
    """Run the command line; a POPMI error ends it with its message and its own exit code."""
    try:
        commands()
    except PopmiError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
