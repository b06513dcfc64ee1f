"""Write a run that looks like one: five sites, falling loss, one site in trouble now and then.

Used by the tests of the record, the pages and the report; as a script it is the other process of a live run:
``python believable_run.py FOLDER ROUNDS SECONDS_A_ROUND``.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from server.store import RunWriter

SITES = ("msk", "rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
LAYERS = tuple(f"blocks.{number}.{part}" for number in range(3) for part in ("attn", "mlp"))
TROUBLE = {(3, "rosendahl"): ("late", "no answer within 60 s"), (4, "msk"): ("failed", "out of memory on the device")}


def begin(writer: RunWriter, *, rounds: int = 6, name: str = "opm-seed0", **changes: object) -> int:
    """Open a run with a believable description; ``changes`` replace parts of it."""
    described: dict[str, object] = {
        "config": {"strategy": "opm", "rounds": rounds, "local": {"epochs": 1, "learning_rate": 1e-3}, "privacy": None},
        "environment": {"python": "3.11.2", "cores": 2, "packages": {"torch": "2.15.0", "flwr": "1.41.0"}},
        "strategy": "opm",
        "seed": 0,
        "rounds_planned": rounds,
        "data_name": "phantom",
        "phantom": True,
        "classes": CLASSES,
        "sites": SITES,
    }
    return writer.start_run(name, **(described | changes))  # type: ignore[arg-type]


def add_round(
    writer: RunWriter,
    server_round: int,
    *,
    trouble: Mapping[tuple[int, str], tuple[str, str]] = TROUBLE,
    last: bool = False,
    sites: tuple[str, ...] = SITES,
) -> None:
    """Write one whole round; the last one holds test and external figures too."""
    rng = np.random.default_rng(server_round)
    writer.start_round(server_round)
    for place, site in enumerate(sites):
        outcome, reason = trouble.get((server_round, site), ("ok", None))
        fine = outcome == "ok"
        for phase in ("train", "evaluate") if fine else ("train",):
            writer.record_site(
                server_round,
                site,
                phase=phase,
                outcome=outcome,
                reason=reason,
                num_examples=400 + 90 * place if phase == "train" else 60 + 10 * place,
                seconds=3.2 + 0.4 * place + rng.random() if fine else None,
                bytes_up=(2_040_000 if phase == "train" else 3_100) if fine else None,
                bytes_down=2_040_000,
                epsilon=0.6 * math.sqrt(server_round) * (1 + 0.08 * place) if fine and phase == "train" else None,
                train_loss=1.7 * math.exp(-0.25 * server_round) + 0.3 + 0.05 * place if phase == "train" else None,
            )
        if fine:
            for split in ("val", "test") if last else ("val",):
                writer.record_metrics(server_round, site, split, figures(server_round, -0.03 * place, rng))
            gains = {layer: float(0.3 / (2 + place) * rng.random()) for layer in LAYERS}
            writer.record_match(server_round, site, gains=gains, identity={LAYERS[0]: place == 0})
    for split in ("val", "test") if last else ("val",):
        pooled = figures(server_round, 0.01, rng)
        bounded = {
            key: value if key == "nll" else (value, value - 0.006, value + 0.006) for key, value in pooled.items()
        }
        writer.record_metrics(server_round, "global", split, bounded)
    if last:
        writer.record_metrics(server_round, "external", "external", figures(server_round, -0.06, rng))
    writer.finish_round(
        server_round,
        seconds_total=24.6 + rng.random(),
        seconds_train=20.1,
        seconds_fuse=0.4,
        seconds_evaluate=3.6,
        notes={"rules": {"rule": "circuit", "head": "average"}},
        model_sha256=f"{server_round:02d}" * 32,
    )


def figures(server_round: int, shift: float, rng: np.random.Generator) -> dict[str, float]:
    """Return one scope's figures: better with every round, a little noise, AUPRC undefined at first."""
    grown = 1 - math.exp(-0.35 * server_round)
    noise = float(rng.normal(0, 0.008))
    return {
        "auroc": 0.52 + 0.33 * grown + shift + noise,
        "auprc": math.nan if server_round == 1 else 0.2 + 0.3 * grown + shift,
        "macro_f1": 0.12 + 0.35 * grown + shift,
        "balanced_accuracy": 0.16 + 0.36 * grown + shift + noise,
        "accuracy": 0.45 + 0.25 * grown + shift,
        "ece": 0.24 - 0.14 * grown - shift,
        "brier": 0.8 - 0.35 * grown - shift,
        "nll": 1.9 - 0.95 * grown - shift,
        "rotation_consistency": 0.55 + 0.3 * grown + noise,
    }


def write_run(database: str | Path, *, rounds: int = 6, **changes: object) -> None:
    """Write a finished run."""
    with RunWriter(database, heartbeat=0) as writer:
        begin(writer, rounds=rounds, **changes)
        for server_round in range(1, rounds + 1):
            add_round(writer, server_round, last=server_round == rounds)
        writer.finish_run("finished")


if __name__ == "__main__":
    home, planned, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    home.mkdir(parents=True, exist_ok=True)
    with RunWriter(home / "record.sqlite", heartbeat=1.0) as live:
        begin(live, rounds=planned, name=home.name)
        for number in range(1, planned + 1):
            time.sleep(pause)
            add_round(live, number, last=number == planned)
        live.finish_run("finished")
