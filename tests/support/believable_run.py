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

from popmi_core.metrics.suppression import classes_to_tell
from server.store import RunWriter

SITES = ("msk", "rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
LAYERS = tuple(f"blocks.{number}.{part}" for number in range(3) for part in ("attn", "mlp"))
UNITS = 192
MIN_CELL = 5
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
    described |= changes
    run_id = writer.start_run(name, **described)  # type: ignore[arg-type]
    write_joined(writer, tuple(described["sites"]), tuple(described["classes"]))  # type: ignore[arg-type]
    return run_id


def add_round(
    writer: RunWriter,
    server_round: int,
    *,
    trouble: Mapping[tuple[int, str], tuple[str, str]] = TROUBLE,
    last: bool = False,
    sites: tuple[str, ...] = SITES,
    sha256: str | None = None,
    notes: Mapping[str, object] | None = None,
    lift: float = 0.0,
) -> None:
    """Write one whole round; the last one holds test and external figures too.

    ``notes`` are added to its own; ``lift`` is how much better it is than usual.
    """
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
                writer.record_metrics(server_round, site, split, figures(server_round, lift - 0.03 * place, rng))
            gains = {layer: float(0.3 / (2 + place) * rng.random()) for layer in LAYERS}
            writer.record_match(
                server_round,
                site,
                gains=gains,
                identity={LAYERS[0]: place == 0},
                angles={layer: float(6 + 20 * rng.random()) for layer in LAYERS if layer.endswith("attn")},
                moved={layer: int(rng.integers(0, UNITS)) for layer in LAYERS if layer.endswith("mlp")},
                units={layer: UNITS if layer.endswith("mlp") else 3 for layer in LAYERS},
            )
    for split in ("val", "test") if last else ("val",):
        pooled = figures(server_round, lift + 0.01, rng)
        bounded = {
            key: value if key == "nll" else (value, value - 0.006, value + 0.006) for key, value in pooled.items()
        }
        writer.record_metrics(server_round, "global", split, bounded)
    if last:
        writer.record_metrics(server_round, "external", "external", figures(server_round, lift - 0.06, rng))
    write_details(writer, server_round, sites, last=last)
    writer.finish_round(
        server_round,
        seconds_total=24.6 + rng.random(),
        seconds_train=20.1,
        seconds_fuse=0.4,
        seconds_evaluate=3.6,
        notes={
            "rules": {"rule": "circuit", "head": "average"},
            "weights": weights_of(server_round, sites, trouble),
            **(notes or {}),
        },
        model_sha256=sha256 or (f"{server_round:02d}" * 32)[:64],
    )


def weights_of(
    server_round: int, sites: tuple[str, ...], trouble: Mapping[tuple[int, str], tuple[str, str]]
) -> dict[str, float]:
    """Return the weight of each site that answered: its part of the images."""
    images = {site: 400 + 90 * place for place, site in enumerate(sites) if (server_round, site) not in trouble}
    return {site: number / sum(images.values()) for site, number in images.items()}


def write_joined(writer: RunWriter, sites: tuple[str, ...], classes: tuple[str, ...]) -> None:
    """Write what sites told when they joined."""
    rng = np.random.default_rng(5)
    for place, site in enumerate(sites):
        sizes = {"train": 400 + 90 * place, "val": 60 + 10 * place, "test": 80 + 10 * place}
        joined = {
            "popmi": "" if place == 1 else "0.6.0", "skipped_rows": 7 if place == 2 else 0, "split_sizes": sizes,
            "phantom": True, "epsilon_limit": None, "delta": None,
        }  # fmt: skip
        writer.record_details(0, [(site, "train", "joined", joined)])
        # Every round tells an epsilon, and under a privacy budget no site counts its training images by class.
        for split in ("val", "test"):
            counts = rng.multinomial(sizes[split], _skew(len(classes)))
            told = classes_to_tell(counts, min_cell=MIN_CELL)
            cells = [int(n) if known else None for n, known in zip(counts, told, strict=True)]
            value = {"classes": classes, "counts": cells, "min_cell": MIN_CELL}
            writer.record_details(0, [(site, split, "classes", value)])


def write_details(writer: RunWriter, server_round: int, sites: tuple[str, ...], *, last: bool) -> None:
    """Write what is more than one figure: confusion, calibration and similarity; in the last round turned images."""
    rng = np.random.default_rng(1000 + server_round)
    grown = 1 - math.exp(-0.35 * server_round)
    scopes = {site: 60 + 10 * place for place, site in enumerate(sites)} | {"global": 400}
    for scope, images in scopes.items():
        for split in ("val", "test", "train") if last else ("val",):
            writer.record_details(server_round, [(scope, split, "confusion", confusion(images, grown, rng))])
            writer.record_details(server_round, [(scope, split, "calibration", calibration(images, grown, rng))])
        if last:
            writer.record_details(server_round, [(scope, "val", "rotation", rotation(images, rng))])
            writer.record_details(server_round, [(scope, "val", "lee", lee(rng))])
    near = 0.2 + 0.4 * grown + 0.05 * rng.random((len(sites), len(sites)))
    cosine = np.where(np.eye(len(sites)) == 1, 1.0, (near + near.T) / 2)
    norms = (2.5 - 1.5 * grown + 0.1 * rng.random(len(sites))).tolist()
    value = {"sites": sites, "cosine": cosine.tolist(), "norms": norms}
    writer.record_details(server_round, [("global", "train", "similarity", value)])


def hidden(count: int) -> int | None:
    """Return a count as it may be told."""
    return count if count >= MIN_CELL else None


def _skew(num_classes: int) -> np.ndarray:
    share = 0.6 ** np.arange(num_classes)
    return np.roll(share / share.sum(), -2)


def confusion(images: int, grown: float, rng: np.random.Generator) -> dict[str, object]:
    """Return a confusion table whose small cells are hidden."""
    size = len(CLASSES)
    odds = 0.3 * (1 - grown) + np.eye(size) * (0.2 + grown)
    counts = [
        rng.multinomial(n, row / row.sum()) for n, row in zip(rng.multinomial(images, _skew(size)), odds, strict=True)
    ]
    told = [[hidden(int(n)) for n in row] for row in counts]
    return {"classes": CLASSES, "counts": told, "min_cell": MIN_CELL}


def calibration(images: int, grown: float, rng: np.random.Generator) -> dict[str, object]:
    """Return reliability bins: too sure of itself, less so with every round."""
    number = max(1, min(15, images // MIN_CELL))
    confidence = np.linspace(0.3, 0.97, number)
    accuracy = np.clip(confidence - 0.2 * (1 - grown) + 0.02 * rng.normal(size=number), 0, 1)
    bins = [
        {"confidence": c, "accuracy": a, "lower": max(0.0, a - 0.06), "upper": min(1.0, a + 0.06), "count": n}
        for c, a, n in zip(confidence.tolist(), accuracy.tolist(), [images // number] * number, strict=True)
    ]
    return {"bins": bins, "ece": float(np.abs(confidence - accuracy).mean())}


def rotation(images: int, rng: np.random.Generator) -> dict[str, object]:
    """Return a rotation curve with its floor: least at quarter turns."""
    angles = [15.0 * step for step in range(24)]
    off = np.abs(np.sin(2 * np.radians(angles)))
    noise = 0.01 * rng.random(24) * (off > 1e-9)
    variation = np.where(np.arange(24) == 0, 0.0, 0.05 + 0.14 * off + noise)
    floor = {"total_variation": 0.04 * off, "flips": 0.03 * off, "accuracy": 0.62 - 0.01 * off}
    found = {"total_variation": variation, "flips": 0.8 * variation, "accuracy": 0.71 - 0.6 * variation}
    lists = {name: values.tolist() for name, values in found.items()}
    under = {name: values.tolist() for name, values in floor.items()}
    return {"angles": angles, "num_images": min(images, 128), **lists, "floor": under}


def lee(rng: np.random.Generator) -> dict[str, object]:
    """Return rotation LEE of a few layers."""
    inner = [(name, "attention") if name.endswith("attn") else (f"{name}.fc1", "linear") for name in LAYERS]
    layers = [
        {"name": name, "kind": kind, "value": float(0.4 * 0.7**place + 0.02 * rng.random())}
        for place, (name, kind) in enumerate([("patch_embed", "patch embedding"), *inner, ("norm", "norm")])
    ]
    return {"num_images": 16, "layers": layers}


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
