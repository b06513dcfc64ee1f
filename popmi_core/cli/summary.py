"""What a run came to: one table, or the same as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from popmi_core.cli import apps

RECORD = "record.sqlite"
CHOICE_FILE = "group.json"
"""How a run came to its group, where that was chosen by validation."""
COLUMNS = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced acc.",
    "macro_f1": "macro F1",
    "ece": "ECE",
    "rotation_consistency": "same at 90°",
}
VAGUE = 0.5
"""Bounds further apart than this say next to nothing: they are shown instead of the value between them."""
OWN_MODELS = ("local", "ensemble")
POOLED_ROW = "all sites together"
EXTERNAL_ROW = "external test set"


@dataclass(frozen=True)
class Summary:
    """The end of a run. ``figures`` go by row (a site, all together, external) and name; None is undefined.

    ``pooled_classes`` says over how many of the ``classes`` the sites' common figures are means: a class with few
    images is told of by no site. ``bounds`` enclose the exact common figures, by name. ``model`` is None where the
    sites have no common one (local, ensemble). ``wins`` counts by candidate how many rounds took it, where rounds
    chose; ``regret`` is the most that one site lost by a choice (nats of validation loss), over all rounds.
    ``group`` says in one sentence how the group was chosen; None where it was named.
    """

    run: str
    status: str
    reason: str | None
    strategy: str
    seed: int
    data: str
    phantom: bool
    rounds: int
    rounds_planned: int
    seconds: float
    overhead: float | None
    split: str
    classes: int
    pooled_classes: int | None
    figures: dict[str, dict[str, float | None]]
    bounds: dict[str, tuple[float, float]]
    epsilon: dict[str, float]
    folder: str
    model: str | None
    report: str
    wins: dict[str, int] = field(default_factory=dict)
    regret: float | None = None
    group: str | None = None

    def to_json(self) -> str:
        """Return the summary as JSON, sorted by key."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False)


def has_finished(folder: Path) -> bool:
    """Return whether the record in ``folder`` says that its run has come to its end."""
    if not (folder / RECORD).exists():
        return False
    with apps.load(apps.RUN_READER)(folder / RECORD) as reader:
        return any(run.status == "finished" for run in reader.runs())


def summarise(folder: Path) -> Summary:
    """Return the summary of the run in ``folder``, on the test split where it was reached, else on validation.

    ``overhead`` is the share of the rounds' wall time that was neither training nor evaluation; None where sites
    worked at the same time, so that their seconds add up to more than the wall time.
    """
    with apps.load(apps.RUN_READER)(folder / RECORD) as reader:
        run = reader.run()
        done = [row for row in reader.rounds(run.id) if row.finished is not None and row.server_round > 0]
        last = done[-1].server_round if done else 0
        metrics = [row for row in reader.metrics(run.id) if row.server_round == last]
        sites = reader.sites(run.id)
    split = "test" if any(row.split == "test" for row in metrics) else "val"
    figures: dict[str, dict[str, float | None]] = {}
    for row in metrics:
        if row.split in (split, "external"):
            label = {"global": POOLED_ROW, "external": EXTERNAL_ROW}.get(row.scope, row.scope)
            figures.setdefault(label, {})[row.name] = row.value
    total = sum(row.seconds_total or 0.0 for row in done)
    busy = sum((row.seconds_train or 0.0) + (row.seconds_evaluate or 0.0) for row in done)
    told = done[-1].notes.get("classes_pooled", {}) if done else {}
    model = folder / "models" / f"round-{last:03d}.safetensors"
    return Summary(
        run=run.name,
        status=run.status,
        reason=run.reason,
        strategy=run.strategy,
        seed=run.seed,
        data=run.data_name,
        phantom=run.phantom,
        rounds=last,
        rounds_planned=run.rounds_planned,
        seconds=round(total, 3),
        overhead=round((total - busy) / total, 4) if total >= busy > 0 else None,
        split=split,
        classes=len(run.classes),
        pooled_classes=told.get(split),
        figures=figures,
        bounds={
            row.name: (row.lower, row.upper)
            for row in metrics
            if (row.scope, row.split) == ("global", split) and row.lower is not None and row.upper is not None
        },
        epsilon={row.site: row.epsilon for row in sites if row.epsilon is not None},
        folder=str(folder),
        model=str(model) if model.exists() and run.strategy not in OWN_MODELS else None,
        report=str(folder / "report.html"),
        wins=dict(Counter(row.notes["chosen"] for row in done if row.notes.get("chosen")).most_common()),
        regret=max((row.notes["regret"] for row in done if row.notes.get("regret") is not None), default=None),
        group=read_choice(folder),
    )


def read_choice(folder: Path) -> str | None:
    """Return in one sentence how the run in ``folder`` came to its group; None where the group was named."""
    try:
        found = json.loads((folder / CHOICE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(found["sentence"]) if isinstance(found, dict) and "sentence" in found else None


def print_summary(summary: Summary) -> None:
    """Print the table and where everything lies."""
    console = Console()
    kind = f"{summary.data}, a phantom: not patients" if summary.phantom else summary.data
    title = f"{summary.strategy}, seed {summary.seed}, {summary.rounds} rounds on {kind}; {summary.split} images"
    caption = None
    if summary.pooled_classes is not None and summary.pooled_classes < summary.classes:
        caption = (
            f"{POOLED_ROW}: means over {summary.pooled_classes} of {summary.classes} classes; "
            "of the others no site has enough images to tell without giving single patients away"
        )
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("site")
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right")
    names = sorted(name for name in summary.figures if name not in (POOLED_ROW, EXTERNAL_ROW))
    for name in [*names, POOLED_ROW, EXTERNAL_ROW]:
        if name in summary.figures:
            row = summary.figures[name]
            bounds = summary.bounds if name == POOLED_ROW else {}
            table.add_row(name, *(_cell(row, column, bounds.get(column)) for column in COLUMNS))
    console.print(table)
    console.print(f"{summary.status}{f': {summary.reason}' if summary.reason else ''}", markup=False, highlight=False)
    if summary.group is not None:
        console.print(f"group chosen: {summary.group}", markup=False, highlight=False, soft_wrap=True)
    if summary.wins:
        won = ", ".join(f"{name} {times}" for name, times in summary.wins.items())
        lost = "" if summary.regret is None else f"; at most {summary.regret:.3f} nats worse for one site than its best"
        console.print(f"rounds won on validation images: {won}{lost}", markup=False, highlight=False, soft_wrap=True)
    for site, epsilon in sorted(summary.epsilon.items()):
        console.print(f"epsilon spent at {site}: {epsilon:.3f}", markup=False, highlight=False)
    where = [("model", summary.model), ("report", summary.report), ("run folder", summary.folder)]
    for what, path in where:
        if path is not None:
            console.print(f"{what:>10}: {path}", markup=False, highlight=False, soft_wrap=True)


def _cell(row: dict[str, float | None], column: str, bounds: tuple[float, float] | None) -> str:
    if column not in row:
        return "-"
    if bounds is not None and bounds[1] - bounds[0] > VAGUE and row[column] is not None:
        return f"{bounds[0]:.2f} to {bounds[1]:.2f}"
    value = row[column]
    return "undefined" if value is None else f"{value:.3f}"
