"""Narrow questions to a record: what one page needs and no more, so that a thousand rounds stay quick to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, func, select, tuple_

from server.store.reader import RunReader
from server.store.records import MetricRow, RoundRow, RunSummary, SiteRow
from server.store.schema import Metric, Round, SiteRound


@dataclass(frozen=True)
class RoundModel:
    """The model of one round that is over; ``outcome`` is *void* where the model is that of the round before."""

    server_round: int
    started: float
    finished: float
    outcome: str
    sha256: str | None


@dataclass(frozen=True)
class SiteDigest:
    """One site in one run: rounds trained and how the newest ended; ``epsilon`` and ``num_examples`` are the newest.

    ``last_ok`` is when the newest round ended in which it trained well, in seconds since 1970 UTC.
    """

    site: str
    rounds_ok: int
    rounds_all: int
    last_round: int
    outcome: str
    reason: str | None
    epsilon: float | None
    num_examples: int | None
    last_ok: float | None = None


_SITE_COLUMNS = tuple(getattr(SiteRound, field.name) for field in fields(SiteRow))
_METRIC_COLUMNS = tuple(getattr(Metric, field.name) for field in fields(MetricRow))


def round_models(reader: RunReader, run_id: int) -> tuple[RoundModel, ...]:
    """Return the models of a run's finished rounds, newest first."""
    query = (
        select(Round.server_round, Round.started, Round.finished, Round.outcome, Round.model_sha256)
        .where(Round.run_id == run_id, Round.finished.is_not(None), Round.server_round > 0)
        .order_by(Round.server_round.desc())
    )
    return tuple(RoundModel(*row) for row in _ask(reader, query))


def round_row(reader: RunReader, run_id: int, server_round: int) -> RoundRow | None:
    """Return one round with its notes; None for one that was never begun."""
    columns = (getattr(Round, field.name) for field in fields(RoundRow))
    query = select(*columns).where(Round.run_id == run_id, Round.server_round == server_round)
    return next((RoundRow(*row) for row in _ask(reader, query)), None)


def best_validation(reader: RunReader, run_id: int) -> MetricRow | None:
    """Return the best global AUROC on validation images, of equals the earliest; None where there is none."""
    query = (
        select(*_METRIC_COLUMNS)
        .where(
            Metric.run_id == run_id,
            Metric.name == "auroc",
            Metric.split == "val",
            Metric.scope == "global",
            Metric.value.is_not(None),
        )
        .order_by(Metric.value.desc(), Metric.server_round)
        .limit(1)
    )
    return next((MetricRow(*row) for row in _ask(reader, query)), None)


def round_figures(reader: RunReader, run_id: int, server_round: int) -> tuple[MetricRow, ...]:
    """Return every figure of one round, by split, name and scope."""
    query = select(*_METRIC_COLUMNS).where(Metric.run_id == run_id, Metric.server_round == server_round)
    return tuple(MetricRow(*row) for row in _ask(reader, query.order_by(Metric.split, Metric.name, Metric.scope)))


def named_figures(reader: RunReader, run_id: int, name: str, rounds: Sequence[int]) -> tuple[MetricRow, ...]:
    """Return one figure of the global model in some rounds: on validation images, and on the external test set."""
    found: list[MetricRow] = []
    for scope, split in (("global", "val"), ("external", "external")) if rounds else ():
        query = select(*_METRIC_COLUMNS).where(
            Metric.run_id == run_id,
            Metric.server_round.in_(rounds),
            Metric.scope == scope,
            Metric.split == split,
            Metric.name == name,
        )
        found += [MetricRow(*row) for row in _ask(reader, query)]
    return tuple(found)


def awaited_sites(reader: RunReader, run: RunSummary) -> tuple[str, ...]:
    """Return the sites that a run waits for before its next round; none where it waits for nobody, or has ended."""
    if run.status not in ("waiting", "running"):
        return ()
    rows = reader.details(run.id, kind="waiting", server_round=run.rounds_done)
    return tuple(str(site) for row in rows for site in row.value.get("sites", ()))


