"""`popmi server exclude|include|pin|unpin`: who takes part for now, and which model is the one to take."""

from __future__ import annotations

from typing import Annotated

import typer

from server.control.options import HOME, Home, open_home

app = typer.Typer()
Site = Annotated[str, typer.Argument(help="Name of the site.")]
Run = Annotated[str, typer.Argument(help="Name of the run.")]


@app.command()
def exclude(
    name: Site,
    reason: Annotated[str, typer.Option(help="Why; rounds and audit log tell it.")] = ...,  # type: ignore[assignment]
    home: Home = HOME,
) -> None:
    """Leave a site out from the next round on; its key stays good."""
    from server.control.leaving import exclude as leave_out

    leave_out(open_home(home), name, reason=reason)
    typer.echo(f"{name} is left out from the next round on. Take it in again: popmi server include {name}")


@app.command()
def include(name: Site, home: Home = HOME) -> None:
    """Have a site take part again that was left out."""
    from server.control.leaving import include as take_in

    take_in(open_home(home), name)
    typer.echo(f"{name} takes part again from the next round on")


@app.command()
def pin(
    run: Run,
    server_round: Annotated[int, typer.Argument(metavar="ROUND", min=1, help="The round whose model it is.")],
    note: Annotated[str, typer.Option(help="Why this one.")] = "",
    home: Home = HOME,
) -> None:
    """Pin a round's model: `popmi server export` takes it, and the pages show it."""
    from server.control.pins import pin as choose

    made = choose(open_home(home), run, server_round, note=note)
    typer.echo(f"run {run}, round {made.round} is pinned; sha256 {made.sha256}")


@app.command()
def unpin(run: Run, home: Home = HOME) -> None:
    """Have no model of a run pinned."""
    from server.control.pins import unpin as let_go

    let_go(open_home(home), run)
    typer.echo(f"run {run} has no pinned model")
