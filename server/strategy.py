"""Federated rounds with OPM: put the sites' models into one basis, average them, evaluate, record.

Every other strategy is the same rounds with other parts; ``local`` and ``ensemble`` never average and ``pooled`` trains
on all images in one place: the ends to compare with.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from popmi_core.asking import EVALUATING, TRAINING, common_rules
from popmi_core.equivariance.certificate import promise_of
from popmi_core.errors import RunError, UpdateError
from popmi_core.fusion import Fused, ServerOptimizer, Update
from popmi_core.fusion.fedma import schedule
from popmi_core.measure import TurningAsk
from popmi_core.models import build_model, exchanged_state
from popmi_core.protocol import CONTROL, MODEL, RunPlan, Split, model_record
from server.attendance import Attendance
from server.carried import Carried
from server.desk import Desk, split_layout
from server.exchange import Exchange
from server.planning import prepare, tell_parts
from server.replies import Expected, layout_of
from server.results import (
    Combined,
    Evaluation,
    MatchedUpdate,
    RoundResult,
    SiteOutcome,
    Validated,
    bounded_figures,
    taken_out,
    without_models,
)
from server.roster import Roster
from server.rounds.evaluate import collect
from server.rounds.fuse import fuse_updates, move_control
from server.rounds.match import match_updates
from server.rounds.record import RunRecorder
from server.rounds.validate import validate
from server.scorer import SiteScorer
from server.similarity import Likeness
from server.spool import Spool
from server.wire import tensor_record

log = logging.getLogger("popmi.round")
TOO_FEW = "void: {} usable update(s), at least {} needed"


class OpmStrategy(Strategy):
    """One round after another; every round is on disk before the next begins.

    Raises:
        ConfigError, PrivacyError, ModelError: If the parts of the run cannot work together (see ``prepare``).
    """

    def __init__(self, plan: RunPlan, recorder: RunRecorder) -> None:
        self.plan, self.config, self.recorder = plan, plan.config, recorder
        self.model = build_model(self.config.model, len(plan.classes), seed=self.config.seed)
        self.symmetry = prepare(plan, self.model)
        self.global_model: dict[str, Tensor] = exchanged_state(self.model)
        self.site_models: dict[str, Mapping[str, Tensor]] = {}
        self.control: dict[str, Tensor] = {}
        self.optimizer = ServerOptimizer(self.config.server_optimizer)
        self.roster = Roster()
        layout = layout_of(self.global_model)
        self.desk = Desk(plan, self.roster, *split_layout(layout, self.global_model, self.config.personal.keep_local))
        self.desk.promise = promise_of(self.model)
        self.asks = self.desk.asks
        self.last_done: RoundResult | None = None
        self.likeness = Likeness(recorder.warn)
        self.spool = Spool(recorder.folder / "incoming" if plan.names else None, recorder.patiently)
        self.spool.clear()

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
        limits = self.config.limits
        self.desk.open(Exchange(grid, timeout=timeout, limits=limits, late=self.recorder.late))
        attendance = Attendance(self.plan, self.desk, self.recorder.joined, self.recorder.waits_for)
        if self.recorder.last_round < num_rounds:
            attendance.begin(grid, again=self.recorder.last_round > 0)
        for server_round in range(self.recorder.last_round + 1, num_rounds + 1):
            if self.plan.names:
                attendance.between_rounds(grid)
            if not self.trainers:
                log.warning("no site is left to train; the run ends after round %d", server_round - 1)
                break
            done = self.run_round(server_round, arrays, evaluate_fn)
            arrays = tensor_record(self.global_model)
            empty = 0 if done.fused is not None else empty + 1
            self.last_done = done
            if empty >= limits.empty_rounds:
                raise RunError(_no_model(empty, done))
        if not self.recorder.has_model:
            raise RunError(_no_model(self.recorder.last_round, self.last_done))
        result.arrays = arrays
        return result

    def run_round(
        self,
        server_round: int,
        arrays: ArrayRecord,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> RoundResult:
        """Train, validate, match, fuse, evaluate, record."""
        begun = time.perf_counter()
        self.recorder.begin_round(server_round)
        replies = self.desk.exchange(self.training(server_round, arrays))
        updates = validate(replies, self.expected(server_round), self.spool.raw, revoked=self.desk.revoked)
        updates.outcomes = self.desk.with_busy(self.desk.with_bytes(updates.outcomes), self.trainers)
        self.roster.retire(updates.outcomes)
        self.roster.note_ledgers(updates.outcomes)
        combining = time.perf_counter()
        scorer = self.scorer(server_round)
        made = self.combine(updates, scorer)
        combined = time.perf_counter() - combining
        arrays = tensor_record(self.global_model)
        final = server_round == self.config.rounds or not self.trainers
        evaluation, outcomes = self.evaluate(server_round, arrays, final=final)
        if final and evaluate_fn is not None and (external := evaluate_fn(server_round, arrays)) is not None:
            evaluation.external = {name: float(value) for name, value in external.items()}  # type: ignore[arg-type]
        done = RoundResult(
            server_round=server_round,
            seconds=time.perf_counter() - begun,
            seconds_combine=combined,
            train=self.roster.with_stopped(updates.outcomes),
            evaluate=self.desk.with_bytes(outcomes, aside=True),
            matched=made.matched,
            fused=made.fused,
            note=made.note,
            similarity=made.similarity,
            evaluation=evaluation,
            judged=scorer.judged,
            seconds_judge=scorer.seconds,
            equivariance=None if self.desk.promise is None else self.desk.promise.verdict(self.global_model),
        )
        self.recorder.end_round(done, self.global_model, self.carried_state())
        self.spool.clear()
        return done

    def combine(self, updates: Validated, scorer: SiteScorer) -> Combined:
        """Turn the usable updates into the next global model; a void round leaves it as it is and says why.

        What comes back of the matched updates is what a record needs: their models are given up.
        """
        needed = 1 if self.config.strategy == "pooled" else self.config.min_sites
        if (count := len(updates.updates)) < needed:
            return Combined(note=TOO_FEW.format(count, needed))
        if not common_rules(self.config):
            # In memory: the spool's files end with the round, these models are what the next one starts from.
            self.site_models |= {update.site: dict(update.state) for update in updates.updates}
            return Combined(fused=Fused(self.global_model, {}, {"rule": "every site keeps its own model"}))
        changes = {update.site: update.control_change or {} for update in updates.updates}
        matched: list[MatchedUpdate] = []
        alike = None
        try:
            for update in match_updates(
                taken_out(updates.updates),
                reference=self.global_model,
                symmetry=self.symmetry,
                config=self.config.match,
                quarantine=updates.quarantine,
            ):
                matched.append(self.spool.matched(update))
            if len(matched) < needed:
                return Combined(without_models(matched), note=TOO_FEW.format(len(matched), needed))
            alike = self.likeness(matched, self.global_model)
            fused = fuse_updates(
                [Update(update.site, update.state, update.num_examples, update.grams) for update in matched],
                reference=self.global_model,
                symmetry=self.symmetry,
                config=self.config.fuse,
                scorer=scorer if self.asks.judged else None,
                statistics={update.site: update.statistics for update in matched if update.statistics is not None},
                place=self.spool.place,
            )
            self.global_model = self.step(fused, scorer)
        except UpdateError as error:
            return Combined(without_models(matched), note=f"void: {error}", similarity=alike)
        if self.asks.control:
            taken = [changes[update.site] for update in matched]
            self.control = move_control(self.control, taken, num_sites=len(self.trainers) or 1)
        return Combined(without_models(matched), replace(fused, state=self.global_model), similarity=alike)

    def step(self, fused: Fused, scorer: SiteScorer) -> dict[str, Tensor]:
        """Return the model the server optimiser makes of the fused one, with BatchNorm statistics of its own.

        Raises:
            UpdateError: If it is not finite, as when huge updates overflow; the optimiser is left as it was.
        """
        before = self.optimizer.state_dict()
        # What sites keep is no part of the common model: its stand-ins never change, not even by rounding.
        moved = {**self.optimizer.step(self.global_model, fused.state), **self.desk.kept}
        for name, tensor in sorted(moved.items()):
            if not bool(tensor.isfinite().all()):
                self.optimizer.load_state_dict(before)
                raise UpdateError(
                    f"the fused model's '{name}' holds NaN or infinity, expected finite values. "
                    "Lower local.learning_rate or server_optimizer.learning_rate."
                )
        return scorer.repaired(moved) if self.asks.norms else moved

    def evaluate(self, server_round: int, arrays: ArrayRecord, *, final: bool) -> tuple[Evaluation, list[SiteOutcome]]:
        """Let every site evaluate; test and training images are looked at in the last round only."""
        splits, turning = self.asks.splits(final=final), self.asks.turning(final=final)
        replies = self.desk.exchange(self.evaluating(server_round, arrays, splits, turning))
        expected = self.desk.expected_scores(server_round, splits)
        found, outcomes = collect(replies, expected, splits, num_classes=len(self.plan.classes), turning=turning)
        return found, self.desk.with_busy(outcomes, self.roster.evaluators)

    # Flower's hooks: each is one step of the round above.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one message for every site that trains."""
        return self.training(server_round, arrays)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next global model, or None for a void round."""
        made = self.combine(validate(replies, self.expected(server_round)), self.scorer(server_round))
        return (None if made.fused is None else tensor_record(self.global_model)), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one message for every site that evaluates."""
        return self.evaluating(server_round, arrays, ("val",))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the figures pooled over the sites' validation images."""
        expected = self.desk.expected_scores(server_round, ("val",))
        evaluation, _ = collect(replies, expected, ("val",), num_classes=len(self.plan.classes))
        pooled = evaluation.pooled.get("val")
        return (
            None
            if pooled is None
            else MetricRecord({name: item.value for name, item in bounded_figures(pooled).items()})
        )

    def summary(self) -> None:
        """Log which four parts this run is made of, and the classes."""
        tell_parts(self.plan)

    # What the steps above share.

    @property
    def trainers(self) -> list[str]:
        """Sites that still train."""
        return self.roster.trainers(pooled=self.config.strategy == "pooled")

    def training(self, server_round: int, arrays: ArrayRecord) -> list[Message]:
        """Return one message for every site that trains, each with the model it should start from."""
        instruction = self.desk.training(server_round, self.frozen(server_round))
        # One record for all: each of its own would be packed, and held, for every site.
        common = {CONTROL: tensor_record(self.control)} if self.asks.control else {}
        messages = []
        for site in self.desk.free(self.trainers):
            own = self.site_models.get(site)
            records = {MODEL: arrays if own is None else tensor_record(own), **common}
            told = instruction.model_copy(update={"ledger_entries": self.roster.ledgers.get(site, 0)})
            messages.append(self.desk.message(site, TRAINING, told, records))
        return messages

    def evaluating(
        self, server_round: int, arrays: ArrayRecord, splits: tuple[Split, ...], turning: TurningAsk | None = None
    ) -> list[Message]:
        """Return one message for every site that evaluates: the common model, its own, or all sites' together."""
        ensemble = self.config.strategy == "ensemble"
        members = [state for _, state in sorted(self.site_models.items())] if ensemble else []
        instruction = self.desk.instruction(server_round, splits=splits, num_models=max(len(members), 1))
        together = {model_record(number): tensor_record(state) for number, state in enumerate(members)}
        messages = []
        for site in self.desk.free(self.roster.evaluators):
            own = members[0] if len(members) == 1 else self.site_models.get(site)
            records = together if len(members) > 1 else {MODEL: arrays if own is None else tensor_record(own)}
            # An earlier version, which does not tell itself, knows nothing of turned images.
            asked = turning if self.roster.reports[site].popmi else None
            told = instruction.model_copy(update={"turning": asked})
            messages.append(self.desk.message(site, EVALUATING, told, records))
        return messages

    def frozen(self, server_round: int) -> tuple[str, ...]:
        """Return what sites leave as it is in this round: with FedMA the layers that are matched for good."""
        if "fedma" not in common_rules(self.config) or self.symmetry is None:
            return ()
        return schedule(self.symmetry, self.config.rounds, server_round)

    def scorer(self, server_round: int) -> SiteScorer:
        """Return who has candidates judged in this round."""
        return SiteScorer(self.desk, server_round, repair=self.asks.norms, warn=self.recorder.warn)

    def expected(self, server_round: int) -> Expected:
        """Return what valid replies to the last messages look like."""
        asked = self.asks.statistics
        seen = self.symmetry if "activations" in asked else None
        found = self.desk.expected(server_round, control=self.asks.control, grams="gram" in asked, seen=seen)
        # Where sites keep models of their own there is no common one to measure a change against.
        common = self.global_model if common_rules(self.config) else {}
        return replace(found, reference=common)

    def carried_state(self) -> dict[str, Tensor]:
        """Return what the next round needs beside the global model, by name."""
        sites = {site: dict(state) for site, state in self.site_models.items()}
        return Carried(self.optimizer.state_dict(), self.control, sites, self.roster.ledgers).to_tensors()

    def restore(self, global_model: Mapping[str, Tensor] | None, carried: Mapping[str, Tensor]) -> None:
        """Go on from a recorded round; without a model, from the run's own start."""
        found = Carried.from_tensors(carried)
        self.roster.ledgers |= found.ledgers
        if global_model is None:
            return
        self.global_model, self.control = dict(global_model), found.control
        self.optimizer.load_state_dict(found.optimizer)
        self.site_models |= found.sites


def _no_model(rounds: int, last: RoundResult | None) -> str:
    troubles = [f"{item.site}: {item.reason}" for item in (last.train if last else []) if item.reason]
    why = "; ".join([*([last.note] if last and last.note else []), *troubles]) or "no site was left to ask"
    return f"no model came of {rounds} round(s) on end ({why}). Mend this and resume the run."
