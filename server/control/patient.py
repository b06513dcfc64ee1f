"""Flower's SuperLink, patient with its own database.

Flower waits 5 s for SQLite's one write lock, then answers "500: database is locked", upon which its runner ends and
sites' answers are lost. On a busy disk, writes of a few megabytes for each site take longer than that. Waiting costs
nothing: the request's own time limit is what counts.
"""

from __future__ import annotations

from flwr.supercore import sql_mixin
from flwr.superlink.cli import flower_superlink

from popmi_core.errors import SetupError

WAIT_MILLISECONDS = 60_000


def wait_longer() -> None:
    """Have every connection to the SuperLink's database wait for its lock up to ``WAIT_MILLISECONDS``.

    Raises:
        SetupError: If this version of Flower sets it elsewhere.
    """
    # Its module's own name for them is what counts, and is not public.
    names = vars(sql_mixin)
    pragmas = dict(names.get("SQLITE_PRAGMAS", ()))
    if "busy_timeout" not in pragmas:
        raise SetupError("this version of Flower sets no busy_timeout, expected flwr 1.41. Install popmi[server].")
    names["SQLITE_PRAGMAS"] = tuple((pragmas | {"busy_timeout": str(WAIT_MILLISECONDS)}).items())


def main() -> None:
    """Be the SuperLink; the arguments are ``flower-superlink``'s."""
    wait_longer()
    flower_superlink()


if __name__ == "__main__":
    main()
