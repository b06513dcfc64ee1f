"""Who takes part: which node is which site, and who has stopped and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message

from popmi_core.errors import UpdateError
from popmi_core.protocol import POOLED_SITE, Report
from server.measured import check_classes
from server.replies import Expected, open_replies, read_report
from server.results import SiteOutcome


@dataclass(frozen=True)
class Entry:
    """What a site must bring to be let into a run.

    Attributes:
        names: Site by node id, for nodes whose key is registered for one; empty in a simulation.
        phantom: Whether the run is known to be on phantoms; a phantom never joins a run on real images.
        num_classes: How many classes' images the sites were asked to count; 0: they were not.
        classes: How many classes the run has, for what sites tell of them; 0: it is not looked at.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    phantom: bool = True
    num_classes: int = 0
    classes: int = 0

    def label(self, node: int) -> str:
        """Return how a node is called before it has told its name."""
        return self.names.get(node, f"node {node}")

    def node_of(self, label: str) -> int:
        """Return the node that is called so."""
        named = {name: node for node, name in self.names.items()}
        return named[label] if label in named else int(label.removeprefix("node "))

    def objection(self, report: Report, known_node: int, node: int) -> str:
        """Return why a site must stay out; empty where nothing speaks against it."""
        if report.phantom and not self.phantom:
            return "its images are phantoms, the run's are real. Give the site its own images."
        if len(report.class_counts) != self.num_classes:
            return (
                f"it counted images of {len(report.class_counts)} classes, expected {self.num_classes}. Give the site "
                "the server's POPMI version."
            )
        if self.classes and (why := check_classes(report, self.classes)):
            return why
        if known_node != node:
            return f"a second node calls itself {report.site}. Give every site its own name."
        return ""


@dataclass
class Roster:
    """Sites by name with their node, what they told on joining, who was refused, who waits and who has stopped.

    ``waiting``: sites that have not approved the run's code yet, and what they say.
    ``excluded``: sites that the operator leaves out for now, and why; their keys stay good.
    ``ledgers``: entries that each site told its privacy ledger has, the most it ever told.
    """

    nodes: dict[str, int] = field(default_factory=dict)
    reports: dict[str, Report] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    ledgers: dict[str, int] = field(default_factory=dict)

    def enrol(self, replies: Iterable[Message], expected: Expected, entry: Entry) -> list[str]:
        """Take in the sites that answered well and return their names; the others are refused with their reason.

        Args:
            replies: Answers to the question that asks who is there.
            expected: The question; sites in it are called by ``entry.label``, since nobody knows their names yet.
            entry: What a site must bring to be let in.
        """
        joined: list[str] = []

        def admit(label: str, message: Message) -> SiteOutcome:
            node = entry.node_of(label)
            try:
                report = read_report(message, label, expected)
            except UpdateError as error:
                return SiteOutcome(label, "quarantined", str(error))
            name, known = report.site, entry.names.get(node)
            self.waiting.pop(known or name, None)
            if known is not None and name != known:
                # The name of the site with this key: another's must not be marked for what this one did.
                return SiteOutcome(known, "failed", f"it calls itself {name}. Give the site its own name.")
            if report.error is not None and report.waiting:
                self.waiting[name] = report.error
                return SiteOutcome(name, "failed", report.error)
            why = report.error or entry.objection(report, self.nodes.get(name, node), node)
            if why:
                return SiteOutcome(label if name in self.nodes else name, "failed", why)
            self.nodes[name], self.reports[name] = node, report
            joined.append(name)
            return SiteOutcome(name, "ok")

        outcomes = open_replies(replies, expected, admit)
        self.refused |= {item.site: item.reason for item in outcomes if item.outcome != "ok"}
        for site in joined:
            self.refused.pop(site, None)
        return sorted(joined)

    def drop(self, sites: Iterable[str]) -> None:
        """Ask ``sites`` no more: their key was revoked."""
        for site in sites:
            self.nodes.pop(site, None)
            self.waiting.pop(site, None)
            self.refused[site] = "its key was revoked"

    def leave_out(self, excluded: Mapping[str, str]) -> None:
        """Ask these sites no more, for the reason given, until they are left out no longer."""
        for site in excluded:
            self.nodes.pop(site, None)
            self.waiting.pop(site, None)
            self.refused.pop(site, None)
        self.excluded = dict(excluded)

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

    def note_ledgers(self, outcomes: Sequence[SiteOutcome]) -> None:
        """Remember how many entries each site's privacy ledger has: a site that lost it is told so."""
        for item in outcomes:
            told = 0 if item.report is None else item.report.ledger_entries
            if told > self.ledgers.get(item.site, 0):
                self.ledgers[item.site] = told

    def with_stopped(self, outcomes: Sequence[SiteOutcome]) -> list[SiteOutcome]:
        """Add the sites that had stopped earlier or are left out, so that every round shows every site."""
        told = {item.site for item in outcomes}
        out = {**self.stopped, **self.excluded}
        earlier = [SiteOutcome(who, "stopped", why) for who, why in out.items() if who not in told]
        return sorted([*outcomes, *earlier], key=lambda item: item.site)
