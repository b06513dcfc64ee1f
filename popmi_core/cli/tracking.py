"""`popmi mlflow`: a run's figures in MLflow."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from popmi_core.cli import apps

TRACK = "server.tracking:track"


def mlflow(
    record: Annotated[str, typer.Argument(help="Run folder, its record.sqlite, or SQLAlchemy URL of a database.")],
    tracking_uri: Annotated[
        str,
        typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow's server or database, e.g. sqlite:///mlflow.db."),
    ],
    run: Annotated[str | None, typer.Option(help="Name of the run; default: the newest.")] = None,
    experiment: Annotated[str, typer.Option(help="MLflow's experiment; made when missing.")] = "POPMI",
    follow: Annotated[bool, typer.Option(help="Go on while the run goes on.")] = False,
) -> None:
    """Tell MLflow a run's configuration, figures of every round and state; said again, only what is new."""

    def say(told: Any) -> None:
        typer.echo(f"round {told.rounds}: {told.metrics} new figures; the run is {told.state}")

    told = apps.load(TRACK)(record, tracking_uri=tracking_uri, run=run, experiment=experiment, follow=follow, said=say)
    if told.kept:
        typer.echo(f"MLflow keeps its older value of: {', '.join(told.kept)}", err=True)
    typer.echo(f"MLflow's run {told.mlflow_run}")
