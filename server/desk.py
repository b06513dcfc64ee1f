"""What the server asks: instructions and messages, who was asked, and what valid answers look like."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, Message
from torch import Tensor

from popmi_core.asking import Asks
from popmi_core.equivariance.certificate import Promise
from popmi_core.errors import RunError
from popmi_core.matching import Symmetry
from popmi_core.metrics.summary import summary_bytes
from popmi_core.protocol import MODEL, Instruction, RunPlan, Split, stays_at_site
from server.exchange import Exchange, Question, Round
from server.register import cut_off
from server.replies import Expected, Layout, payload_bytes
from server.results import SiteOutcome
from server.roster import Roster
from server.wire import ask, tensor_record

State = Mapping[str, Tensor]


class Desk:
    """Sends questions over a grid and remembers which message went to which site and how much it weighed."""

    def __init__(self, plan: RunPlan, roster: Roster, layout: Layout, kept: State) -> None:
        self.plan, self.roster, self.layout, self.kept = plan, roster, layout, kept
        self.asks = Asks.of(plan.config, [*layout, *kept])
        self.promise: Promise | None = None
        self.post: Exchange | None = None
        self.round = Round()
        self.server_round = 0
        self.nonce = ""
        self.sent_bytes: dict[str, int] = {}
        self.side_down: Counter[str] = Counter()
        self.side_up: Counter[str] = Counter()

    def open(self, post: Exchange) -> None:
        """Send over ``post`` from now on."""
        self.post = post

    def instruction(self, server_round: int, **changes: Any) -> Instruction:
        """Return what all sites are told in a round; ``changes`` are further fields of the instruction.

        Every question has a number of its own that the answer must repeat: a copy of an earlier answer is refused.
        """
        self.server_round, self.nonce = server_round, secrets.token_hex(8)
        return self.asks.instruction(
            run=self.plan.run,
            server_round=server_round,
            classes=self.plan.classes,
            nonce=self.nonce,
            lineup=self.plan.lineup,
            class_counts=self.roster.class_counts,
            **changes,
        )

    def training(self, server_round: int, frozen: tuple[str, ...]) -> Instruction:
        """Return what sites are told when they shall train."""
        return self.instruction(server_round, frozen=frozen, **self.asks.training())

    def message(self, site: str, kind: str, instruction: Instruction, records: Mapping[str, ArrayRecord]) -> Message:
        """Return one question to one site."""
        return ask(self.roster.nodes[site], kind, instruction, records)

    def exchange(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send, and yield the answers as they come; ``expected`` knows from now on who was asked what.

        Raises:
            RunError: If no grid was opened.
        """
        if self.post is None:
            raise RunError("sites cannot be asked: no grid is open. Start the rounds with OpmStrategy.start.")
        sites = {node: site for site, node in self.roster.nodes.items()}
        sent = [(sites[message.metadata.dst_node_id], message) for message in messages]
        self.round = Round()
        self.sent_bytes = {site: payload_bytes(message) for site, message in sent}
        return self.post.ask(
            [Question(site, self.server_round, one) for site, one in sent], self.round, timeout=timeout
        )

    def aside(self, kind: str, instruction: Instruction, state: State) -> Iterator[Message]:
        """Ask every site that evaluates about a model between training and evaluation; the answers as they come."""
        record = {MODEL: tensor_record(state)}
        replies = self.exchange(
            [self.message(site, kind, instruction, record) for site in self.free(self.roster.evaluators)]
        )
        self.side_down.update(self.sent_bytes)
        return self._counted(replies, self.round)

    def _counted(self, replies: Iterable[Message], round_: Round) -> Iterator[Message]:
        for message in replies:
            site = round_.asked.get(message.metadata.reply_to_message_id)
            if site is not None and not message.has_error():
                self.side_up[site] += payload_bytes(message)
            yield message

    def free(self, sites: Iterable[str]) -> list[str]:
        """Return those of ``sites`` that are not still at an earlier question: asked again, they would fall behind."""
        busy = {} if self.post is None else self.post.busy
        return [site for site in sites if site not in busy]

    def revoked(self) -> list[str]:
        """Return the sites taking part whose key was revoked since they were let in; they are asked no more."""
        found = cut_off(self.plan, self.roster.nodes)
        self.roster.drop(found)
        return found

    def with_busy(self, outcomes: Sequence[SiteOutcome], sites: Iterable[str]) -> list[SiteOutcome]:
        """Add those of ``sites`` that were left alone, and why."""
        busy = {} if self.post is None else self.post.busy
        told = {item.site for item in outcomes}
        left = [
            SiteOutcome(site, "late", f"still at round {busy[site]}; not asked before it has answered")
            for site in sites
            if site in busy and site not in told
        ]
        return sorted([*outcomes, *left], key=lambda item: item.site)

    def expected(
        self,
        server_round: int,
        *,
        control: bool = False,
        grams: bool = False,
        seen: Symmetry | None = None,
        model: bool = True,
        scores: int = 0,
    ) -> Expected:
        """Return what valid replies to the last messages look like; the words are those of ``Expected``."""
        return Expected(
            run=self.plan.run,
            server_round=server_round,
            layout=self.layout,
            asked=self.round.asked,
            control=control,
            grams=grams,
            kept=self.kept,
            seen=seen,
            promise=self.promise,
            missing=self.round.missing,
            spoilt=self.round.spoilt,
            nonce=self.nonce,
            enrolled={
                site: {**report.split_sizes, "train": report.num_examples}
                for site, report in self.roster.reports.items()
            },
            model=model,
            scores=scores,
            max_change=self.plan.config.limits.max_change,
            room=self.round.room,
        )

    def expected_scores(self, server_round: int, splits: Sequence[Split]) -> Expected:
        """Return what valid answers to the last questions look like where sites were to evaluate."""
        scores = len(splits) * summary_bytes(len(self.plan.classes))
        return self.expected(server_round, model=False, scores=scores)

    def with_bytes(self, outcomes: Sequence[SiteOutcome], *, aside: bool = False) -> list[SiteOutcome]:
        """Add what the last messages weighed on their way down; ``aside`` adds the questions between, once."""
        down, up = Counter(self.sent_bytes), Counter[str]()
        if aside:
            down.update(self.side_down)
            up.update(self.side_up)
            self.side_down.clear()
            self.side_up.clear()
        return [replace(item, bytes_down=down[item.site], bytes_up=item.bytes_up + up[item.site]) for item in outcomes]


def split_layout(layout: Layout, state: State, patterns: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the layout of what sites send, and the tensors that stand for what they keep."""
    kept = {name: tensor for name, tensor in state.items() if stays_at_site(name, patterns)}
    return {name: form for name, form in layout.items() if name not in kept}, kept
