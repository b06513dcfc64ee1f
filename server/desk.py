"""What the server asks: instructions and messages, who was asked, and what valid answers look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from popmi_core.equivariance.certificate import Promise
from popmi_core.errors import RunError
from popmi_core.matching import Symmetry
from popmi_core.protocol import MODEL, Instruction, RunPlan, Statistic, stays_at_site
from server.replies import Expected, Layout, payload_bytes
from server.results import SiteOutcome
from server.roster import Roster
from server.wire import ask, tensor_record

State = Mapping[str, Tensor]


class Desk:
    """Sends questions over a grid and remembers which message went to which site and how much it weighed."""

    def __init__(self, plan: RunPlan, roster: Roster, layout: Layout, kept: State) -> None:
        self.plan, self.roster, self.layout, self.kept = plan, roster, layout, kept
        self.promise: Promise | None = None
        self.grid: Grid | None = None
        self.timeout = plan.config.timeout
        self.asked: dict[str, str] = {}
        self.sent_bytes: dict[str, int] = {}
        self.side_down: Counter[str] = Counter()
        self.side_up: Counter[str] = Counter()

    def open(self, grid: Grid, timeout: float) -> None:
        """Send over ``grid`` from now on, and wait at most ``timeout`` seconds for replies."""
        self.grid, self.timeout = grid, timeout

    def instruction(self, server_round: int, **changes: Any) -> Instruction:
        """Return what all sites are told in a round; ``changes`` are further fields of the instruction."""
        config = self.plan.config
        return Instruction(
            run=self.plan.run,
            server_round=server_round,
            rounds=config.rounds,
            seed=config.seed,
            classes=self.plan.classes,
            model=config.model,
            local=config.local,
            privacy=config.privacy,
            phantom_images=config.data.phantom_images,
            lineup=self.plan.lineup,
            keep_local=config.personal.keep_local,
            num_images=config.match.num_images,
            class_counts=self.roster.class_counts,
            **changes,
        )

    def training(self, server_round: int, frozen: tuple[str, ...]) -> Instruction:
        """Return what sites are told when they shall train."""
        config = self.plan.config
        grams: tuple[Statistic, ...] = ("gram",) if config.fuse.needs_grams else ()
        seen: tuple[Statistic, ...] = ("activations",) if config.fuse.needs_statistics else ()
        return self.instruction(
            server_round,
            frozen=frozen,
            match=config.match if config.match.where == "site" else None,
            statistics=(*grams, *seen),
        )

    def message(self, site: str, kind: str, instruction: Instruction, records: Mapping[str, ArrayRecord]) -> Message:
        """Return one question to one site."""
        return ask(self.roster.nodes[site], kind, instruction, records)

    def exchange(self, messages: Iterable[Message]) -> list[Message]:
        """Send, wait, and remember which message went to which site.

        Raises:
            RunError: If no grid was opened.
        """
        if self.grid is None:
            raise RunError("sites cannot be asked: no grid is open. Start the rounds with OpmStrategy.start.")
        sent = list(messages)
        replies = list(self.grid.send_and_receive(sent, timeout=self.timeout))
        sites = {node: site for site, node in self.roster.nodes.items()}
        self.asked = {message.metadata.message_id: sites[message.metadata.dst_node_id] for message in sent}
        self.sent_bytes = {sites[message.metadata.dst_node_id]: payload_bytes(message) for message in sent}
        return replies

    def aside(self, kind: str, instruction: Instruction, state: State) -> list[Message]:
        """Ask every site that evaluates about a model between training and evaluation; return the replies."""
        record = {MODEL: tensor_record(state)}
        replies = self.exchange([self.message(site, kind, instruction, record) for site in self.roster.evaluators])
        self.side_down.update(self.sent_bytes)
        for message in replies:
            site = self.asked.get(message.metadata.reply_to_message_id)
            if site is not None and not message.has_error():
                self.side_up[site] += payload_bytes(message)
        return replies

    def expected(
        self, server_round: int, *, control: bool = False, grams: bool = False, seen: Symmetry | None = None
    ) -> Expected:
        """Return what valid replies to the last messages look like."""
        return Expected(
            self.plan.run, server_round, self.layout, self.asked, control, grams, self.kept, seen, self.promise
        )

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
