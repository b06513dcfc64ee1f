"""Read a round record, beside a writer or long after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Select, func, inspect, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, load_only

from popmi_core.errors import RunError
from server.store.columns import one_moment
from server.store.records import (
    CandidateRow,
    DetailRow,
    EventRow,
    MatchRow,
    MetricRow,
    Pulse,
    RoundRow,
    RunSummary,
    SiteRow,
)
from server.store.schema import (
    Base,
    Candidate,
    Detail,
    Event,
    MatchLayer,
    Metric,
    Round,
    Run,
    SiteRound,
    connect,
    display_name,
)

Value = TypeVar("Value", CandidateRow, DetailRow, EventRow, MatchRow, MetricRow, RoundRow, SiteRow)


class RunReader:
    """Read-only view of a record.

    Args:
        database: Path of an SQLite file or an SQLAlchemy URL.

    Every method raises ``RunError`` when the record is missing, locked or damaged.
    """

    def __init__(self, database: str | Path) -> None:
        self._where = display_name(database)
        self._engine = connect(database, read_only=True)
        # An SQLite file without tables was cut off; a database server has none until the first run writes.
        self._begun = self._engine.dialect.name == "sqlite"
        self._present: set[str] = set()

    def runs(self) -> tuple[RunSummary, ...]:
        """Return every run in the record, oldest first; none before the first was written."""
        done = (
            select(Round.run_id, func.max(Round.server_round).label("done"))
            .where(Round.finished.is_not(None))
            .group_by(Round.run_id)
            .subquery()
        )
        query = select(Run, done.c.done).outerjoin(done, done.c.run_id == Run.id).order_by(Run.id)
        with self._session() as session:
            if not self._has_begun(session):
                return ()
            return tuple(_summary(run, finished or 0) for run, finished in session.execute(query))

    def run(self, run_id: int | None = None, *, name: str | None = None) -> RunSummary:
        """Return one run: the newest of all, with this id, or of this name.

        Raises:
            RunError: If the record holds no such run.
        """
        found = [item for item in self.runs() if run_id in (None, item.id) and name in (None, item.name)]
        if not found:
            which = f" {name or run_id}" if name or run_id else ""
            raise RunError(f"record {self._where}: holds no run{which}. Check the run folder.")
        return found[-1]

    def pulses(self) -> dict[int, Pulse]:
        """Return every run's pulse by id: cheap enough to ask several times a second."""
        with self._session() as session:
            if not self._has_begun(session):
                return {}
            rows = session.execute(select(Run.id, Run.revision, Run.status, Run.heartbeat).order_by(Run.id))
            return {run_id: Pulse(revision, status, heartbeat) for run_id, revision, status, heartbeat in rows}

    def rounds(self, run_id: int, *, since: int = 0) -> tuple[RoundRow, ...]:
        """Return the rounds from ``since`` on in order, the open one too."""
        query = select(Round).where(Round.run_id == run_id, Round.server_round >= since)
        return self._rows(RoundRow, query.order_by(Round.server_round))

    def sites(self, run_id: int, *, since: int = 0) -> tuple[SiteRow, ...]:
        """Return what every site did from round ``since`` on, by round, site and phase."""
        query = select(SiteRound).where(SiteRound.run_id == run_id, SiteRound.server_round >= since)
        order = (SiteRound.server_round, SiteRound.site, SiteRound.phase.desc())
        return self._rows(SiteRow, query.order_by(*order))

    def metrics(
        self,
        run_id: int,
        *,
        name: str | None = None,
        split: str | None = None,
        scope: str | None = None,
        server_round: int | None = None,
        since: int = 0,
    ) -> tuple[MetricRow, ...]:
        """Return figures by name, split, scope and round; each argument narrows."""
        query = select(Metric).where(Metric.run_id == run_id)
        if server_round is not None:
            query = query.where(Metric.server_round == server_round)
        if since > 0:
            query = query.where(Metric.server_round >= since)
        for column, wanted in ((Metric.name, name), (Metric.split, split), (Metric.scope, scope)):
            if wanted is not None:
                query = query.where(column == wanted)
        return self._rows(MetricRow, query.order_by(Metric.name, Metric.split, Metric.scope, Metric.server_round))

    def series(self, run_id: int, name: str, split: str) -> dict[str, dict[int, float | None]]:
        """Return one curve per scope: ``{scope: {round: value}}``, undefined values as None."""
        curves: dict[str, dict[int, float | None]] = {}
        for row in self.metrics(run_id, name=name, split=split):
            curves.setdefault(row.scope, {})[row.server_round] = row.value
        return curves

    def matches(self, run_id: int, server_round: int | None = None) -> tuple[MatchRow, ...]:
        """Return the matching of one round, or of all, by round, site and layer."""
        query = select(MatchLayer).where(MatchLayer.run_id == run_id)
        if server_round is not None:
            query = query.where(MatchLayer.server_round == server_round)
        query = query.order_by(MatchLayer.server_round, MatchLayer.site, MatchLayer.layer)
        if self.has(MatchLayer, "angle"):
            return self._rows(MatchRow, query)
        earlier = ("server_round", "site", "layer", "gain", "identity", "note")
        return self._rows(MatchRow, query.options(load_only(*(getattr(MatchLayer, each) for each in earlier))), earlier)

    def candidates(self, run_id: int, server_round: int | None = None) -> tuple[CandidateRow, ...]:
        """Return what sites found of candidates in one round, or in all, by round, candidate and site."""
        if not self.has(Candidate):
            return ()
        query = select(Candidate).where(Candidate.run_id == run_id)
        if server_round is not None:
            query = query.where(Candidate.server_round == server_round)
        return self._rows(CandidateRow, query.order_by(Candidate.server_round, Candidate.candidate, Candidate.site))

    def details(
        self,
        run_id: int,
        *,
        kind: str | None = None,
        scope: str | None = None,
        server_round: int | None = None,
        since: int = 0,
    ) -> tuple[DetailRow, ...]:
        """Return details from round ``since`` on by round, kind, split and scope; each argument narrows."""
        if not self.has(Detail):
            return ()
        query = select(Detail).where(Detail.run_id == run_id)
        for column, wanted in ((Detail.kind, kind), (Detail.scope, scope), (Detail.server_round, server_round)):
            if wanted is not None:
                query = query.where(column == wanted)
        if since > 0:
            query = query.where(Detail.server_round >= since)
        return self._rows(DetailRow, query.order_by(Detail.server_round, Detail.kind, Detail.split, Detail.scope))

    def events(self, run_id: int, *, last: int = 200) -> tuple[EventRow, ...]:
        """Return the newest ``last`` lines of the diary, oldest of them first."""
        query = select(Event).where(Event.run_id == run_id).order_by(Event.id.desc()).limit(last)
        return self._rows(EventRow, query)[::-1]

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Give a connection on which ``server.store.columns`` reads: all of one moment."""
        with self._session() as session, one_moment(session.connection()) as connection:
            yield connection

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, value: type[Value], query: Select[Any], names: Sequence[str] = ()) -> tuple[Value, ...]:
        names = names or [field.name for field in fields(value)]
        with self._session() as session:
            return tuple(value(**{name: getattr(row, name) for name in names}) for row in session.scalars(query))

    def has(self, table: type[Base], column: str | None = None) -> bool:
        """Return whether the record has a table, or a column of it; one of an earlier release may lack it."""
        name = f"{table.__tablename__}.{column or ''}"
        if name not in self._present:
            with self._session() as session:
                inspector = inspect(session.connection())
                found = inspector.has_table(table.__tablename__) and (
                    column is None or column in {each["name"] for each in inspector.get_columns(table.__tablename__)}
                )
            # Asked again until it is there: a run of this release may add it beside a reader.
            if not found:
                return False
            self._present.add(name)
        return True

    def _has_begun(self, session: Session) -> bool:
        # Asked until it has, not at every question.
        self._begun = self._begun or inspect(session.connection()).has_table(Run.__tablename__)
        return self._begun

    @contextmanager
    def _session(self) -> Iterator[Session]:
        try:
            with Session(self._engine) as session:
                yield session
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or type(error).__name__
            raise RunError(
                f"record {self._where} cannot be read: {cause}. Check that the file is whole and readable."
            ) from error


def _summary(run: Base, rounds_done: int) -> RunSummary:
    values = {field.name: getattr(run, field.name) for field in fields(RunSummary) if field.name != "rounds_done"}
    values |= {"classes": tuple(values["classes"]), "sites": tuple(values["sites"]), "rounds_done": rounds_done}
    return RunSummary(**values)
