"""The tables of a round record, in types that SQLite and PostgreSQL share.

Times are seconds since 1970-01-01 UTC, durations are seconds, sizes are bytes. A NULL figure means
*undefined* (for example AUROC with one class only), never zero.
"""

from __future__ import annotations

import os
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text, create_engine, event
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from popmi_core.errors import ConfigError

RECORD_NAME = "record.sqlite"
RUN_STATUSES = ("waiting", "running", "finished", "failed", "stopped")
SITE_OUTCOMES = ("ok", "failed", "late", "quarantined", "unreachable", "stopped")
SITE_PHASES = ("train", "evaluate")
READER_PATIENCE, WRITER_PATIENCE = 0.5, 30.0
"""Seconds to wait for a lock of SQLite."""


class Base(DeclarativeBase):
    """Parent of every table."""


def _run() -> Mapped[int]:
    return mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)


class Run(Base):
    """One run. ``revision`` grows with every write, so a reader sees a change by reading one number."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str | None] = mapped_column(Text)
    created: Mapped[float] = mapped_column(Float)
    started: Mapped[float | None] = mapped_column(Float)
    finished: Mapped[float | None] = mapped_column(Float)
    heartbeat: Mapped[float] = mapped_column(Float)
    revision: Mapped[int] = mapped_column(Integer, default=0)
    strategy: Mapped[str] = mapped_column(String(40))
    seed: Mapped[int] = mapped_column(Integer)
    rounds_planned: Mapped[int] = mapped_column(Integer)
    data_name: Mapped[str] = mapped_column(String(200))
    phantom: Mapped[bool] = mapped_column(Boolean)
    classes: Mapped[list[str]] = mapped_column(JSON)
    sites: Mapped[list[str]] = mapped_column(JSON)
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    environment: Mapped[dict[str, Any]] = mapped_column(JSON)


class Round(Base):
    """One round; ``outcome`` is ``open`` until the round is finished."""

    __tablename__ = "rounds"

    run_id: Mapped[int] = _run()
    server_round: Mapped[int] = mapped_column("round", Integer, primary_key=True, autoincrement=False)
    started: Mapped[float] = mapped_column(Float)
    finished: Mapped[float | None] = mapped_column(Float)
    outcome: Mapped[str] = mapped_column(String(20))
    seconds_total: Mapped[float | None] = mapped_column(Float)
    seconds_train: Mapped[float | None] = mapped_column(Float)
    seconds_fuse: Mapped[float | None] = mapped_column(Float)
    seconds_evaluate: Mapped[float | None] = mapped_column(Float)
    notes: Mapped[dict[str, Any]] = mapped_column(JSON)
    model_sha256: Mapped[str | None] = mapped_column(String(64))


class SiteRound(Base):
    """What one site did in one phase of one round."""

    __tablename__ = "site_rounds"

    run_id: Mapped[int] = _run()
    server_round: Mapped[int] = mapped_column("round", Integer, primary_key=True, autoincrement=False)
    site: Mapped[str] = mapped_column(String(200), primary_key=True)
    phase: Mapped[str] = mapped_column(String(20), primary_key=True)
    outcome: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str | None] = mapped_column(Text)
    num_examples: Mapped[int | None] = mapped_column(Integer)
    seconds: Mapped[float | None] = mapped_column(Float)
    bytes_up: Mapped[int | None] = mapped_column(BigInteger)
    bytes_down: Mapped[int | None] = mapped_column(BigInteger)
    epsilon: Mapped[float | None] = mapped_column(Float)
    train_loss: Mapped[float | None] = mapped_column(Float)


class Metric(Base):
    """One figure in long form. ``scope`` is ``global``, ``external`` or a site; bounds where they exist."""

    __tablename__ = "metrics"
    __table_args__ = (Index("metrics_by_name", "run_id", "name", "split"),)

    run_id: Mapped[int] = _run()
    server_round: Mapped[int] = mapped_column("round", Integer, primary_key=True, autoincrement=False)
    scope: Mapped[str] = mapped_column(String(200), primary_key=True)
    split: Mapped[str] = mapped_column(String(20), primary_key=True)
    name: Mapped[str] = mapped_column(String(60), primary_key=True)
    value: Mapped[float | None] = mapped_column(Float)
    lower: Mapped[float | None] = mapped_column(Float)
    upper: Mapped[float | None] = mapped_column(Float)


class MatchLayer(Base):
    """How well one layer of one site's model was put into the reference's basis.

    ``angle`` is how far matching turned it, in degrees; ``moved`` of its ``units`` took another place.
    """

    __tablename__ = "match_layers"

    run_id: Mapped[int] = _run()
    server_round: Mapped[int] = mapped_column("round", Integer, primary_key=True, autoincrement=False)
    site: Mapped[str] = mapped_column(String(200), primary_key=True)
    layer: Mapped[str] = mapped_column(String(200), primary_key=True)
    gain: Mapped[float | None] = mapped_column(Float)
    identity: Mapped[bool] = mapped_column(Boolean)
    note: Mapped[str | None] = mapped_column(Text)
    angle: Mapped[float | None] = mapped_column(Float)
    moved: Mapped[int | None] = mapped_column(Integer)
    units: Mapped[int | None] = mapped_column(Integer)


class Candidate(Base):
    """What one site found of one candidate for a round's model, on its validation images; loss in nats."""

    __tablename__ = "candidates"

    run_id: Mapped[int] = _run()
    server_round: Mapped[int] = mapped_column("round", Integer, primary_key=True, autoincrement=False)
    candidate: Mapped[str] = mapped_column(String(200), primary_key=True)
    site: Mapped[str] = mapped_column(String(200), primary_key=True)
    num_examples: Mapped[int] = mapped_column(Integer)
    loss: Mapped[float | None] = mapped_column(Float)
    accuracy: Mapped[float | None] = mapped_column(Float)
    auroc: Mapped[float | None] = mapped_column(Float)


