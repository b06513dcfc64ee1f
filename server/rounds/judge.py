"""Collect what the sites think of candidate models."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message

from popmi_core.errors import UpdateError
from popmi_core.protocol import Report
from server.replies import Expected, open_replies, read_report
from server.results import Judgement, SiteOutcome


def collect_judgements(
    replies: Iterable[Message], expected: Expected
) -> tuple[dict[str, Judgement], list[SiteOutcome]]:
    """Return every site's judgement and an outcome for every site that was asked.

    A site with too few validation images tells their number only: it is fine and has no say.
    """
    judged: dict[str, Judgement] = {}

    def read(site: str, message: Message) -> SiteOutcome:
        where = f"site {site}, round {expected.server_round}"
        report: Report | None = None
        try:
            report = read_report(message, site, expected)
            if report.error is not None:
                return SiteOutcome(site, "failed", report.error, report=report)
            expected.check_count(site, "val", report.num_examples, where)
            found = _judgement(report, where)
        except UpdateError as error:
            return SiteOutcome(site, "quarantined", str(error), report=report)
        if found is not None:
            judged[site] = found
        return SiteOutcome(site, "ok", report=report)

    outcomes = open_replies(replies, expected, read)
    return dict(sorted(judged.items())), outcomes


def _judgement(report: Report, where: str) -> Judgement | None:
    figures = report.metrics
    if report.num_examples <= 0 or "val.nll" not in figures:
        return None
    loss = figures["val.nll"]
    if loss is not None and loss < 0:
        raise UpdateError(
            f"{where}: it tells a loss of {loss:.3g} nats, expected 0 or more: one below would win every choice. Look "
            "who wrote the site's node."
        )
    return Judgement(
        num_examples=report.num_examples,
        # A loss that JSON cannot carry was infinite or no number: such a candidate never wins.
        loss=float("inf") if loss is None else loss,
        accuracy=figures.get("val.accuracy"),
        auroc=figures.get("val.auroc"),
    )
