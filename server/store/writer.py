"""Write one run's record, one transaction per call: a killed process leaves a readable file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from popmi_core.errors import RunError
from server.store.cleaning import clean, ending, finite, jsonable, one_of, whole
from server.store.heartbeat import Heartbeat
from server.store.opened import OpenRecord
from server.store.putting import put
from server.store.rows import Figure, candidate_rows, detail_row, match_rows, metric_rows, round_events
from server.store.schema import (
    RUN_STATUSES,
    SITE_OUTCOMES,
    SITE_PHASES,
    Base,
    Candidate,
    Detail,
    Event,
    MatchLayer,
    Metric,
    Round,
    Run,
    SiteRound,
)

_ROUND_TABLES = (Round, SiteRound, Metric, MatchLayer, Candidate, Detail)


class RunWriter(OpenRecord):
    """The one writer of a run's record.

    Args:
        database: Path of an SQLite file (made when missing) or an SQLAlchemy URL.
        heartbeat: Seconds between two signs of life in the record; 0 switches them off.

    Leaving the ``with`` block ends a run that is still open: ``stopped`` after Ctrl-C or a plain exit,
    ``failed`` after an error.
    """

    def __init__(self, database: str | Path, *, heartbeat: float = 5.0) -> None:
        super().__init__(database)
        self._run_id: int | None = None
        self._heartbeat = Heartbeat(self._beat, heartbeat)

    @property
    def run_id(self) -> int:
        """The run this writer is at.

        Raises:
            RunError: If no run was started, resumed or taken over before.
        """
        if self._run_id is None:
            raise RunError(f"record {self._where}: no run is open. Call start_run or resume_run first.")
        return self._run_id

    def start_run(
        self,
        name: str,
        *,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        strategy: str,
        seed: int,
        rounds_planned: int,
        data_name: str,
        phantom: bool,
        classes: Sequence[str],
        sites: Sequence[str],
    ) -> int:
        """Open a run (state ``waiting`` until its first round) and return its id."""
        now = time.time()
        run = Run(
            name=clean(name),
            status="waiting",
            created=now,
            heartbeat=now,
            strategy=strategy,
            seed=int(seed),
            rounds_planned=rounds_planned,
            data_name=clean(data_name),
            phantom=phantom,
            classes=[clean(item) for item in classes],
            sites=[clean(item) for item in sites],
            config=jsonable(config),
            environment=jsonable(environment),
        )
        with self._transaction() as session:
            session.add(run)
            session.flush()
            self._run_id = run.id
        self._heartbeat.start()
        return self.run_id

    def resume_run(self, run_id: int | None = None) -> int:
        """Reopen a run (the newest without ``run_id``); return its last finished round, 0 for none.

        Rows of rounds begun but not finished are dropped, so that the next round starts clean; of a run that failed
        also the void rounds at its end, so that mended sites are asked again.

        Raises:
            RunError: If the record holds no such run.
        """
        with self._transaction() as session:
            wanted = run_id if run_id is not None else session.scalar(select(func.max(Run.id)))
            run = None if wanted is None else session.get(Run, wanted)
            if run is None:
                raise RunError(f"record {self._where}: holds no such run to resume. Check the run folder.")
            self._run_id = wanted
            done = select(func.max(Round.server_round)).where(Round.run_id == wanted, Round.finished.is_not(None))
            if run.status == "failed":
                done = done.where(Round.outcome == "ok")
            last = session.scalar(done) or 0
            _drop_after(session, run.id, last)
        self._write(
            Event(server_round=last, time=time.time(), level="info", text=f"resumed after round {last}"),
            run={"status": "running", "reason": None, "finished": None},
        )
        self._heartbeat.start()
        return last

    def take_over(self, run_id: int) -> None:
        """Write on in the record of a run whose own writer is gone; nothing in it is changed by that."""
        self._run_id = run_id

    def drop_rounds(self, after: int) -> None:
        """Forget the rounds after ``after``: their checkpoints cannot be used, and they will be run again."""
        with self._transaction() as session:
            _drop_after(session, self.run_id, after)
            self._touch(session)

    def start_round(self, server_round: int) -> None:
        """Begin a round; whatever an earlier attempt at it left is dropped."""
        now = time.time()
        self._clear(server_round)
        row = Round(server_round=server_round, started=now, outcome="open", notes={})
        self._write(row, run={"status": "running", "started": func.coalesce(Run.started, now)})

    def record_site(
        self,
        server_round: int,
        site: str,
        *,
        phase: str = "train",
        outcome: str = "ok",
        reason: str | None = None,
        num_examples: int | None = None,
        seconds: float | None = None,
        bytes_up: int | None = None,
        bytes_down: int | None = None,
        epsilon: float | None = None,
        train_loss: float | None = None,
    ) -> None:
        """Record what one site did in one phase, again if need be; the diary tells when the round is finished.

        Raises:
            RunError: If ``phase`` or ``outcome`` is none of the schema's words.
        """
        one_of("phase", phase, SITE_PHASES)
        one_of("outcome", outcome, SITE_OUTCOMES)
        row = SiteRound(
            server_round=server_round,
            site=clean(site),
            phase=phase,
            outcome=outcome,
            reason=clean(reason),
            num_examples=whole(num_examples),
            seconds=finite(seconds),
            bytes_up=whole(bytes_up),
            bytes_down=whole(bytes_down),
            epsilon=finite(epsilon),
            train_loss=finite(train_loss),
        )
        row.run_id = self.run_id
        self._replace([row])

    def record_metrics(self, server_round: int, scope: str, split: str, values: Mapping[str, Figure]) -> None:
        """Record figures of one scope (``global``, ``external`` or a site) and split.

        A figure is a number or ``(value, lower, upper)``; NaN and infinity are stored as undefined.
        """
        self._replace(metric_rows(self.run_id, server_round, scope, split, values))

    def record_match(
        self,
        server_round: int,
        site: str,
        *,
        gains: Mapping[str, float],
        identity: Mapping[str, bool] | None = None,
        note: str | Mapping[str, str] | None = None,
        angles: Mapping[str, float | None] | None = None,
        moved: Mapping[str, int | None] | None = None,
        units: Mapping[str, int | None] | None = None,
    ) -> None:
        """Record the matching of one site, layer by layer; ``note`` is for all layers or by layer.

        ``angles`` are in degrees; ``moved`` of ``units`` took another place. A layer they do not name stays unknown.
        """
        moves = {"angles": angles or {}, "moved": moved or {}, "units": units or {}}
        self._replace(match_rows(self.run_id, server_round, site, gains, identity or {}, note, moves))

    def record_details(self, server_round: int, details: Iterable[tuple[str, str, str, Mapping[str, Any]]]) -> None:
        """Record what is more than one figure, again if need be; all in one transaction.

        Each is scope (``global``, ``external`` or a site), split, kind and value; the value becomes JSON, its form is
        the kind's. Round 0 is before the first.
        """
        self._replace([detail_row(self.run_id, server_round, *detail) for detail in details])

    def record_candidate(self, server_round: int, candidate: str, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Record what the sites found of a candidate: by site ``num_examples``, ``loss``, ``accuracy``, ``auroc``."""
        self._replace(candidate_rows(self.run_id, server_round, candidate, found))

    def finish_round(
        self,
        server_round: int,
        *,
        outcome: str = "ok",
        seconds_total: float | None = None,
        seconds_train: float | None = None,
        seconds_fuse: float | None = None,
        seconds_evaluate: float | None = None,
        notes: Mapping[str, Any] | None = None,
        model_sha256: str | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        """Close a round (``ok``, or ``void`` when too few sites answered); only now does it count.

        The diary gets its lines with it, once (sites that were not *ok*, and ``remarks``): a round that waits for room
        writes its rows again and again.

        Raises:
            RunError: If the round was never started.
        """
        values = {
            "outcome": outcome,
            "finished": time.time(),
            "notes": jsonable(notes or {}),
            "model_sha256": model_sha256,
            "seconds_total": finite(seconds_total),
            "seconds_train": finite(seconds_train),
            "seconds_fuse": finite(seconds_fuse),
            "seconds_evaluate": finite(seconds_evaluate),
        }
        with self._transaction() as session:
            row = session.get(Round, {"run_id": self.run_id, "server_round": server_round})
            if row is None:
                raise RunError(f"record {self._where}: round {server_round} was never started. Call start_round first.")
            for name, value in values.items():
                setattr(row, name, value)
            told = select(SiteRound).where(SiteRound.run_id == self.run_id, SiteRound.server_round == server_round)
            session.add_all(round_events(self.run_id, server_round, session.scalars(told), remarks))
            self._touch(session)

    def finish_run(self, status: str, reason: str | None = None) -> None:
        """End the run: ``finished``, ``failed`` or ``stopped``, with the reason a person reads.

        Raises:
            RunError: If ``status`` is none of the schema's words.
        """
        one_of("status", status, RUN_STATUSES)
        text = f"run {status}" + (f": {reason}" if reason else "")
        row = Event(time=time.time(), level="info" if status == "finished" else "warning", text=clean(text))
        self._write(row, run={"status": status, "reason": clean(reason), "finished": time.time()})

    def event(self, text: str, *, level: str = "info", server_round: int | None = None) -> None:
        """Add a line to the run's diary; ``level`` is ``info``, ``warning`` or ``error``."""
        self._write(Event(server_round=server_round, time=time.time(), level=level, text=clean(text)))

    def close(self) -> None:
        """Stop the signs of life and let go of the database."""
        self._heartbeat.stop()
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._run_id is not None and self._still_open():
                self.finish_run(*ending(error))
        finally:
            self.close()

    def _still_open(self) -> bool:
        with self._transaction() as session:
            status = session.scalar(select(Run.status).where(Run.id == self.run_id))
        return status in ("waiting", "running")

    def _clear(self, server_round: int) -> None:
        with self._transaction() as session:
            for table in _ROUND_TABLES:
                session.execute(delete(table).where(table.run_id == self.run_id, table.server_round == server_round))

    def _replace(self, rows: Sequence[Base]) -> None:
        with self._transaction() as session:
            put(session, rows)
            self._touch(session)

    def _write(self, row: Round | Event, *, run: Mapping[str, Any] | None = None) -> None:
        with self._transaction() as session:
            row.run_id = self.run_id
            session.add(row)
            self._touch(session, **(run or {}))

    def _touch(self, session: Session, **values: Any) -> None:
        change = update(Run).where(Run.id == self.run_id)
        session.execute(change.values(revision=Run.revision + 1, heartbeat=time.time(), **values))

    def _beat(self) -> None:
        # A sign of life does not bump the revision: pages redraw for news only. A missed one alone must not end a
        # run: the next real write reports the trouble.
        with contextlib.suppress(SQLAlchemyError), self._lock, Session(self._engine) as session, session.begin():
            session.execute(update(Run).where(Run.id == self._run_id).values(heartbeat=time.time()))


def _drop_after(session: Session, run_id: int, last: int) -> None:
    for table in _ROUND_TABLES:
        session.execute(delete(table).where(table.run_id == run_id, table.server_round > last))
