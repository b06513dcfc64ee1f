"""Pictures of an evaluation, as PNG and SVG: rotation curve, calibration, worst angles, LEE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from popmi_core.cli.evaluation import Evaluation, Sample
from popmi_core.cli.pictures import COLOURS, GREY, canvas, save
from popmi_core.equivariance.lie import Lee
from popmi_core.equivariance.lie_layers import LayerTerms
from popmi_core.metrics.turning import TurningFigures

_LAYERS = 14
_EIGHTHS = range(0, 361, 45)
# More kinds than colours are one: the smallest.
_KINDS = len(COLOURS) - 1


def draw_all(found: Evaluation, folder: Path) -> list[Path]:
    """Draw what was measured and return the paths.

    Raises:
        RunError: If the folder cannot be written.
    """
    paths: list[Path] = []
    if found.turning is not None:
        paths += draw_rotation(found.turning, folder) + draw_calibration(found.turning, folder)
    if found.samples:
        paths += draw_samples(found.samples, folder)
    if found.layers is not None:
        paths += draw_lee(found.lee, folder) + draw_layers(found.layers, folder)
    return paths


def draw_rotation(turning: TurningFigures, folder: Path) -> list[Path]:
    """Draw how far answers move, over the floor, and accuracy at every angle."""
    with canvas((9.0, 3.7)) as figure:
        left, right = figure.subplots(1, 2)
        _angles(left, turning, "total_variation", COLOURS[0], "model")
        if turning.floor is not None:
            _angles(left, turning.floor, "total_variation", GREY, "floor: an invariant function")
        left.set(title="How far answers move", ylabel="total variation from upright", ylim=(0, None))
        left.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, fontsize=8)
        _angles(right, turning, "accuracy", COLOURS[0], "accuracy")
        accuracy = np.array(turning.by_angle["accuracy"])
        right.axhline(accuracy[0], color="black", linewidth=1, linestyle=":", label="upright")
        worst, low = turning.worst_angle, turning.figures["worst_accuracy"]
        ends = [[low.value - low.lower], [low.upper - low.value]]
        right.errorbar(
            [worst], [low.value], yerr=np.maximum(ends, 0), color=COLOURS[1], marker="o", capsize=3, zorder=3,
            label=f"worst: {low.value:.3f} at {worst:g}°",
        )  # fmt: skip
        bottom = max(0.0, np.floor(10 * min(accuracy.min(), low.lower) - 0.5) / 10)
        right.set(title="Accuracy", ylabel="share of images", ylim=(bottom, min(1.02, accuracy.max() + 0.1)))
        right.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=3, fontsize=8)
        return save(figure, folder, "rotation")


def draw_calibration(turning: TurningFigures, folder: Path) -> list[Path]:
    """Draw ECE and Brier score at every angle."""
    with canvas((9.0, 3.3)) as figure:
        panels = figure.subplots(1, 2)
        for panel, name, title, colour in zip(
            panels, ("ece", "brier"), ("Expected calibration error", "Brier score"), COLOURS[1:3], strict=True
        ):
            _angles(panel, turning, name, colour, title)
            values = turning.by_angle[name]
            panel.axhline(values[0], color="black", linewidth=1, linestyle=":", label="upright")
            panel.legend(loc="lower right", fontsize=8)
            panel.set(title=title, ylim=(0, 1.15 * max(*values, 1e-3)))
        return save(figure, folder, "calibration")


def draw_samples(samples: Sequence[Sample], folder: Path) -> list[Path]:
    """Draw the images that change most, upright above and at their worst angle below, with the answers."""
    with canvas((1.55 * len(samples) + 0.6, 4.3)) as figure:
        panels = figure.subplots(2, len(samples), squeeze=False)
        for column, sample in enumerate(samples):
            views = ((sample.upright, 0.0, sample.answers[0]), (sample.turned, sample.degrees, sample.answers[1]))
            for row, (picture, degrees, (name, score)) in enumerate(views):
                panel = panels[row, column]
                panel.imshow(picture, interpolation="nearest")
                right = name == sample.target
                panel.set_xlabel(f"{name} {score:.2f}", color=COLOURS[2] if right else COLOURS[1], fontsize=8)
                panel.set(xticks=[], yticks=[])
                panel.spines[:].set_visible(False)
                panel.set_title(f"{degrees:g}°", fontsize=8, loc="center")
            panels[0, column].set_title(f"is {sample.target}\n0°", fontsize=8, loc="center")
        figure.suptitle("Answers that turning changes most (green: right)", x=0.01, ha="left", fontsize=10)
        return save(figure, folder, "worst_angle")


def draw_lee(found: dict[str, Lee], folder: Path) -> list[Path]:
    """Draw LEE by generator in comparable units."""
    with canvas((5.6, 3.2)) as figure:
        panel = figure.subplots()
        values = [lee.relative for lee in found.values()]
        ends = [[v.value - v.lower for v in values], [v.upper - v.value for v in values]]
        panel.bar(
            list(found), [v.value for v in values], yerr=np.maximum(ends, 0), color=COLOURS[0], width=0.6, capsize=3
        )
        panel.set(title="Local equivariance error", ylabel="logits' move per pixel / spread")
        return save(figure, folder, "lee")


def draw_layers(layers: LayerTerms, folder: Path) -> list[Path]:
    """Draw which kinds of layers the change comes from, and the layers with the largest shares under rotation."""
    generators = list(dict.fromkeys(flow.generator for flow in layers.flows))
    first = "rotation" if "rotation" in generators else generators[0]
    by_kind = {name: layers.shares(name, by_kind=True) for name in generators}
    totals = {kind: sum(shares[kind] for shares in by_kind.values()) for kind in by_kind[first]}
    ranked = sorted(totals, key=lambda kind: -totals[kind])[:_KINDS]
    colours = dict(zip(ranked, (c for c in COLOURS if c != "#000000"), strict=False))
    with canvas((10.5, 4.4)) as figure:
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1, 1.15)})
        bottom = np.zeros(len(generators))
        for kind in [*ranked, "rest"]:
            others = [sum(v for k, v in by_kind[g].items() if k not in colours) for g in generators]
            values = np.array(others if kind == "rest" else [by_kind[g][kind] for g in generators])
            if values.max() >= 0.005:
                left.bar(generators, values, bottom=bottom, color=colours.get(kind, GREY), width=0.7, label=kind)
            bottom += values
        left.set(title="By kind of layer", ylabel="share of all layers' sum", ylim=(0, 1))
        left.tick_params(axis="x", labelrotation=30)
        left.legend(loc="upper left", bbox_to_anchor=(0, -0.24), ncols=3, fontsize=8)
        kinds = dict(zip(layers.names, layers.kinds, strict=True))
        shares = {n: v for n, v in list(layers.shares(first).items())[:_LAYERS] if v >= 0.001}
        bars = right.barh(list(shares), list(shares.values()), color=[colours.get(kinds[n], GREY) for n in shares])
        right.bar_label(bars, [f"{value:.1%}" for value in shares.values()], fontsize=7, padding=3)
        right.invert_yaxis()
        right.tick_params(axis="y", labelsize=7)
        right.set(title=f"By layer, {first}", xlim=(0, 1.15 * max(shares.values(), default=1.0)))
        return save(figure, folder, "lee_layers")


def _angles(panel: Any, turning: TurningFigures, name: str, colour: str, label: str) -> None:
    """Draw one figure at every angle; the circle is closed."""
    values = turning.by_angle[name]
    panel.plot([*turning.angles, 360], [*values, values[0]], color=colour, marker="o", markersize=2.5, label=label)
    panel.set(xlabel="degrees, counter-clockwise", xlim=(-5, 365))
    panel.set_xticks(_EIGHTHS)