def site_rounds(
    reader: RunReader, run_id: int, *, site: str | None = None, server_round: int | None = None
) -> tuple[SiteRow, ...]:
    """Return what one site did in every round, or all sites in one, by round, site and phase (training first)."""
    query = select(*_SITE_COLUMNS).where(SiteRound.run_id == run_id)
    if site is not None:
        query = query.where(SiteRound.site == site)
    if server_round is not None:
        query = query.where(SiteRound.server_round == server_round)
    ordered = query.order_by(SiteRound.server_round, SiteRound.site, SiteRound.phase.desc())
    return tuple(SiteRow(*row) for row in _ask(reader, ordered))


def site_digests(reader: RunReader, run_id: int) -> tuple[SiteDigest, ...]:
    """Return every site of a run by name, counted in the database."""
    mine = (SiteRound.run_id == run_id, SiteRound.server_round > 0)
    trained = (*mine, SiteRound.phase == "train")
    counts: dict[str, dict[str, int]] = {}
    grouped = select(SiteRound.site, SiteRound.outcome, func.count()).where(*trained)
    for site, outcome, number in _ask(reader, grouped.group_by(SiteRound.site, SiteRound.outcome)):
        counts.setdefault(site, {})[outcome] = number
    newest: dict[str, SiteRow] = {}
    for row in _newest_rows(reader, run_id):
        held = newest.get(row.site)
        # A failed phase of the same round is not made good by the other phase.
        if held is None or held.outcome == "ok":
            newest[row.site] = row
    last_ok = _ended(reader, run_id, (*trained, SiteRound.outcome == "ok"))
    epsilon, examples = (_newest_value(reader, run_id, name) for name in ("epsilon", "num_examples"))
    return tuple(
        SiteDigest(
            site=site,
            rounds_ok=counts.get(site, {}).get("ok", 0),
            rounds_all=sum(counts.get(site, {}).values()),
            last_round=row.server_round,
            outcome=row.outcome,
            reason=row.reason,
            epsilon=epsilon.get(site),
            num_examples=None if site not in examples else int(examples[site]),
            last_ok=last_ok.get(site),
        )
        for site, row in sorted(newest.items())
    )


def _newest_rows(reader: RunReader, run_id: int) -> tuple[SiteRow, ...]:
    mine = (SiteRound.run_id == run_id, SiteRound.server_round > 0)
    chosen = _at(_last(reader, mine))
    query = select(*_SITE_COLUMNS).where(*mine, chosen).order_by(SiteRound.site, SiteRound.phase.desc())
    return tuple(SiteRow(*row) for row in _ask(reader, query))


def _newest_value(reader: RunReader, run_id: int, name: str) -> dict[str, float]:
    column = getattr(SiteRound, name)
    trained = (SiteRound.run_id == run_id, SiteRound.phase == "train", column.is_not(None))
    query = select(SiteRound.site, column).where(*trained, _at(_last(reader, trained)))
    return {str(site): float(value) for site, value in _ask(reader, query)}


def _ended(reader: RunReader, run_id: int, fitting: Sequence[ColumnElement[bool]]) -> dict[str, float]:
    """Return by site when the newest finished round ended that has a fitting row of it."""
    over = select(func.max(Round.server_round)).where(Round.run_id == run_id, Round.finished.is_not(None))
    done = _ask(reader, over)[0][0] or 0
    last = _last(reader, (*fitting, SiteRound.server_round <= done))
    times = select(Round.server_round, Round.finished).where(
        Round.run_id == run_id, Round.server_round.in_({*last.values()}), Round.finished.is_not(None)
    )
    found = dict(_ask(reader, times))
    return {site: float(found[number]) for site, number in last.items() if number in found}


def _last(reader: RunReader, fitting: Sequence[ColumnElement[bool]]) -> dict[str, int]:
    """Return by site the newest round that has a fitting row."""
    query = select(SiteRound.site, func.max(SiteRound.server_round)).where(*fitting).group_by(SiteRound.site)
    return {str(site): int(number) for site, number in _ask(reader, query)}


def _at(rounds: Mapping[str, int]) -> ColumnElement[bool]:
    # Asked for by value: joined with the question for the newest rounds, a table that PostgreSQL has no statistics of
    # yet took a minute.
    return tuple_(SiteRound.site, SiteRound.server_round).in_([*rounds.items()])


def _ask(reader: RunReader, query: Any) -> list[tuple[Any, ...]]:
    with reader.connection() as connection:
        return [tuple(row) for row in connection.execute(query)]
