"""How well pooled figures are known when sites send histograms with small cells suppressed.

Synthetic sites with the class skew of dermoscopy sets, five at a time; prints a table and writes it as JSON:
    python benchmarks/pooling_resolution.py [--out FILE] [--repeats N]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from popmi_core.metrics import ScoreSummary, classification_metrics, pool_summaries, summarise_scores
from popmi_core.metrics.calibration import expected_calibration_error
from popmi_core.metrics.discrimination import average_precision, binary_auroc, confusion

Site = tuple[NDArray[np.float64], NDArray[np.int64]]
FIGURES = ("auroc", "auprc", "macro_f1", "balanced_accuracy", "accuracy", "ece")
# Shares of akiec, bcc, bkl, df, mel, nv, vasc in HAM10000 (Tschandl et al. 2018, doi:10.1038/sdata.2018.161).
SKEW = np.array([0.033, 0.051, 0.110, 0.0115, 0.111, 0.670, 0.0135])
FEDERATIONS = {
    "5 sites, 80-800": (80, 150, 300, 500, 800),
    "5 sites, 300 each": (300,) * 5,
    "5 sites, 90 each": (90,) * 5,
    "5 sites, 30 each": (30,) * 5,
}


def make_site(num_images: int, rng: np.random.Generator, *, separation: float, heavy_tails: bool = False) -> Site:
    """Softmax scores and targets of one site; a larger separation is a better model."""
    skew = SKEW / SKEW.sum()
    target = rng.choice(len(skew), size=num_images, p=skew).astype(np.int64)
    noise = rng.standard_t(3, (num_images, len(skew))) if heavy_tails else rng.normal(size=(num_images, len(skew)))
    evidence = separation * rng.uniform(0.3, 1.7, (num_images, 1)) * np.eye(len(skew))[target]
    odds = np.exp(1.2 * noise + np.log(skew) + evidence)
    return odds / odds.sum(axis=1, keepdims=True), target


def exact(sites: list[Site], summaries: list[ScoreSummary]) -> dict[str, float]:
    """The figures from all scores, over the patients that `PooledMetrics` speaks of."""
    kept = [(scores, target) for (scores, target), s in zip(sites, summaries, strict=True) if s.num_examples]
    scores, target = np.concatenate([s for s, _ in kept]), np.concatenate([t for _, t in kept])
    rows = []
    for c in range(scores.shape[1]):
        telling = [site for site, summary in zip(sites, summaries, strict=True) if summary.told[c]]
        if telling:
            values, labels = np.concatenate([s for s, _ in telling]), np.concatenate([t for _, t in telling])
            table = confusion(values.argmax(axis=1), labels, scores.shape[1])
            hits, support, called = table[c, c], table[c].sum(), table[:, c].sum()
            pair = values[:, c], labels == c
            rows.append([binary_auroc(*pair), average_precision(*pair), 2 * hits / (support + called), hits / support])
    ranking = np.mean(rows, axis=0) if rows else np.full(4, np.nan)
    hit = float((scores.argmax(axis=1) == target).mean())
    return dict(zip(FIGURES, [*ranking.tolist(), hit, expected_calibration_error(scores, target)], strict=True))


def measure(sizes: tuple[int, ...], *, repeats: int, seed: int) -> dict[str, dict[str, float]]:
    """Mean and largest error of the pooled value, mean resolution, and whether all bounds held, per figure.

    ``kept_back`` is the mean distance of the pooled value from the figure over all patients, withheld ones too.
    """
    rng = np.random.default_rng(seed)
    errors: dict[str, list[float]] = {name: [] for name in FIGURES}
    widths: dict[str, list[float]] = {name: [] for name in FIGURES}
    kept_back: dict[str, list[float]] = {name: [] for name in FIGURES}
    missed, seconds, told = 0, 0.0, []
    for repeat in range(repeats):
        style = {"separation": (1.0, 2.0, 4.0)[repeat % 3], "heavy_tails": repeat % 2 == 1}
        sites = [
            make_site(size, rng, separation=style["separation"], heavy_tails=bool(style["heavy_tails"]))
            for size in sizes
        ]
        start = time.perf_counter()
        summaries = [summarise_scores(*site) for site in sites]
        pooled = pool_summaries(summaries)
        seconds += time.perf_counter() - start
        told.append(float(np.mean([s.told.mean() for s in summaries])))
        everyone = classification_metrics(*(np.concatenate(part) for part in zip(*sites, strict=True)))
        for name, truth in exact(sites, summaries).items():
            figure = getattr(pooled, name)
            errors[name].append(abs(figure.value - truth))
            widths[name].append(figure.resolution)
            kept_back[name].append(abs(figure.value - everyone[name]))
            missed += not figure.lower <= truth <= figure.upper
    rows = {
        name: {
            "mean_error": float(np.mean(errors[name])),
            "max_error": float(np.max(errors[name])),
            "resolution": float(np.mean(widths[name])),
            "kept_back": float(np.mean(kept_back[name])),
        }
        for name in FIGURES
    }
    rows["all"] = {"bounds_missed": float(missed), "seconds": seconds / repeats, "classes_told": float(np.mean(told))}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    results = {name: measure(sizes, repeats=arguments.repeats, seed=0) for name, sizes in FEDERATIONS.items()}
    print("| federation | figure | mean error | largest error | resolution | from all patients |")
    print("| --- | --- | --- | --- | --- | --- |")
    for federation, rows in results.items():
        for name in FIGURES:
            row = rows[name]
            cells = " | ".join(f"{row[key]:.4f}" for key in ("mean_error", "max_error", "resolution", "kept_back"))
            print(f"| {federation} | {name} | {cells} |")
    for federation, rows in results.items():
        total = rows["all"]
        print(
            f"{federation}: bounds missed {total['bounds_missed']:.0f}, "
            f"{total['classes_told']:.0%} of classes told per site, {total['seconds']:.3f} s"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
