"""Write down every round: figures into the record, the global model with its card beside it."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from popmi_core.checkpoints import load_state, save_state
from popmi_core.errors import ModelError, RunError
from popmi_core.protocol import DATABASE_VARIABLE, Progress, RunPlan
from server.card import model_card, write_card
from server.carried import Carried
from server.environment import describe_environment
from server.exchange import Late
from server.faultlog import FaultLog
from server.measured import joined_details
from server.patience import wait_out
from server.results import Figure, RoundResult, SiteOutcome, pooled_figures, round_notes
from server.roster import Roster
from server.store import RoundRow, RunReader, RunWriter
from server.store.schema import RECORD_NAME
from server.told import write_told, write_waiting

log = logging.getLogger("popmi.round")
# A failed run is resumed before its void rounds, of which there are at most three on end.
CARRIED_ROUNDS = 5
State = Mapping[str, Tensor]
Result = TypeVar("Result")
VAGUE = 0.5
"""Bounds further apart than this say next to nothing: they are shown instead of the value between them."""


class RunRecorder:
    """The record of one run: open it, write rounds, close it with an honest status."""

    def __init__(self, plan: RunPlan, writer: RunWriter, last_round: int, *, has_model: bool = False) -> None:
        self.plan, self.writer, self.last_round = plan, writer, last_round
        self.folder = Path(plan.folder)
        self.roster = Roster()
        self.has_model = has_model
        self.faults = FaultLog(plan, self.patiently)

    @classmethod
    def open(cls, plan: RunPlan, writer: RunWriter) -> RunRecorder:
        """Begin a new record, or go on with the run's own at its last finished round.

        A run killed before its record was begun is resumed by beginning it. A record that cannot be reached is waited
        for, at most ``plan.patience`` seconds.

        Raises:
            RunError: If it could not be opened in that time.
        """
        return wait_out(lambda: cls._open(plan, writer), plan.patience)

    @classmethod
    def _open(cls, plan: RunPlan, writer: RunWriter) -> RunRecorder:
        if plan.resume:
            with RunReader(record_of(plan)) as reader:
                begun = [item for item in reader.runs() if not plan.names or item.name == plan.run]
                has_model = bool(begun) and any(row.outcome == "ok" for row in reader.rounds(begun[-1].id))
            if begun:
                return cls(plan, writer, writer.resume_run(begun[-1].id), has_model=has_model)
        writer.start_run(
            plan.run,
            config=plan.config.model_dump(mode="json"),
            environment=describe_environment(),
            strategy=plan.config.strategy,
            seed=plan.config.seed,
            rounds_planned=plan.config.rounds,
            data_name=plan.data_name,
            phantom=plan.phantom,
            classes=list(plan.classes),
            sites=list(plan.sites),
        )
        return cls(plan, writer, 0)

    def last_state(self) -> tuple[dict[str, Tensor] | None, dict[str, Tensor]]:
        """Return the global model and the carried state of the last finished round whose files are whole.

        Rounds after it are forgotten and will be run again; the diary says why. No model (None) says that the run
        begins at its own start: no round was finished, or one alone, whose files are damaged; of that one is carried
        what is known of privacy ledgers. A record that cannot be reached is waited for.

        Raises:
            ModelError: If several rounds were finished and no one's files are whole: the disk needs a person.
            RunError: If the record could not be read or written in ``plan.patience`` seconds.
        """
        return self.patiently(self._last_state) if self.last_round else (None, {})

    def _last_state(self) -> tuple[dict[str, Tensor] | None, dict[str, Tensor]]:
        rows = {row.server_round: row for row in self._rounds()}
        damaged: list[str] = []
        for number in range(self.last_round, 0, -1):
            try:
                found = self._load(rows[number])
            except ModelError as error:
                damaged.append(f"checkpoint of round {number}: {error}")
                continue
            if damaged:
                self._fall_back(number, rows, damaged, f"Going on from the checkpoint of round {number}.")
            return found
        if len(damaged) > 1:
            raise ModelError(
                f"no checkpoint of this run can be used: {'; '.join(damaged)} All {len(damaged)} are damaged, expected "
                "one at most: look at the disk, put models/ and state/ back from a backup and resume, or start anew."
            )
        # Nothing but this round is lost by starting anew: the first model follows from description and seed.
        ledgers = self._ledgers(rows[1])
        self._fall_back(0, rows, damaged, "Round 1 is made anew, from the run's start.")
        return None, ledgers

    def _fall_back(self, number: int, rows: Mapping[int, RoundRow], damaged: Sequence[str], then: str) -> None:
        self.writer.drop_rounds(number)
        self.last_round = number
        self.has_model = any(row.outcome == "ok" for row in rows.values() if row.server_round <= number)
        self.warn(f"{'; '.join(damaged)} {then}")

    def _ledgers(self, row: RoundRow) -> dict[str, Tensor]:
        """Return how many entries sites' privacy ledgers had after a round; one where it was paid and no file tells."""
        with RunReader(record_of(self.plan)) as reader:
            sites = reader.sites(self.writer.run_id, since=row.server_round)
        found = {item.site: 1 for item in sites if item.server_round == row.server_round and item.epsilon is not None}
        with suppress(ModelError):
            path, digest = self._carried_path(row.server_round), row.notes.get("carried_sha256")
            found |= Carried.from_tensors(load_state(path, sha256=digest)[0]).ledgers if digest else {}
        return Carried(ledgers=found).to_tensors()

    def _load(self, row: RoundRow) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model, _ = load_state(self._model_path(row.server_round), sha256=row.model_sha256)
        digest = row.notes.get("carried_sha256")
        return model, load_state(self._carried_path(row.server_round), sha256=digest)[0] if digest else {}

    def joined(self, roster: Roster) -> None:
        """Note who takes part and who was refused, with the reason; seen before the next round begins."""
        self.roster = roster
        self.faults.refused(roster.refused)
        self.faults.excluded(roster.excluded)
        self.patiently(lambda: self._note_refused(roster))
        self.patiently(lambda: self._note_joined(roster))
        lines = [(f"{site} could not join: {reason}", "error") for site, reason in sorted(roster.refused.items())]
        lines += [
            (f"{site}: {report.skipped_rows} unusable row(s) skipped", "warning")
            for site, report in sorted(roster.reports.items())
            if report.skipped_rows
        ]
        for text, level in lines:
            # Each for itself: a line that is written is not written again while the next waits for room.
            self.patiently(partial(self.writer.event, text, level=level))
        told = Progress(kind="joined", rounds=self.plan.config.rounds, notes=tuple(roster.evaluators))
        log.info("%d site(s) joined: %s", len(told.notes), ", ".join(told.notes), extra={"progress": told})

    def _note_refused(self, roster: Roster) -> None:
        if self.plan.names:
            # The round that these sites miss may begin in ten minutes only, when the time to join is over.
            self.writer.drop_rounds(self.last_round)
            for site, reason in sorted(roster.refused.items()):
                self.writer.record_site(self.last_round + 1, site, phase="train", outcome="failed", reason=reason)

    def _note_joined(self, roster: Roster) -> None:
        privacy = self.plan.config.privacy
        promised = None if privacy is None else (privacy.target_epsilon, privacy.target_delta)
        for _, report in sorted(roster.reports.items()):
            self.writer.record_details(0, joined_details(report, self.plan.classes, promised))

    def warn(self, text: str) -> None:
        """Note what went wrong beside the rounds."""
        log.warning("%s", text)
        self.faults.note("run.warning", text)
        self.patiently(lambda: self.writer.event(text, level="warning"))

    def late(self, item: Late) -> None:
        """Note an answer that came when its question was closed."""
        if item.server_round == 0:
            # No fault: a site that had to read many images before it could join.
            told = f"{item.site} has read its images, {item.seconds:.0f} s after it was to join; it is asked anew"
            self.patiently(lambda: self.writer.event(told))
            return
        self.warn(
            f"{item.site} answered {item.seconds:.0f} s after round {item.server_round} ({item.kind}) was closed; not "
            "counted"
        )

    def waits_for(self, sites: Sequence[str]) -> None:
        """Note for whom the next round waits; nobody: it goes on."""
        self.patiently(partial(write_waiting, self.writer, self.last_round, sites))

    def begin_round(self, server_round: int) -> None:
        """Open a round."""
        self.patiently(lambda: self._begin(server_round))

    def _begin(self, server_round: int) -> None:
        self.writer.start_round(server_round)
        known = {*self.roster.nodes, *self.roster.excluded}
        absent = {site: "not on line" for site in self.plan.names if site not in known}
        for site, reason in sorted({**absent, **self.roster.refused}.items()):
            outcome = "unreachable" if site in absent and site not in self.roster.refused else "failed"
            self.writer.record_site(server_round, site, phase="train", outcome=outcome, reason=reason)
        for site, reason in sorted(self.roster.excluded.items()):
            self.writer.record_site(server_round, site, phase="train", outcome="stopped", reason=reason)

    def end_round(self, done: RoundResult, global_model: Mapping[str, Tensor], carried: Mapping[str, Tensor]) -> None:
        """Write the model first and close the round last: what the record calls finished can be resumed.

        Where there is no room or no database, waits for it, at most ``plan.patience`` seconds; nothing is half-written.

        Raises:
            RunError: If it could not be written in that time.
        """
        # First: a round that counts never lacks its faults.
        self.faults.round(done)
        self.patiently(lambda: self._write_round(done, global_model, carried))
        self.last_round = done.server_round
        self.has_model = self.has_model or done.fused is not None
        self._tell(done)

    def void_at_end(self) -> str | None:
        """Return which rounds at the run's end gave no model and why; None where the last one gave one.

        Raises:
            RunError: If the record could not be read in ``plan.patience`` seconds.
        """
        rows = [row for row in self.patiently(self._rounds) if row.finished is not None]
        void = list(takewhile(lambda row: row.outcome != "ok", reversed(rows)))[::-1]
        if not void:
            return None
        told = "; ".join(f"round {row.server_round}: {row.notes.get('void', row.outcome)}" for row in void)
        return f"no new model came of the last {len(void)} round(s) ({told}); the model is that of the round before"

    def _rounds(self) -> tuple[RoundRow, ...]:
        with RunReader(record_of(self.plan)) as reader:
            return reader.rounds(self.writer.run_id)

    def patiently(self, action: Callable[[], Result]) -> Result:
        """Return what ``action`` returns; without room or database, try again for ``plan.patience`` seconds.

        Raises:
            RunError: If it could not be done in that time, or, without waiting, would be refused again.
        """
        return wait_out(action, self.plan.patience, waits=self._waits, waited=self._paused)

    def _waits(self, why: str, first: bool) -> None:
        if first:
            self.faults.owe("run.paused", why)
        self.faults.settle()

    def _paused(self, seconds: float, why: str) -> None:
        # What was waited for is done; a disk that is full again at once must not end the run over this line.
        with suppress(RunError):
            self.writer.event(f"paused for {seconds:.0f} s: {why}", level="warning")
        self.faults.owe("run.resumed-by-itself", why, seconds=round(seconds, 1))

    def _write_round(self, done: RoundResult, global_model: State, carried: State) -> None:
        refused = write_told(self.writer, done, pooled_figures(done.evaluation), self.plan.classes)
        card = model_card(self.plan, done)
        digest = save_state(self._model_path(done.server_round), global_model, {"card": json.dumps(card)})
        write_card(self._model_path(done.server_round).with_suffix(".md"), self.plan.run, card, digest)
        notes = round_notes(done)
        if carried:
            notes["carried_sha256"] = save_state(self._carried_path(done.server_round), carried)
            self._carried_path(done.server_round - CARRIED_ROUNDS).unlink(missing_ok=True)
        self.writer.finish_round(
            done.server_round,
            outcome="ok" if done.fused is not None else "void",
            seconds_total=done.seconds,
            seconds_train=_busy(done.train),
            seconds_fuse=done.seconds_combine,
            seconds_evaluate=_busy(done.evaluate) + done.seconds_judge,
            notes=notes,
            model_sha256=digest,
            remarks=refused,
        )
        for text in refused:
            log.warning("%s", text)

    def _tell(self, done: RoundResult) -> None:
        pooled = pooled_figures(done.evaluation).get("val", {})
        figures = {name: _value(item) for name, item in pooled.items()}
        troubles = tuple(
            f"{item.site}: {phase} {item.outcome}: {item.reason}"
            for phase, outcomes in (("train", done.train), ("evaluate", done.evaluate))
            for item in outcomes
            if item.outcome != "ok"
        )
        notes = (*troubles, *((done.note,) if done.note else ()))
        told = Progress(
            kind="round", server_round=done.server_round, rounds=self.plan.config.rounds, seconds=done.seconds,
            figures=figures, notes=notes,
        )  # fmt: skip
        log.info(
            "round %d/%d: AUROC %s, balanced accuracy %s (validation), %.1f s%s",
            done.server_round, told.rounds, _short(pooled.get("auroc")), _short(pooled.get("balanced_accuracy")),
            done.seconds, "".join(f"\n  {note}" for note in notes), extra={"progress": told},
        )  # fmt: skip

    def _model_path(self, server_round: int) -> Path:
        return self.folder / "models" / f"round-{server_round:03d}.safetensors"

    def _carried_path(self, server_round: int) -> Path:
        return self.folder / "state" / f"round-{server_round:03d}.safetensors"


