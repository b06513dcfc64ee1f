"""The Flower server app: read the plan, run the rounds, close the record honestly whatever happens."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from popmi_core.asking import common_rules
from popmi_core.atomic import held_alone
from popmi_core.errors import ConfigError, PopmiError, RunError
from popmi_core.protocol import HOME_VARIABLE, LOCK_FILE, PLAN_FILE, PLAN_KEY, RUNS_FOLDER, RunPlan
from server.dashboard.report import write_report
from server.patience import wait_out
from server.rounds.evaluate import evaluate_external
from server.rounds.record import RunRecorder, open_writer, record_of
from server.store import RunReader, RunWriter
from server.strategy import OpmStrategy
from server.weighing import weigh_first
from server.wire import tensor_record

log = logging.getLogger("popmi.round")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run configuration's plan describes."""
    plan = read_plan(context)
    try:
        with ExitStack() as stack:
            if plan.names:
                stack.enter_context(_alone(plan))
                weigh_first()
            writer = wait_out(lambda: open_writer(plan), plan.patience)
            run_plan(grid, plan, stack.enter_context(writer))
    finally:
        report_run(plan)


@contextmanager
def _alone(plan: RunPlan) -> Iterator[None]:
    # Flower may start a run's app a second time while the first is still at it, cut off from its SuperLink.
    with ExitStack() as stack:
        try:
            stack.enter_context(held_alone(Path(plan.folder) / LOCK_FILE))
        except BlockingIOError as error:
            raise RunError(f"{plan.folder}: another process is at this run. Wait for its end.") from error
        yield


def report_run(plan: RunPlan) -> None:
    """Write the run's report; a run that has its models does not fail over its report."""
    try:
        with RunReader(record_of(plan)) as reader:
            # No run where the record could not even be begun; the cause has been told.
            for run in [item for item in reader.runs() if not plan.names or item.name == plan.run][-1:]:
                write_report(reader, run.id, Path(plan.folder) / "report.html")
    except PopmiError as error:
        log.warning("the report could not be written: %s", error)
    except Exception:
        log.exception("the report could not be written")


def read_plan(context: Context) -> RunPlan:
    """Return the plan from the run configuration, or from the folder of the run that it names.

    A real federation's configuration travels to the sites: it holds the run's name only.

    Raises:
        ConfigError: If there is none.
    """
    text = context.run_config.get(PLAN_KEY)
    if not isinstance(text, str) or not text:
        raise ConfigError(f"the run configuration has no '{PLAN_KEY}'. Start runs with `popmi simulate` or `server`.")
    if text.startswith("{"):
        return RunPlan.model_validate_json(text)
    path = Path(os.environ.get(HOME_VARIABLE, ".")) / RUNS_FOLDER / Path(text).name / PLAN_FILE
    try:
        return RunPlan.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"run {text} has no readable {path} ({type(error).__name__}). Restore it or start anew."
        ) from error


def run_plan(grid: Grid, plan: RunPlan, writer: RunWriter) -> None:
    """Run all rounds; the record says finished, failed with the reason, or stopped.

    A record that cannot be reached is waited for, at the beginning and at the end too: a run that is done is not
    called failed because something else held the record for a minute.
    """
    try:
        recorder = RunRecorder.open(plan, writer)
        strategy = OpmStrategy(plan, recorder)
        strategy.restore(*recorder.last_state())
        strategy.summary()
        strategy.start(
            grid,
            tensor_record(strategy.global_model),
            num_rounds=plan.config.rounds,
            timeout=plan.config.timeout,
            evaluate_fn=lambda _, arrays: external_figures(strategy, arrays),
        )
        reason = ending(strategy, plan)
    except KeyboardInterrupt:
        close_run(writer, "stopped", "stopped by the operator; `popmi simulate --resume` goes on")
        raise
    except PopmiError as error:
        close_run(writer, "failed", str(error))
        raise
    except Exception as error:
        close_run(writer, "failed", f"{type(error).__name__}: {error}")
        raise
    recorder.patiently(lambda: writer.finish_run("finished", reason))


def close_run(writer: RunWriter, status: str, reason: str) -> None:
    """End the record of a run that ended early; a record that cannot be written does not hide why it ended."""
    try:
        writer.finish_run(status, reason)
    except PopmiError as error:
        log.warning("the run's end could not be recorded: %s", error)


def ending(strategy: OpmStrategy, plan: RunPlan) -> str | None:
    """Return what a person must know of a finished run: that it ended before its last round, or in void ones, and why.

    Raises:
        RunError: If that was because every key was revoked: with new keys the run can be resumed.
    """
    done, void = strategy.recorder.last_round, strategy.recorder.void_at_end()
    if done >= plan.config.rounds:
        return void
    if not strategy.roster.stopped:
        missing = {**strategy.roster.refused, **strategy.roster.excluded}
        told = "; ".join(f"{site}: {why}" for site, why in sorted(missing.items())) or "nobody"
        raise RunError(
            f"no site was left to train after round {done} of {plan.config.rounds} ({told}). Invite sites and resume "
            "the run."
        )
    stopped = "; ".join(f"{site}: {why}" for site, why in sorted(strategy.roster.stopped.items()))
    early = f"ended after round {done} of {plan.config.rounds}: no site was left to train ({stopped})"
    return early if void is None else f"{early}; {void}"


def external_figures(strategy: OpmStrategy, arrays: ArrayRecord) -> MetricRecord | None:
    """Return the last global model's figures on the external test set, where there is one and one whole model.

    An external set that cannot be used is told and left out: the training is done and must not be lost over it.
    """
    plan = strategy.plan
    whole = common_rules(plan.config) and not plan.config.personal.keep_local
    if plan.external is None or not whole:
        return None
    try:
        figures = evaluate_external(
            strategy.model, arrays.to_torch_state_dict(), plan.external, image_size=plan.config.model.image_size
        )
    except PopmiError as error:
        strategy.recorder.warn(f"no figures on the external test set: {error}")
        return None
    return MetricRecord({name: float(value) for name, value in figures.items()})
