"""Read a run's long tables as plain columns: what a page of a thousand rounds needs, and only from a round on.

Rows come as tuples straight from the database: 40,000 of them as objects would take seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, cast

from sqlalchemy import Connection, Row, func, select

from server.store.records import MetricRow, RoundRow
from server.store.schema import Metric, Round, Run, SiteRound

SITE_COLUMNS = (
    "server_round", "site", "phase", "outcome", "reason", "num_examples", "seconds", "bytes_up", "bytes_down",
    "epsilon", "train_loss",
)  # fmt: skip
METRIC_COLUMNS = ("server_round", "scope", "split", "name", "value")


@dataclass(frozen=True)
class Mark:
    """One round as the record has it now: a round that was begun again has another ``started`` (seconds)."""

    server_round: int
    started: float
    finished: float | None


@contextmanager
def one_moment(connection: Connection) -> Iterator[Connection]:
    """Have all that is read inside be of one moment, beside a writer."""
    if connection.dialect.name == "sqlite":
        # Python's driver opens a transaction for writes only; without one every question sees its own moment.
        connection.exec_driver_sql("BEGIN")
    else:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    yield connection


def marks(connection: Connection, run_id: int) -> tuple[Mark, ...]:
    """Return every round's beginning and end, in order."""
    query = select(Round.server_round, Round.started, Round.finished).where(Round.run_id == run_id)
    return tuple(Mark(*row) for row in connection.execute(query.order_by(Round.server_round)))


def head(connection: Connection, run_id: int) -> Row[Any] | None:
    """Return the run's own row, None where it is gone."""
    return connection.execute(select(Run.__table__).where(Run.id == run_id)).first()


def site_rows(connection: Connection, run_id: int, since: int) -> Sequence[Row[Any]]:
    """Return ``SITE_COLUMNS`` of what sites did from round ``since`` on, by round, site and phase (train first)."""
    wanted = [getattr(SiteRound, name) for name in SITE_COLUMNS]
    query = select(*wanted).where(SiteRound.run_id == run_id, SiteRound.server_round >= since)
    order = (SiteRound.server_round, SiteRound.site, SiteRound.phase.desc())
    return connection.execute(query.order_by(*order)).all()


def metric_rows(
    connection: Connection, run_id: int, names: Sequence[str], since: int, last: int
) -> Sequence[tuple[int, str, str, str, float | None]]:
    """Return ``METRIC_COLUMNS`` of these figures in rounds ``since`` to ``last``, in no order."""
    wanted = [getattr(Metric, name) for name in METRIC_COLUMNS]
    query = select(*wanted).where(
        Metric.run_id == run_id, Metric.server_round.between(since, last), Metric.name.in_(names)
    )
    return cast("Sequence[tuple[int, str, str, str, float | None]]", connection.execute(query).all())


def newest_round(connection: Connection, table: Any, run_id: int, last: int, *conditions: Any) -> int | None:
    """Return the newest round up to ``last`` of which ``table`` has a row, None where it has none."""
    query = select(func.max(table.server_round)).where(table.run_id == run_id, table.server_round <= last, *conditions)
    found: int | None = connection.execute(query).scalar()
    return found


def round_rows(connection: Connection, run_id: int, since: int) -> tuple[RoundRow, ...]:
    """Return the rounds from ``since`` on, in order, the open one too."""
    wanted = [getattr(Round, field.name) for field in fields(RoundRow)]
    query = select(*wanted).where(Round.run_id == run_id, Round.server_round >= since)
    return tuple(RoundRow(*row) for row in connection.execute(query.order_by(Round.server_round)))


def figures_of_round(connection: Connection, run_id: int, server_round: int) -> tuple[MetricRow, ...]:
    """Return every figure of one round, in no order: an order by name would have SQLite read the whole run."""
    wanted = [getattr(Metric, field.name) for field in fields(MetricRow)]
    query = select(*wanted).where(Metric.run_id == run_id, Metric.server_round == server_round)
    return tuple(MetricRow(*row) for row in connection.execute(query))


def best_figure(connection: Connection, run_id: int, name: str, split: str, scope: str) -> tuple[int, float] | None:
    """Return round and value of the highest figure, the earliest of equals; None where it was never defined."""
    query = (
        select(Metric.server_round, Metric.value)
        .where(Metric.run_id == run_id, Metric.name == name, Metric.split == split, Metric.scope == scope)
        .where(Metric.value.is_not(None))
        .order_by(Metric.value.desc(), Metric.server_round)
        .limit(1)
    )
    found = connection.execute(query).first()
    return None if found is None or found[1] is None else (int(found[0]), float(found[1]))
