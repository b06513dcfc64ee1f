"""The post-hoc literature's four experiments: a trained model, its orbit aggregated, and what is trained afterwards.

    python benchmarks/equivariance/posthoc.py --out docs/results/posthoc

Experiments: rotated digits to rotated digits; upright digits to rotated ones; a tenth of the rotated digits; and an
EfficientNet-Lite0 pretrained on ImageNet, fine-tuned on dermoscopy. Each of the seven aggregations over 4 rotations,
with nothing trained afterwards, the head (and what the aggregation adds), or everything, and over 8 with nothing
trained; beside them the plain model, as it was trained and trained on as long. Runs are resumable as those of
study.py, in whose folder the plain models lie. Images come from the folder POPMI_DATA.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cases import Case, digest
from posthoc_page import SETTINGS, report
from rows import Row
from workers import run_all, write_whole

PLAIN = Row("plain", 0, "plain")
AGGREGATIONS = ("mean", "max", "sum", "most-probable", "most-certain", "score", "attention")
# Untrained, a learned aggregation says nothing of the method.
LEARNED = ("score", "attention")
# After the plain training, the same for every method: passes over ``images`` of its training images, drawn once.
RATES = {"head": 1e-3, "all": 3e-4}
EPOCHS = 2


@dataclass(frozen=True)
class Experiment:
    """Which data set's plain model is taken, on how many images it goes on, and on how many it is tested."""

    name: str
    dataset: str
    images: int
    tested: int


EXPERIMENTS = (
    Experiment("rotated to rotated", "rotated_mnist", 1000, 2000),
    Experiment("upright to rotated", "upright_mnist", 1000, 2000),
    Experiment("a tenth of the data", "tenth_mnist", 1000, 2000),
    Experiment("pretrained EfficientNet-Lite0", "pretrained", 300, 500),
)


@dataclass(frozen=True)
class Trial:
    """One cell of a table; aggregation "plain" is the model itself."""

    experiment: Experiment
    aggregation: str
    group: str
    trained: str
    seed: int

    @property
    def start(self) -> Case:
        """Return the run that trains the plain model."""
        return Case(self.experiment.dataset, PLAIN, self.seed)

    @property
    def key(self) -> str:
        """Return the name the result is kept under."""
        return digest({**asdict(self), "start": self.start.described(), "epochs": EPOCHS, "rates": RATES, "version": 1})


def main() -> None:
    arguments = parse_arguments()
    told = arguments.out.with_suffix(".json")
    if not arguments.from_json:
        planned = list(trials(arguments.seeds))
        if not arguments.kept_only:
            asked = set(filter(None, arguments.experiments.split(";"))) or {trial.experiment.name for trial in planned}
            missing = [trial for trial in planned if not result_path(trial, arguments.runs).exists()]
            wanted = [trial for trial in missing if trial.experiment.name in asked]
            run_all(run, wanted, arguments.runs, jobs=arguments.jobs, minutes=arguments.minutes)
        paths = [result_path(trial, arguments.runs) for trial in planned]
        rows = [json.loads(path.read_text()) for path in paths if path.exists()]
        text = ",\n".join(json.dumps(row) for row in rows)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        told.write_text(f'{{"planned": {len(planned)}, "runs": [\n{text}\n]}}\n')
    arguments.out.with_suffix(".md").write_text(report(json.loads(told.read_text())))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--experiments", default="", help="only these, with ; between; the page tells all there is")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after so many minutes")
    parser.add_argument("--kept-only", action="store_true", help="run nothing; tell what is there")
    parser.add_argument("--from-json", action="store_true", help="read nothing but OUT.json; print the page again")
    parser.add_argument("--runs", type=Path, default=Path("runs/equivariance"))
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    return parser.parse_args()


def trials(seeds: int) -> Iterator[Trial]:
    """Yield all cells, one seed of each before the second, small groups and what trains least first."""
    for seed in range(seeds):
        for experiment in EXPERIMENTS:
            yield Trial(experiment, "plain", "C1", "none", seed)
            # What the passes afterwards are worth without any aggregation.
            yield Trial(experiment, "plain", "C1", "all", seed)
        for group, trained in SETTINGS:
            for experiment in EXPERIMENTS:
                for aggregation in AGGREGATIONS:
                    if trained != "none" or aggregation not in LEARNED:
                        yield Trial(experiment, aggregation, group, trained, seed)


def result_path(trial: Trial, runs: Path) -> Path:
    """Return where a result is kept."""
    return runs / "posthoc" / f"{trial.key}.json"


def run(trial: Trial, runs: Path) -> str:
    """Measure one cell, keep it, and return a line about it."""
    begun = time.monotonic()
    row = result(trial, runs)
    write_whole(result_path(trial, runs), json.dumps(row) + "\n")
    return (
        f"{time.strftime('%H:%M:%S')} {row['experiment']}, {row['aggregation']}, {row['group']}, {row['trained']}, "
        f"seed {row['seed']}: accuracy {row['accuracy']:.4f}, {row['seconds']} s, wall {time.monotonic() - begun:.0f} s"
    )


def result(trial: Trial, runs: Path) -> dict[str, Any]:
    """Return the row of one cell."""
    from data import load, subset
    from measure import SUBSET_SEED, hits
    from models import fresh_copies, get_model

    from popmi_core.data import ImageSet
    from popmi_core.invariance.build import build_method
    from popmi_core.invariance.method import MethodContext
    from popmi_core.learning.fit import FitConfig, fit

    images = load(trial.experiment.dataset)
    begun = time.process_time()
    if trial.aggregation == "plain":
        model = get_model(trial.start, images, runs)[0]
    else:
        copies = fresh_copies(trial.start, images, runs)
        context = MethodContext(
            copies, trial.group, images.image_size, 3, images.num_classes, trial.seed, trial.trained
        )
        model = build_method(f"posthoc-{trial.aggregation}", context)
    if trial.trained != "none":
        few = subset(images.train, trial.experiment.images, SUBSET_SEED)[0]
        config = FitConfig(
            epochs=EPOCHS, learning_rate=RATES[trial.trained], seed=trial.seed, augment="none", choose="last"
        )
        fit(model, few, ImageSet.empty(images.image_size), config)
    tested = subset(images.test, trial.experiment.tested, SUBSET_SEED)[0]
    return {
        "key": trial.key, "experiment": trial.experiment.name, "aggregation": trial.aggregation, "group": trial.group,
        "trained": trial.trained, "seed": trial.seed, **hits(model.eval(), tested, float("inf")),
        "seconds": round(time.process_time() - begun, 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()
