"""Write what the sites told of a round into its record; what the record refuses is that site's fault, not the run's."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from popmi_core.errors import RecordError
from server.measured import Detail, round_details
from server.results import Figure, RoundResult, SiteOutcome
from server.store import RunWriter


def write_told(
    writer: RunWriter, done: RoundResult, pooled: Mapping[str, Mapping[str, Figure]], classes: Sequence[str] = ()
) -> list[str]:
    """Write outcomes, figures, matches, judgements and details of a round, site by site.

    ``pooled`` figures come by split; ``classes`` are the run's.

    Returns what the record refuses, a line for the diary each.

    Raises:
        RunError: If nothing can be written now; a ``RecordError`` if nothing could be written later either.
    """
    number, refused = done.server_round, list[str]()
    for phase, outcomes in (("train", done.train), ("evaluate", done.evaluate)):
        for item in outcomes:
            _write_site(writer, number, phase, item, refused)
    for site, splits in done.evaluation.sites.items():
        for split, figures in splits.items():
            # Of training images the loss that stands there is that of training, as in every other round.
            known = {name: value for name, value in figures.items() if (split, name) != ("train", "nll")}
            with _fault_of(site, refused):
                writer.record_metrics(number, site, split, _nan(known))
    for split, figures_of_all in pooled.items():
        writer.record_metrics(number, "global", split, figures_of_all)
    if done.evaluation.external:
        writer.record_metrics(number, "external", "external", done.evaluation.external)
    for update in done.matched:
        with _fault_of(update.site, refused):
            moves = update.moves
            writer.record_match(
                number, update.site, gains=update.gains, identity=update.identity, note=update.note or None,
                angles=moves.angles, moved=moves.moved, units=moves.units,
            )  # fmt: skip
    for candidate, found in done.judged.items():
        for site, judgement in found.items():
            with _fault_of(site, refused):
                writer.record_candidate(number, candidate, {site: asdict(judgement)})
    details = round_details(done.evaluation, classes)
    if done.similarity is not None:
        details.setdefault("global", []).append(Detail("global", "train", "similarity", done.similarity))
    for scope, some in details.items():
        with _fault_of(scope, refused):
            writer.record_details(number, some)
    return [*refused, *(f"{site}: {told.note}" for site, told in done.evaluation.turned.items() if told.note)]


def write_waiting(writer: RunWriter, server_round: int, sites: Sequence[str]) -> None:
    """Write for whom the round after ``server_round`` waits, and since when; no sites: it waits no longer."""
    value = {"sites": list(sites), "since": time.time() if sites else None}
    writer.record_details(server_round, [("global", "train", "waiting", value)])
    if sites:
        text = f"too few sites on line for round {server_round + 1}; waiting for {', '.join(sites)}"
        writer.event(text, level="warning", server_round=server_round)


def _write_site(writer: RunWriter, number: int, phase: str, item: SiteOutcome, refused: list[str]) -> None:
    known: dict[str, Any] = {
        "phase": phase,
        "outcome": item.outcome,
        "reason": item.reason or None,
        "bytes_up": item.bytes_up,
        "bytes_down": item.bytes_down,
    }
    report = item.report
    if report is None:
        writer.record_site(number, item.site, **known)
        return
    loss = report.metrics.get("train.loss")
    with _fault_of(item.site, refused):
        writer.record_site(
            number, item.site, num_examples=report.num_examples, seconds=report.seconds, epsilon=report.epsilon,
            train_loss=loss, **known,
        )  # fmt: skip
        if phase == "train" and loss is not None:
            writer.record_metrics(number, item.site, "train", {"nll": loss})
        return
    # How it fared is the server's own word and stands there in any case.
    writer.record_site(number, item.site, **known)


@contextmanager
def _fault_of(site: str, refused: list[str]) -> Iterator[None]:
    """Remember what the record refuses of a site's figures, and go on."""
    try:
        yield
    except RecordError as error:
        refused.append(f"{site}: figures it told are left out: {error}")


def _nan(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in figures.items()}
