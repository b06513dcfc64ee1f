"""Every design and rival, trained alike on three data sets: what they hit, what turning changes, what they cost.

    python benchmarks/equivariance/study.py --out docs/results/equivariance

trains what is not there yet: the most telling rows of all data sets from every seed, then the others; --minutes
ends it early. Results and weights are kept below --runs by a hash of what they depend on, so that a study that was
stopped goes on. One table alone: --datasets blood. With --from-json the rows of --out's own JSON count
as run; --kept-only runs nothing. The page says what has not been run. Images come from the folder POPMI_DATA.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import DATASETS, MEASURED, Case, cases
from workers import run_all, write_whole

Result = dict[str, Any]


def main() -> None:
    arguments = parse_arguments()
    told = arguments.out.with_suffix(".json")
    if arguments.from_json:
        keep(json.loads(told.read_text())["runs"], arguments.runs)
    datasets = arguments.datasets.split(",")
    if not arguments.kept_only:
        missing = [case for case in cases(datasets, arguments.seeds) if not result_path(case, arguments.runs).exists()]
        wanted = [case for case in missing if not arguments.rows or case.row.name in arguments.rows.split(";")]
        run_all(run, wanted, arguments.runs, jobs=arguments.jobs, minutes=arguments.minutes)
    write(arguments.out, arguments.runs, arguments.seeds)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", default=",".join(DATASETS))
    parser.add_argument("--rows", default="", help="only these rows, with ; between")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after so many minutes")
    parser.add_argument("--kept-only", action="store_true", help="run nothing; tell what is there")
    parser.add_argument("--from-json", action="store_true", help="count the rows of --out's JSON as run")
    parser.add_argument("--runs", type=Path, default=Path("runs/equivariance"))
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    return parser.parse_args()


def result_path(case: Case, runs: Path) -> Path:
    """Return where a result is kept."""
    return runs / "results" / f"{case.key}.json"


def keep(rows: Sequence[Result], runs: Path) -> None:
    """Put a study's rows where results are kept, but for what is there; those described otherwise are not read."""
    (runs / "results").mkdir(parents=True, exist_ok=True)
    for row in rows:
        path = runs / "results" / f"{row['key']}.json"
        if not path.exists():
            path.write_text(json.dumps(row) + "\n")


def run(case: Case, runs: Path) -> str:
    """Train and measure one case, keep the result, and return a line about it."""
    begun = time.monotonic()
    row = result(case, runs)
    write_whole(result_path(case, runs), json.dumps(row) + "\n")
    turned = row["turning"]
    return (
        f"{time.strftime('%H:%M:%S')} {case.dataset}, {case.row.name}, seed {case.seed}: accuracy "
        f"{row['accuracy']:.4f}, balanced {row['balanced_accuracy']:.4f}, worst {turned['worst_accuracy']:.4f}, "
        f"{row['flops_of_plain']:.2f} x FLOPs, trained {row['training']['seconds']:.0f} s, measured "
        f"{row['measuring_seconds']:.0f} s, wall {time.monotonic() - begun:.0f} s"
    )


def result(case: Case, runs: Path) -> Result:
    """Return the row of one case: what it is, how it was trained, and its figures."""
    from data import load
    from measure import timed
    from models import build, get_model

    images = load(case.dataset)
    model, training = get_model(case, images, runs)
    plain = build(case.plain(), images, runs)
    return {
        "key": case.key, "dataset": case.dataset, "row": case.row.name, "seed": case.seed,
        "described": case.described(), "measured": MEASURED, "training": training,
        **timed(model, plain, case, images),
    }  # fmt: skip


def kept(runs: Path, seeds: int) -> list[Result]:
    """Return the results there are of the cases there are."""
    found = [result_path(case, runs) for case in cases(DATASETS, seeds)]
    return [json.loads(path.read_text()) for path in found if path.exists()]


def write(out: Path, runs: Path, seeds: int) -> None:
    """Write JSON and page from what is kept, of all data sets."""
    from page import report

    rows = kept(runs, seeds)
    out.parent.mkdir(parents=True, exist_ok=True)
    text = ",\n".join(json.dumps(row) for row in rows)
    out.with_suffix(".json").write_text(f'{{"seeds": {seeds}, "runs": [\n{text}\n]}}\n')
    out.with_suffix(".md").write_text(report(rows, seeds))


if __name__ == "__main__":
    main()
