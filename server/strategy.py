"""Federated rounds with OPM: put the sites' models into one basis, average them, evaluate, record.

FedAvg, FedProx, FedAdam, FedYogi, FedMedian, trimmed mean and Krum are the same rounds with other parts;
``local`` never averages and ``pooled`` trains on all images in one place: the two ends to compare with.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from popmi_core.errors import RunError, UpdateError
from popmi_core.fusion import Fused, ServerOptimizer, Update
from popmi_core.matching import describe_model
from popmi_core.models import build_model, exchanged_state
from popmi_core.protocol import CONTROL, MODEL, Instruction, RunPlan, Split
from server.replies import Expected, layout_of, payload_bytes
from server.results import (
    Evaluation,
    MatchedUpdate,
    RoundResult,
    SiteOutcome,
    Validated,
    bounded_figures,
)
from server.roster import Roster
from server.rounds.evaluate import collect
from server.rounds.fuse import fuse_updates, move_control
from server.rounds.match import match_updates
from server.rounds.record import RunRecorder
from server.rounds.validate import validate
from server.wire import ask, tensor_record

log = logging.getLogger("popmi.round")
EMPTY_ROUNDS_TO_FAIL = 3


class OpmStrategy(Strategy):
    """One round after another; every round is on disk before the next begins."""

    def __init__(self, plan: RunPlan, recorder: RunRecorder) -> None:
        self.plan, self.config, self.recorder = plan, plan.config, recorder
        self.model = build_model(self.config.model, len(plan.classes), seed=self.config.seed)
        self.symmetry = describe_model(self.model)
        self.global_model: dict[str, Tensor] = exchanged_state(self.model)
        self.layout = layout_of(self.global_model)
        self.site_models: dict[str, Mapping[str, Tensor]] = {}
        self.control: dict[str, Tensor] = {}
        self.optimizer = ServerOptimizer(self.config.server_optimizer)
        self.roster = Roster()
        self.asked: dict[str, str] = {}
        self.sent_bytes: dict[str, int] = {}
        self.last_done: RoundResult | None = None

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds that are still to run, up to ``num_rounds``; the result holds the last global model.

        ``evaluate_fn`` is called with the last round's model only: it looks at a test set.

        Raises:
            RunError: If no site joins, or several rounds on end give no model.
        """
        result, arrays, empty = Result(), initial_arrays, 0
        if self.recorder.last_round < num_rounds:
            self.join(grid, timeout)
        for server_round in range(self.recorder.last_round + 1, num_rounds + 1):
            if not self.trainers:
                log.warning("no site is left to train; the run ends after round %d", server_round - 1)
                break
            done = self.run_round(grid, server_round, arrays, timeout, evaluate_fn)
            arrays = tensor_record(self.global_model)
            empty = 0 if done.fused is not None else empty + 1
            self.last_done = done
            if empty >= EMPTY_ROUNDS_TO_FAIL:
                raise RunError(_no_model(empty, done))
        if not self.recorder.has_model:
            raise RunError(_no_model(self.recorder.last_round, self.last_done))
        result.arrays = arrays
        return result

    def join(self, grid: Grid, timeout: float) -> None:
        """Ask every node which site it is; those that answer with an error stay out.

        Raises:
            RunError: If no site can join.
        """
        instruction = self.instruction(0, ("val",))
        messages = [ask(node, MessageType.QUERY, instruction, {}) for node in sorted(grid.get_node_ids())]
        replies = list(grid.send_and_receive(messages, timeout=timeout))
        nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        self.roster.enrol(replies, nodes, run=self.plan.run, phantom=self.plan.phantom)
        self.recorder.joined(self.roster)
        if not self.trainers:
            reasons = "; ".join(f"{who}: {why}" for who, why in sorted(self.roster.refused.items()))
            raise RunError(f"no site could join the run ({reasons or 'no node answered'}). Mend the sites and rerun.")

    def run_round(
        self,
        grid: Grid,
        server_round: int,
        arrays: ArrayRecord,
        timeout: float,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> RoundResult:
        """Train, validate, match, fuse, evaluate, record."""
        begun = time.perf_counter()
        self.recorder.begin_round(server_round)
        replies = self.exchange(grid, self.configure_train(server_round, arrays, ConfigRecord(), grid), timeout)
        updates = validate(replies, self.expected(server_round))
        trained = self.with_bytes(updates.outcomes)
        self.retire(trained)
        combining = time.perf_counter()
        matched, fused, note = self.combine(updates, server_round)
        combined = time.perf_counter() - combining
        arrays = tensor_record(self.global_model)
        final = server_round == self.config.rounds or not self.trainers
        evaluation, outcomes = self.evaluate(grid, server_round, arrays, timeout, final=final)
        if final and evaluate_fn is not None and (external := evaluate_fn(server_round, arrays)) is not None:
            evaluation.external = {name: float(value) for name, value in external.items()}  # type: ignore[arg-type]
        done = RoundResult(
            server_round=server_round,
            seconds=time.perf_counter() - begun,
            seconds_combine=combined,
            train=self.with_stopped(trained),
            evaluate=self.with_bytes(outcomes),
            matched=matched,
            fused=fused,
            note=note,
            evaluation=evaluation,
        )
        self.recorder.end_round(done, self.global_model, self.carried_state())
        return done

    def combine(self, updates: Validated, server_round: int) -> tuple[list[MatchedUpdate], Fused | None, str]:
        """Turn the usable updates into the next global model; a void round leaves it as it is and says why."""
        usable = updates.updates
        needed = 1 if self.config.strategy == "pooled" else self.config.min_sites
        if len(usable) < needed:
            return [], None, f"void: {len(usable)} usable update(s), at least {needed} needed"
        if self.config.strategy == "local":
            self.site_models |= {update.site: update.state for update in usable}
            return [], Fused(state=self.global_model, weights={}, notes={"rule": "every site keeps its own model"}), ""
        matched: list[MatchedUpdate] = []
        try:
            matched = match_updates(
                usable, reference=self.global_model, symmetry=self.symmetry, config=self.config.match
            )
            fused = fuse_updates(
                [Update(update.site, update.state, update.num_examples) for update in matched],
                reference=self.global_model,
                symmetry=self.symmetry,
                config=self.config.fuse,
            )
            self.global_model = self.step(fused)
        except UpdateError as error:
            return matched, None, f"void: {error}"
        if self.uses_control:
            changes = [update.control_change or {} for update in usable]
            self.control = move_control(self.control, changes, num_sites=len(self.trainers) or 1)
        return matched, replace(fused, state=self.global_model), ""

    def step(self, fused: Fused) -> dict[str, Tensor]:
        """Return the model the server optimiser makes of the fused one.

        Raises:
            UpdateError: If it is not finite, as when huge updates overflow; the optimiser is left as it was.
        """
        before = self.optimizer.state_dict()
        moved = self.optimizer.step(self.global_model, fused.state)
        for name, tensor in sorted(moved.items()):
            if not bool(tensor.isfinite().all()):
                self.optimizer.load_state_dict(before)
                raise UpdateError(
                    f"the fused model's '{name}' holds NaN or infinity, expected finite values. "
                    "Lower local.learning_rate or server_optimizer.learning_rate."
                )
        return moved

    def evaluate(
        self, grid: Grid, server_round: int, arrays: ArrayRecord, timeout: float, *, final: bool
    ) -> tuple[Evaluation, list[SiteOutcome]]:
        """Let every site evaluate; the test split is looked at in the last round only."""
        splits: tuple[Split, ...] = ("val", "test") if final else ("val",)
        replies = self.exchange(grid, self.questions(MessageType.EVALUATE, server_round, arrays, splits), timeout)
        return collect(replies, self.expected(server_round), splits, num_classes=len(self.plan.classes))

    # Flower's hooks: each is one step of the round above.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one message for every site that trains."""
        return self.questions(MessageType.TRAIN, server_round, arrays, ("val",))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next global model, or None for a void round."""
        _, fused, _ = self.combine(validate(replies, self.expected(server_round)), server_round)
        return (None if fused is None else tensor_record(self.global_model)), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one message for every site that evaluates."""
        return self.questions(MessageType.EVALUATE, server_round, arrays, ("val",))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the figures pooled over the sites' validation images."""
        evaluation, _ = collect(replies, self.expected(server_round), ("val",), num_classes=len(self.plan.classes))
        pooled = evaluation.pooled.get("val")
        return (
            None
            if pooled is None
            else MetricRecord({name: item.value for name, item in bounded_figures(pooled).items()})
        )

    def summary(self) -> None:
        """Log which four parts this run is made of, and the classes: a misspelt label shows up as one."""
        parts = self.config
        log.info("%d classes: %s", len(self.plan.classes), ", ".join(self.plan.classes))
        log.info(
            "strategy %s: local %s, match %s, fuse %s, server optimiser %s",
            parts.strategy, parts.local.objective, parts.match.method, parts.fuse.rule, parts.server_optimizer.name,
        )  # fmt: skip

    # What the steps above share.

    @property
    def trainers(self) -> list[str]:
        """Sites that still train."""
        return self.roster.trainers(pooled=self.config.strategy == "pooled")

    @property
    def uses_control(self) -> bool:
        """Whether control variates travel (SCAFFOLD)."""
        return self.config.local.objective == "control_variates"

    def instruction(self, server_round: int, splits: tuple[Split, ...]) -> Instruction:
        """Return what all sites are told in a round."""
        return Instruction(
            run=self.plan.run,
            server_round=server_round,
            rounds=self.config.rounds,
            seed=self.config.seed,
            classes=self.plan.classes,
            model=self.config.model,
            local=self.config.local,
            privacy=self.config.privacy,
            phantom_images=self.config.data.phantom_images,
            splits=splits,
            lineup=self.plan.lineup,
        )

    def questions(self, kind: str, server_round: int, arrays: ArrayRecord, splits: tuple[Split, ...]) -> list[Message]:
        """Return one message a site, each with the model it should start from or be judged by."""
        instruction = self.instruction(server_round, splits)
        training = kind == MessageType.TRAIN
        messages = []
        for site in self.trainers if training else self.roster.evaluators:
            own = self.site_models.get(site)
            records = {MODEL: arrays if own is None else tensor_record(own)}
            if training and self.uses_control:
                records[CONTROL] = tensor_record(self.control)
            messages.append(ask(self.roster.nodes[site], kind, instruction, records))
        return messages

    def exchange(self, grid: Grid, messages: Iterable[Message], timeout: float) -> list[Message]:
        """Send, wait, and remember which message went to which site."""
        sent = list(messages)
        replies = list(grid.send_and_receive(sent, timeout=timeout))
        sites = {node: site for site, node in self.roster.nodes.items()}
        self.asked = {message.metadata.message_id: sites[message.metadata.dst_node_id] for message in sent}
        self.sent_bytes = {sites[message.metadata.dst_node_id]: payload_bytes(message) for message in sent}
        return replies

    def expected(self, server_round: int) -> Expected:
        """Return what valid replies to the last messages look like."""
        return Expected(self.plan.run, server_round, self.layout, self.asked, control=self.uses_control)

    def retire(self, outcomes: Sequence[SiteOutcome]) -> None:
        """Ask sites that have stopped (privacy budget spent) no more."""
        self.roster.stopped |= {item.site: item.reason for item in outcomes if item.outcome == "stopped"}

    def with_bytes(self, outcomes: Sequence[SiteOutcome]) -> list[SiteOutcome]:
        """Add what the last messages weighed on their way down."""
        return [replace(item, bytes_down=self.sent_bytes.get(item.site, 0)) for item in outcomes]

    def with_stopped(self, outcomes: Sequence[SiteOutcome]) -> list[SiteOutcome]:
        """Add the sites that had stopped earlier, so that every round shows every site."""
        told = {item.site for item in outcomes}
        earlier = [SiteOutcome(who, "stopped", why) for who, why in self.roster.stopped.items() if who not in told]
        return sorted([*outcomes, *earlier], key=lambda item: item.site)

    def carried_state(self) -> dict[str, Tensor]:
        """Return what the next round needs beside the global model, by name."""
        carried = {f"optimizer/{name}": tensor for name, tensor in self.optimizer.state_dict().items()}
        carried |= {f"control/{name}": tensor for name, tensor in self.control.items()}
        for site, state in self.site_models.items():
            carried |= {f"site/{site}/{name}": tensor for name, tensor in state.items()}
        return carried

    def restore(self, global_model: Mapping[str, Tensor], carried: Mapping[str, Tensor]) -> None:
        """Go on from a recorded round."""
        self.global_model = dict(global_model)
        self.optimizer.load_state_dict(_below("optimizer/", carried))
        self.control = _below("control/", carried)
        for name, tensor in _below("site/", carried).items():
            site, _, parameter = name.partition("/")
            self.site_models[site] = {**self.site_models.get(site, {}), parameter: tensor}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _no_model(rounds: int, last: RoundResult | None) -> str:
    troubles = [f"{item.site}: {item.reason}" for item in (last.train if last else []) if item.reason]
    why = "; ".join([*([last.note] if last and last.note else []), *troubles]) or "no site was left to ask"
    return f"no model came of {rounds} round(s) on end ({why}). Mend this and resume the run."
