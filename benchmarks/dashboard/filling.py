"""Fill a database with a long run, and write on in it at a steady beat: the other process of the load study.

    python benchmarks/dashboard/filling.py DATABASE RUN_ID FIRST COUNT SECONDS OUT

writes COUNT rounds from FIRST on, one every SECONDS, through the writer that every run uses; OUT gets a line of JSON
for each: the round, when its first row was written and when it was committed (seconds since 1970 UTC).
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import insert, inspect, update
from sqlalchemy.orm import Session

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import believable_federation
import believable_run as believable

from popmi_core.audit import AuditLog
from server.centre import accounts, open_centre, sessions
from server.centre.board import write_board
from server.centre.orders import place
from server.centre.people import Doer
from server.centre.trail import mirror
from server.store import RunWriter
from server.store.cleaning import finite, jsonable
from server.store.schema import Base, Round, Run

SITES = tuple(f"site{number:02d}" for number in range(20))
TROUBLED = 17
"""Every so many rounds a site is late."""
AUDIT_LINES = 2000


class BulkWriter(RunWriter):
    """Writes what any writer would, rows of many rounds at once."""

    def __init__(self, database: str | Path) -> None:
        super().__init__(database, heartbeat=0)
        self._held: dict[type[Base], list[dict[str, Any]]] = defaultdict(list)

    def start_round(self, server_round: int) -> None:
        """Nothing yet: a round is written whole."""

    def finish_round(self, server_round: int, *, notes: Mapping[str, Any] | None = None, **told: Any) -> None:
        """Hold the round; now and then write all that is held."""
        ended = time.time() - 30.0 * (2000 - server_round)
        row = {name: finite(value) if isinstance(value, float) else value for name, value in told.items()}
        row |= {"run_id": self.run_id, "server_round": server_round, "started": ended - 25.0, "finished": ended}
        self._held[Round].append(row | {"outcome": "ok", "notes": jsonable(notes or {})})
        if server_round % 50 == 0:
            self.flush()

    def flush(self) -> None:
        """Write what is held in one transaction."""
        with self._transaction() as session:
            for table, rows in self._held.items():
                if session.get_bind().dialect.name == "sqlite":
                    session.execute(insert(table), rows)
                else:
                    _copy(session, table, rows)
            session.execute(update(Run).where(Run.id == self.run_id).values(status="running", started=time.time()))
            self._touch(session)
        self._held.clear()

    def _replace(self, rows: Sequence[Base]) -> None:
        for row in rows:
            values = {key: value for key, value in vars(row).items() if not key.startswith("_")}
            self._held[type(row)].append(values)


def _copy(session: Session, table: type[Base], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as PostgreSQL takes them fastest."""
    columns = {each.key: each.columns[0].name for each in inspect(table).column_attrs if each.key in rows[0]}
    driver: Any = session.connection().connection.driver_connection
    with (
        driver.cursor() as cursor,
        cursor.copy(f"COPY {table.__tablename__} ({', '.join(columns.values())}) FROM STDIN") as copy,
    ):
        for row in rows:
            values = (row[key] for key in columns)
            copy.write_row([json.dumps(value) if isinstance(value, dict) else value for value in values])


def trouble(server_round: int) -> dict[tuple[int, str], tuple[str, str]]:
    """Return who was late in this round."""
    late = {(server_round, SITES[server_round % len(SITES)]): ("late", "no answer within 60 s")}
    return late if server_round % TROUBLED == 0 else {}


def fill(database: str | Path, name: str, rounds: int, *, planned: int) -> int:
    """Write the first ``rounds`` of a run that goes on; return its id."""
    with BulkWriter(database) as writer:
        run_id = believable.begin(writer, name=name, rounds=planned, sites=SITES)
        for number in range(1, rounds + 1):
            believable.add_round(writer, number, trouble=trouble(number), sites=SITES)
        writer.flush()
        # Left as a killed writer leaves it: the run is not over.
        writer._run_id = None
    return run_id


def fill_centre(database: str | Path, folder: Path, run: str, rounds: int, viewers: int) -> list[str]:
    """Write what the keeper tells the pages, and sign viewers in; return the secrets of their sessions."""
    engine = open_centre(database)
    example = believable_federation.sites(time.time())[0]
    write_board(engine, "sites", [example | {"name": site} for site in SITES])
    write_board(engine, "status", believable_federation.status())
    here = {"here": True, "size": 11_400, "onnx": False}
    write_board(engine, "models", {run: {str(number): here for number in range(1, rounds + 1)}})
    log = AuditLog(folder / "audit.jsonl")
    for number in range(AUDIT_LINES):
        at = {"run": run, "site": SITES[number % len(SITES)], "round": number // 2 + 1}
        log.append("site.late", who="server app", reason="no answer within 60 s", **at)
    mirror(engine, list(enumerate(log.path.read_text().splitlines(), start=1)))
    place(engine, "stop", {"run": run}, who="study", via="page")
    # An admin, so that every page can be asked for.
    person = accounts.add(engine, "study", "admin", "many words, long enough", Doer("terminal", "terminal"))
    limits = sessions.SessionLimits()
    opened = [sessions.begin(engine, person, address="127.0.0.1", agent="", limits=limits) for _ in range(viewers)]
    engine.dispose()
    return [each.secret for each in opened]


def go_on(database: str, run_id: int, first: int, count: int, seconds: float, out: Path) -> None:
    """Write rounds at a steady beat."""
    with RunWriter(database, heartbeat=0) as writer, out.open("w") as told:
        writer.take_over(run_id)
        begun = time.monotonic()
        for place in range(count):
            time.sleep(max(0.0, begun + (place + 1) * seconds - time.monotonic()))
            number, told_at = first + place, time.time()
            believable.add_round(writer, number, trouble=trouble(number), sites=SITES)
            told.write(json.dumps({"round": number, "begun": told_at, "committed": time.time()}) + "\n")
            told.flush()
        writer._run_id = None


if __name__ == "__main__":
    where, run, at, many, beat, file = sys.argv[1:]
    go_on(where, int(run), int(at), int(many), float(beat), Path(file))
