"""Who takes part: which node is which site, and who has stopped and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message

from popmi_core.errors import UpdateError
from popmi_core.protocol import POOLED_SITE, Report
from server.replies import Expected, open_replies, read_report
from server.results import SiteOutcome


@dataclass
class Roster:
    """Sites by name with their node, what they told on joining, who was refused and who has stopped."""

    nodes: dict[str, int] = field(default_factory=dict)
    reports: dict[str, Report] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)

    def enrol(
        self, replies: Iterable[Message], nodes: Mapping[str, int], *, run: str, phantom: bool, num_classes: int = 0
    ) -> None:
        """Take in the sites that answered well; the others are refused with their reason.

        Args:
            replies: Answers to the first question of a run.
            nodes: Node id by id of the message it was asked with.
            run: Name of the run the answers must belong to.
            phantom: Whether the run is known to be on phantoms; a phantom never joins a run on real images.
            num_classes: How many classes' images the sites were asked to count; 0: they were not.
        """
        labels = {message_id: f"node {node}" for message_id, node in nodes.items()}
        opened, outcomes = open_replies(replies, Expected(run, 0, {}, labels))
        self.refused = {outcome.site: outcome.reason for outcome in outcomes}
        for label, message in opened.items():
            try:
                report = read_report(message, label, Expected(run, 0, {}, labels))
            except UpdateError as error:
                self.refused[label] = str(error)
                continue
            if report.error is not None:
                self.refused[report.site] = report.error
            elif report.phantom and not phantom:
                self.refused[report.site] = "its images are phantoms, the run's are real. Give the site its own images."
            elif len(report.class_counts) != num_classes:
                self.refused[report.site] = (
                    f"it counted images of {len(report.class_counts)} classes, expected {num_classes}. Give the site "
                    "the server's POPMI version."
                )
            elif report.site in self.nodes:
                self.refused[label] = f"a second node calls itself {report.site}. Give every site its own name."
            else:
                self.nodes[report.site] = nodes[message.metadata.reply_to_message_id]
                self.reports[report.site] = report

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Training images of every class at all sites together; empty where nobody was asked."""
        told = [report.class_counts for site, report in self.reports.items() if site != POOLED_SITE]
        return tuple(map(sum, zip(*told, strict=True)))

    @property
    def evaluators(self) -> list[str]:
        """Sites that evaluate, in alphabetical order; the pooled stand-in has no images of its own."""
        return sorted(site for site in self.nodes if site != POOLED_SITE)

    def trainers(self, *, pooled: bool) -> list[str]:
        """Sites that still train, in alphabetical order; with ``pooled`` only the stand-in for all of them."""
        sites = [POOLED_SITE] if pooled else self.evaluators
        return [site for site in sites if site in self.nodes and site not in self.stopped]

    def retire(self, outcomes: Sequence[SiteOutcome]) -> None:
        """Ask sites that have stopped (privacy budget spent) no more."""
        self.stopped |= {item.site: item.reason for item in outcomes if item.outcome == "stopped"}

    def with_stopped(self, outcomes: Sequence[SiteOutcome]) -> list[SiteOutcome]:
        """Add the sites that had stopped earlier, so that every round shows every site."""
        told = {item.site for item in outcomes}
        earlier = [SiteOutcome(who, "stopped", why) for who, why in self.stopped.items() if who not in told]
        return sorted([*outcomes, *earlier], key=lambda item: item.site)
