"""What the record says of the wanted run: in its folder, or in the database the environment names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from popmi_core.protocol import DATABASE_VARIABLE
from server.control.home import ServerHome
from server.store import RunReader, RunSummary, RunWriter
from server.store.schema import RECORD_NAME

# What `server.app` and the record's writer put before a foreign error, and what writer and reader say of a record out
# of reach: no reason a person gave, but a fall.
_FOREIGN = re.compile(r"^(unexpected [A-Z]\w+|[A-Z]\w*:|record .* cannot be (written|read):)")


@dataclass(frozen=True)
class Standing:
    """How far a run is, as its record says.

    Attributes:
        status: The record's word; empty where no record was begun.
        reason: The record's reason.
        rounds_done: Its last finished round.
        rounds_planned: Rounds planned.
        finished: When it ended, seconds since 1970 UTC.
        heartbeat: When whoever writes it last gave a sign of life, seconds since 1970 UTC.
        open_round: Whether a round is going on.
    """

    status: str = ""
    reason: str = ""
    rounds_done: int = 0
    rounds_planned: int = 0
    finished: float | None = None
    heartbeat: float = 0.0
    open_round: bool = False

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on with."""
        return bool(self.status)

    @property
    def interrupted(self) -> bool:
        """Whether it has no end: its server app is at it, or was killed."""
        return self.status in ("waiting", "running")

    @property
    def fell(self) -> bool:
        """Whether it failed by an error nobody foresaw, such as a lost connection, and not for a reason of its own."""
        return self.status == "failed" and bool(_FOREIGN.match(self.reason))


@contextmanager
def open_record(home: ServerHome, run: str) -> Iterator[tuple[RunReader, RunSummary] | None]:
    """Hand out the reader and the newest entry of a run, or None where its record was not begun.

    Raises:
        RunError: If the record cannot be read now.
        ConfigError: If the database's address is unusable.
    """
    database = os.environ.get(DATABASE_VARIABLE, "").strip()
    path = home.run_folder(run) / RECORD_NAME
    if not database and not path.exists():
        yield None
        return
    with RunReader(database or path) as reader:
        found = [item for item in reader.runs() if item.name == run or not database]
        yield (reader, found[-1]) if found else None


def standing(home: ServerHome, run: str) -> Standing:
    """Return how far a run is.

    Raises:
        RunError: If the record cannot be read now.
    """
    with open_record(home, run) as found:
        if found is None:
            return Standing()
        reader, summary = found
        rounds = reader.rounds(summary.id, since=summary.rounds_done)
        return Standing(
            status=summary.status,
            reason=summary.reason or "",
            rounds_done=summary.rounds_done,
            rounds_planned=summary.rounds_planned,
            finished=summary.finished,
            heartbeat=summary.heartbeat,
            open_round=any(row.finished is None for row in rounds),
        )


def end_record(home: ServerHome, run: str, reason: str) -> None:
    """Have the record say that a run failed whose server app cannot say so any more.

    Raises:
        RunError: If the record cannot be written now.
        ConfigError: If the database's address is unusable.
    """
    with open_record(home, run) as found:
        number = None if found is None else found[1].id
    if number is None:
        return
    database = os.environ.get(DATABASE_VARIABLE, "").strip()
    with RunWriter(database or home.run_folder(run) / RECORD_NAME, heartbeat=0) as writer:
        writer.take_over(number)
        writer.finish_run("failed", reason)