class Detail(Base):
    """What is more than one figure: a curve, a table of counts. ``value`` is JSON, its form is the ``kind``'s."""

    __tablename__ = "details"
    __table_args__ = (Index("details_by_kind", "run_id", "kind", "scope"),)

    run_id: Mapped[int] = _run()
    server_round: Mapped[int] = mapped_column("round", Integer, primary_key=True, autoincrement=False)
    scope: Mapped[str] = mapped_column(String(200), primary_key=True)
    split: Mapped[str] = mapped_column(String(20), primary_key=True)
    kind: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[dict[str, Any]] = mapped_column(JSON)


class Event(Base):
    """One line of the run's diary."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    server_round: Mapped[int | None] = mapped_column("round", Integer)
    time: Mapped[float] = mapped_column(Float)
    level: Mapped[str] = mapped_column(String(20))
    text: Mapped[str] = mapped_column(Text)


def display_name(database: str | Path) -> str:
    """Return a database as pages and errors may show it: a URL without its password."""
    text = str(database)
    scheme, found, rest = text.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if found else text


def connect(database: str | Path, *, read_only: bool = False, threads: bool = False) -> Engine:
    """Return an engine for a path of an SQLite file or an SQLAlchemy URL.

    On SQLite a reader opens a connection for each use and holds no lock between. A writer keeps one open, for its
    threads to take turns: closing the last connection would fold the WAL into the file after every write. With
    ``threads`` each thread at work has a connection of its own.

    Raises:
        ConfigError: If the URL is no database URL or its driver is not installed.
    """
    text = str(database)
    if "://" in text and not text.startswith("sqlite:"):
        try:
            return create_engine(text, pool_pre_ping=True)
        except (ArgumentError, ModuleNotFoundError) as error:
            raise ConfigError(
                f"database {display_name(text)} cannot be used: {error}. Expected, for example, "
                "postgresql+psycopg://USER@HOST/NAME with the package psycopg installed."
            ) from error
    path = Path(make_url(text).database or "" if "://" in text else text).resolve()
    pool = NullPool if read_only else QueuePool if threads else StaticPool
    engine = create_engine("sqlite://", poolclass=pool, creator=partial(_open_sqlite, path, read_only))
    if not read_only:
        event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _open_sqlite(path: Path, read_only: bool) -> sqlite3.Connection:
    mode = "ro" if read_only else "rwc"
    if read_only and not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists():
        # WAL needs a place for its index; a whole record on a read-only disk is read without one.
        mode = "ro&immutable=1"
    # A reader gives up early: the page says "locked" rather than hang; the writer waits out a slow disk.
    patience = READER_PATIENCE if read_only else WRITER_PATIENCE
    return sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=patience, check_same_thread=False)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    # WAL: readers never wait for the writer, and a killed writer leaves the last whole transaction.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