def record_of(plan: RunPlan) -> str | Path:
    """Return the database of a run's record: the one all runs of a server share, or a file in the run folder."""
    return (os.environ.get(DATABASE_VARIABLE, "") if plan.names else "") or Path(plan.folder) / RECORD_NAME


def open_writer(plan: RunPlan) -> RunWriter:
    """Return the writer of the run's record.

    Raises:
        RunError: If the folder cannot be made.
    """
    folder = Path(plan.folder)
    try:
        for part in (folder / "models", folder / "state"):
            part.mkdir(parents=True, exist_ok=True)
            # A process that was killed while it wrote leaves its half behind, under a name of its own.
            for half in part.glob(".*.tmp") if plan.names else ():
                half.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot make run folder {folder}: {error.strerror}. Choose another --out.") from error
    return RunWriter(record_of(plan))


def _busy(outcomes: Sequence[SiteOutcome]) -> float:
    return math.fsum(item.report.seconds for item in outcomes if item.report is not None)


def _value(figure: Figure) -> float | None:
    value = figure[0] if isinstance(figure, tuple) else figure
    return value if math.isfinite(value) else None


def _short(figure: Figure | None) -> str:
    value = None if figure is None else _value(figure)
    if isinstance(figure, tuple) and value is not None and figure[2] - figure[1] > VAGUE:
        return f"between {figure[1]:.2f} and {figure[2]:.2f}"
    return "undefined" if value is None else f"{value:.3f}"
