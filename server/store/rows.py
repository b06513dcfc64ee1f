"""From what a round tells to rows of the record's tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from server.store.cleaning import clean, finite, jsonable, whole
from server.store.schema import Candidate, Detail, Event, MatchLayer, Metric, SiteRound

Figure = float | None | tuple[float | None, float | None, float | None]


def metric_rows(run_id: int, server_round: int, scope: str, split: str, values: Mapping[str, Figure]) -> list[Metric]:
    """Return one row a figure, which is a number or ``(value, lower, upper)``."""
    rows = []
    for name, figure in values.items():
        value, lower, upper = figure if isinstance(figure, tuple) else (figure, None, None)
        rows.append(
            Metric(
                run_id=run_id,
                server_round=server_round,
                scope=clean(scope),
                split=split,
                name=name,
                value=finite(value),
                lower=finite(lower),
                upper=finite(upper),
            )
        )
    return rows


def match_rows(
    run_id: int,
    server_round: int,
    site: str,
    gains: Mapping[str, float],
    identity: Mapping[str, bool],
    note: str | Mapping[str, str] | None,
    moves: Mapping[str, Mapping[str, Any]],
) -> list[MatchLayer]:
    """Return one row a layer; ``note`` is for all or by layer, ``moves`` has angles, moved and units by layer."""
    return [
        MatchLayer(
            run_id=run_id,
            server_round=server_round,
            site=clean(site),
            layer=clean(layer),
            gain=finite(gain),
            identity=bool(identity.get(layer, False)),
            note=clean(note.get(layer) if isinstance(note, Mapping) else note),
            angle=finite(moves["angles"].get(layer)),
            moved=whole(moves["moved"].get(layer)),
            units=whole(moves["units"].get(layer)),
        )
        for layer, gain in gains.items()
    ]


def candidate_rows(
    run_id: int, server_round: int, candidate: str, found: Mapping[str, Mapping[str, Any]]
) -> list[Candidate]:
    """Return one row a site from ``num_examples``, ``loss``, ``accuracy`` and ``auroc`` by site."""
    return [
        Candidate(
            run_id=run_id,
            server_round=server_round,
            candidate=clean(candidate),
            site=clean(site),
            num_examples=whole(figures["num_examples"]),
            **{name: finite(figures.get(name)) for name in ("loss", "accuracy", "auroc")},
        )
        for site, figures in found.items()
    ]


def detail_row(run_id: int, server_round: int, scope: str, split: str, kind: str, value: Mapping[str, Any]) -> Detail:
    """Return the row of a detail, its value as JSON keeps it."""
    return Detail(
        run_id=run_id, server_round=server_round, scope=clean(scope), split=split, kind=kind, value=jsonable(value)
    )


def round_events(run_id: int, server_round: int, rows: Iterable[SiteRound], remarks: Iterable[str]) -> list[Event]:
    """Return the diary's lines on a round that is over: every site and phase that was not *ok*, then the remarks."""
    troubles = sorted((row for row in rows if row.outcome != "ok"), key=lambda row: (row.phase != "train", row.site))
    said = [f"{row.site}: {row.phase} {row.outcome}" + (f": {row.reason}" if row.reason else "") for row in troubles]
    now = time.time()
    return [
        Event(run_id=run_id, server_round=server_round, time=now, level="warning", text=clean(text))
        for text in (*said, *remarks)
    ]
