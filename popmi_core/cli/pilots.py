"""The group of a federated run, chosen by short runs of every candidate before it begins (adapter.group = "auto").

Every pilot is a run like any other: sites train on their own images and tell validation figures that are pooled as in
every round; none of its models is kept. What was chosen is written into the run folder and does not change on resuming.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from popmi_core.cli import apps
from popmi_core.cli.fit import with_candidate
from popmi_core.cli.lineup import plan_run
from popmi_core.cli.outputs import as_json
from popmi_core.cli.summary import CHOICE_FILE, RECORD
from popmi_core.config import RunConfig
from popmi_core.errors import ConfigError, ModelError, RunError
from popmi_core.protocol import PLAN_FILE, RunPlan

if TYPE_CHECKING:
    from popmi_core.learning.choose import Candidate, Choice

METRIC = "balanced_accuracy"
Simulate = Callable[[RunPlan], None]


def choose_in_pilots(
    config: RunConfig, out: Path | None, simulate: Simulate, tell: Callable[[str], object]
) -> tuple[RunConfig, Choice]:
    """Return the run's description with a group in place of ``auto``, and the choice.

    Where the chosen group is not all of D4, sites leave turns out of their random views: those would teach again what
    the pilots found to be wrong.

    Args:
        config: The description, ``model.adapter.group`` = ``auto``.
        out: The run folder, if named; it must not hold a run.
        simulate: Runs a plan to its end.
        tell: Called with a line after every pilot.

    Raises:
        ConfigError: If sites have no common model, or the pilots decide nothing.
        ModelError: If the plain model cannot be built.
        RunError: If ``out`` holds a run already.
    """
    from popmi_core.learning.choose import candidates_for, decide

    if config.strategy in ("local", "ensemble"):
        raise ConfigError(f"adapter.group = 'auto' compares common models; {config.strategy} has none. Name the group.")
    if out is not None and (out / PLAN_FILE).exists():
        raise RunError(f"{out} already holds a run. Choose another --out, or go on with it: --resume.")
    adapter = config.model.adapter
    scores: dict[Candidate, list[float]] = {}
    left_out: dict[str, str] = {}
    support: list[int] = []
    with tempfile.TemporaryDirectory(prefix="popmi-pilots-") as folder:
        for candidate in candidates_for(adapter):
            for number in range(adapter.pilot_seeds):
                plan = plan_run(_pilot(config, candidate, number), Path(folder) / f"{candidate.name}-{number}")
                if number == 0 and not _can_be_built(plan, candidate, left_out, needed=not scores):
                    break
                simulate(plan)
                figure, support = _figure_of(plan)
                scores.setdefault(candidate, []).append(figure)
                tell(f"pilot {candidate.name}, seed {plan.config.seed}: balanced accuracy {figure:.3f}")
    choice = decide(scores, counts=support, metric=METRIC, chance=1 / len(support), left_out=left_out)
    return _decided(config, choice.chosen), choice


def keep_choice(choice: Choice, folder: Path) -> None:
    """Write what was chosen and why into the run folder.

    Raises:
        RunError: If it cannot be written.
    """
    try:
        (folder / CHOICE_FILE).write_text(as_json(choice.to_json()) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write {folder / CHOICE_FILE}: {error.strerror}. Choose another --out.") from error


def _pilot(config: RunConfig, candidate: Candidate, number: int) -> RunConfig:
    local = config.local.model_copy(update={"augment": "shifts" if config.local.augment else False})
    return config.model_copy(
        update={
            "rounds": config.model.adapter.pilot_rounds,
            "seed": config.seed + number,
            "local": local,
            "model": with_candidate(config.model, candidate),
        }
    )


def _decided(config: RunConfig, chosen: Candidate) -> RunConfig:
    exact_d4 = chosen.group == "D4" and not chosen.free_blocks
    views = config.local.augment if exact_d4 or not config.local.augment else "shifts"
    changed = {
        "model": with_candidate(config.model, chosen),
        "local": config.local.model_copy(update={"augment": views}),
    }
    # Read again as a whole: what is written into the run folder has to be a description.
    return RunConfig.model_validate(config.model_copy(update=changed).model_dump())


def _can_be_built(plan: RunPlan, candidate: Candidate, left_out: dict[str, str], *, needed: bool) -> bool:
    from popmi_core.models import build_model

    try:
        build_model(plan.config.model, len(plan.classes), seed=plan.config.seed)
    except ModelError as error:
        if needed:
            raise
        left_out[candidate.name] = str(error)
        return False
    return True


def _figure_of(plan: RunPlan) -> tuple[float, list[int]]:
    """Return the pooled validation figure after the last round, and the images of every class that it is over."""
    with apps.load(apps.RUN_READER)(Path(plan.folder) / RECORD) as reader:
        run = reader.run().id
        rows, rounds = reader.metrics(run, split="val"), reader.rounds(run)
    last = max((row.server_round for row in rows), default=0)
    pooled = [
        row.value
        for row in rows
        if (row.server_round, row.scope, row.name) == (last, "global", METRIC) and row.value is not None
    ]
    # Classes with few images are told of by no site, and no part of the mean.
    told_of = [row.notes["support_pooled"]["val"] for row in rounds if row.notes.get("support_pooled", {}).get("val")]
    if not pooled or not told_of:
        raise ConfigError(
            "a pilot came to no common validation figure: the sites have too few validation images, or its rounds were "
            "void. Name the group (adapter.group) instead of 'auto'."
        )
    return pooled[0], told_of[-1]
