"""`popmi server account`: who may sign in on the pages, also where nobody can yet."""

from __future__ import annotations

import getpass
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from popmi_core.errors import AccessError
from popmi_core.protocol import DATABASE_VARIABLE
from server.control.options import HOME, AsJson, Home

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from server.centre.people import Doer

app = typer.Typer(help="Accounts of the pages: who may sign in, and as what.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of the account.")]
Role = Annotated[str, typer.Option(help="viewer, operator or admin.")]
Database = Annotated[
    str | None,
    typer.Option(envvar=DATABASE_VARIABLE, help="File or SQLAlchemy URL of the accounts; default: the home's."),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        allow_dash=True, help="File whose first line is the password, - for standard input; else it is asked."
    ),
]


@app.command()
def add(
    name: Name,
    role: Role = "viewer",
    password_file: PasswordFile = None,
    database: Database = None,
    home: Home = HOME,
) -> None:
    """Let somebody in."""
    from server.centre import accounts

    with _centre(database, home) as centre:
        accounts.clean_role(role)
        made = accounts.add(centre, name, role, _password(password_file), _doer())
    typer.echo(f"{made.name} may sign in as {made.role}")


@app.command("list")
def list_all(as_json: AsJson = False, database: Database = None, home: Home = HOME) -> None:
    """Show all accounts."""
    from server.centre import accounts

    with _centre(database, home) as centre:
        found = accounts.listed(centre)
    if as_json:
        keys = ("name", "role", "created", "disabled", "invited")
        typer.echo(json.dumps([{key: getattr(item, key) for key in keys} for item in found]))
    elif not found:
        typer.echo("no account yet. Add one: popmi server account add NAME --role admin")
    else:
        for item in found:
            state = "disabled" if item.disabled else "no password yet" if item.invited else "may sign in"
            typer.echo(f"{item.name:<24} {item.role:<9} {state}")


@app.command("role")
def change_role(
    name: Name,
    role: Annotated[str, typer.Argument(help="viewer, operator or admin.")],
    database: Database = None,
    home: Home = HOME,
) -> None:
    """Give an account another role; it counts from its next click on."""
    from server.centre import accounts

    with _centre(database, home) as centre:
        accounts.set_role(centre, name, role, _doer())
    typer.echo(f"{name} is {role} now")


@app.command("password")
def change_password(
    name: Name, password_file: PasswordFile = None, database: Database = None, home: Home = HOME
) -> None:
    """Give an account another password; it is signed out everywhere, and failed tries are forgotten."""
    from server.centre import accounts, throttle

    with _centre(database, home) as centre:
        accounts.find(centre, name)
        ended = accounts.set_password(centre, name, _password(password_file), _doer())
        throttle.forgive(centre, throttle.name_key(name))
    typer.echo(f"{name} has a new password; {len(ended)} browsers are signed out")


@app.command()
def disable(name: Name, database: Database = None, home: Home = HOME) -> None:
    """Let nobody in by an account: it is signed out everywhere, its tokens rest."""
    from server.centre import accounts

    with _centre(database, home) as centre:
        accounts.disable(centre, name, _doer())
    typer.echo(f"{name} may sign in no more")


@app.command()
def enable(name: Name, database: Database = None, home: Home = HOME) -> None:
    """Let a disabled account in again, and forget failed tries."""
    from server.centre import accounts, throttle

    with _centre(database, home) as centre:
        accounts.enable(centre, name, _doer())
        throttle.forgive(centre, throttle.name_key(name))
    typer.echo(f"{name} may sign in again")


@app.command()
def remove(name: Name, database: Database = None, home: Home = HOME) -> None:
    """Take an account away, with its tokens."""
    from server.centre import accounts

    with _centre(database, home) as centre:
        accounts.remove(centre, name, _doer())
    typer.echo(f"{name} is removed")


@app.command()
def token(
    account: Name,
    name: Annotated[str, typer.Option(help="What the token is for.")] = ...,  # type: ignore[assignment]
    role: Role = "viewer",
    days: Annotated[int, typer.Option(help="How many days it is good for.")] = 30,
    database: Database = None,
    home: Home = HOME,
) -> None:
    """Make an API token and print it, this once."""
    from server.centre import accounts, tokens

    with _centre(database, home) as centre:
        _, secret = tokens.make(centre, accounts.find(centre, account), name, role, days, _doer())
    typer.echo(secret)


@app.command("tokens")
def list_tokens(as_json: AsJson = False, database: Database = None, home: Home = HOME) -> None:
    """Show all API tokens by number; what they are is kept nowhere."""
    from server.centre import tokens

    with _centre(database, home) as centre:
        found = tokens.listed(centre)
    if as_json:
        keys = ("id", "name", "role", "created", "expires", "used", "revoked")
        told = [{"account": item.account.name} | {key: getattr(item, key) for key in keys} for item in found]
        typer.echo(json.dumps(told))
        return
    for item in found:
        state = "revoked" if item.revoked else "over" if item.expires < time.time() else "good"
        until = time.strftime("%Y-%m-%d", time.gmtime(item.expires))
        typer.echo(f"{item.id:>6} {item.account.name:<24} {item.role:<9} {state:<8} until {until}  {item.name}")


@app.command("revoke-token")
def revoke_token(
    number: Annotated[int, typer.Argument(help="The token's number, see `tokens`.")],
    database: Database = None,
    home: Home = HOME,
) -> None:
    """Let an API token in no more."""
    from server.centre import tokens

    with _centre(database, home) as centre:
        found = tokens.revoke(centre, number, _doer())
    typer.echo(f"token {number} of {found.account.name} is revoked")


@contextmanager
def _centre(database: str | None, home: Path) -> Iterator[Engine]:
    from server.centre import open_centre

    if database is None:
        from server.centre import centre_database
        from server.control.options import open_home

        # Said at once: an account in a folder that is no home would let nobody in.
        database = str(centre_database(open_home(home).folder))
    engine = open_centre(database)
    try:
        yield engine
    finally:
        engine.dispose()


def _password(file: Path | None) -> str:
    """Return the password: the first line of a file or of standard input, else asked twice."""
    if file is not None:
        try:
            lines = (sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise AccessError(
                "password file %(file)s cannot be read: %(why)s. Name another, or - .", file=file, why=error
            ) from error
        return lines[0] if lines else ""
    if not sys.stdin.isatty():
        raise AccessError("there is no terminal to ask for the password at. Say --password-file FILE, or - .")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise AccessError("the two passwords are not the same. Nothing was changed.")
    return password


def _doer() -> Doer:
    from server.centre.people import Doer
    from server.control.home import operator

    return Doer(operator(), "terminal")
