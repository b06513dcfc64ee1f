"""Pictures of two models before and after matching, as PNG and SVG; the same figures give the same files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from popmi_core.errors import RunError
from popmi_core.fusion.comparison import PRODUCTS, Bounds, Line, Matrix

# Okabe and Ito's colours, which people with any colour vision tell apart; before is always grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#8c8c8c"
MARKERS = ("o", "^", "s", "D", "v", "P")
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.hashsalt": "popmi",
    # Letters stay letters: smaller files, and a search finds them.
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans"],
}
# Figures are written into the cells of so few heads; of more they would not be readable.
_WRITTEN = 6
_PRODUCT_NAMES = dict(zip(PRODUCTS, ("query-key", "value-output"), strict=True))
Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cloud:
    """Features of one model on one site's images, already two numbers an image: ``[images, 2]``."""

    model: str
    site: str
    points: Points


def draw_line(before: Line, after: Line, folder: Path) -> list[Path]:
    """Draw loss and accuracy along the line between the models; the dotted lines join the ends: no barrier."""
    with canvas((8.2, 3.9)) as figure:
        panels = figure.subplots(1, 2)
        lines = ((before, GREY, "before"), (after, COLOURS[0], "after"))
        for line, colour, when in lines:
            alphas, path = line.path.alphas, line.path
            _curve(panels[0], alphas, path.losses, colour, f"{when} matching: barrier {path.barrier:.3f}")
            _curve(panels[1], alphas, path.accuracies, colour, f"{when} matching: barrier {path.accuracy_barrier:.3f}")
        for panel in panels:
            panel.plot([], [], color="black", linewidth=1, linestyle=":", label="no barrier")
        for panel, title, unit in zip(panels, ("Loss", "Accuracy"), ("nats", "share of images"), strict=True):
            panel.set(title=title, ylabel=unit, xlabel="share of B", xlim=(0, 1))
            # Below: inside, some pair's hill or valley would run through it.
            panel.legend(loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=8)
        panels[1].set_ylim(0, 1.02)
        panels[0].set_ylim(0, 1.05 * max(*before.path.losses, *after.path.losses))
        return save(figure, folder, "line")


def draw_heads(
    before: Mapping[str, Mapping[str, Matrix]], after: Mapping[str, Mapping[str, Matrix]], folder: Path
) -> list[Path]:
    """Draw the likeness of every pair of heads, a column a layer: before and after, both products."""
    layers = list(before)
    rows = [(product, when, table) for product in PRODUCTS for when, table in (("before", before), ("after", after))]
    width = max(4.5, min(16.0, 1.5 * len(layers) + 1.6))
    with canvas((width, 7.0)) as figure:
        panels = figure.subplots(len(rows), len(layers), squeeze=False)
        for (product, when, table), line in zip(rows, panels, strict=True):
            for layer, panel in zip(layers, line, strict=True):
                picture = panel.imshow(table[layer][product], cmap="RdBu_r", vmin=-1, vmax=1)
                _write_cells(panel, table[layer][product])
                panel.set(xticks=[], yticks=[])
                panel.spines[:].set_visible(False)
            line[0].set_ylabel(f"{_PRODUCT_NAMES[product]}\n{when}")
        for layer, panel in zip(layers, panels[0], strict=True):
            panel.set_title(layer.removesuffix(".attn"), fontsize=8, loc="center")
        bar = figure.colorbar(picture, ax=panels, fraction=0.06, pad=0.03, aspect=40)
        bar.set_label("cosine of the heads' products")
        figure.suptitle("Attention heads: A down, B across", x=0.01, ha="left", fontsize=10)
        return save(figure, folder, "heads")


def draw_layers(table: Mapping[str, Mapping[str, float]], folder: Path) -> list[Path]:
    """Draw linear CKA block by block: shape is the model (A or B), colour what it is compared with.

    The axis begins below the lowest figure, for blocks of trained models are seldom unlike.
    """
    layers, pairs = list(table), [tuple(pair.split(", ")) for pair in next(iter(table.values()))]
    models, others = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
    with canvas((max(5.6, 0.5 * len(layers) + 3.6), 3.4)) as figure:
        panel = figure.subplots()
        for one, two in pairs:
            marker, colour = MARKERS[models.index(one)], ("black", GREY, *COLOURS)[others.index(two)]
            values = [table[layer][f"{one}, {two}"] for layer in layers]
            panel.plot(values, marker=marker, color=colour, label=f"{one} and {two}", markersize=5)
        lowest = min(value for row in table.values() for value in row.values())
        bottom = max(0.0, np.floor(10 * lowest - 0.5) / 10)
        panel.set(title="Likeness of features (linear CKA)", ylabel="CKA", ylim=(bottom, 1 + 0.03 * (1 - bottom)))
        panel.set_xticks(
            range(len(layers)),
            layers,
            rotation=45 if len(layers) > 6 else 0,
            ha="right" if len(layers) > 6 else "center",
        )
        panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
        return save(figure, folder, "cka")


def draw_bounds(line: Line, bounds: Bounds, folder: Path) -> list[Path]:
    """Draw the measured loss under the bounds of proposition 2, for both estimates of the constant."""
    with canvas((8.6, 3.6)) as figure:
        # Apart: the last number under one panel must not touch the first under the next.
        panels = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
        kinds = (
            (f"K from the steepest step: {bounds.slope_constant:.3g}", bounds.slope),
            (f"K from the largest gradient: {bounds.gradient_constant:.3g}", bounds.gradient),
        )
        for panel, (title, bound) in zip(panels, kinds, strict=True):
            forms = (
                (bound.provable, "provable: max + 2 K D a(1-a)", COLOURS[2]),
                (bound.tight, "tight: from both ends", COLOURS[0]),
                (bound.stated, "stated: max + K D a(1-a)", COLOURS[1]),
            )
            for values, label, colour in forms:
                panel.plot(line.path.alphas, values, color=colour, label=label)
            panel.plot(line.path.alphas, bound.losses, color="black", linewidth=2, label="measured loss")
            panel.axhline(bound.trivial, color=GREY, linestyle=":", label="answer without looking")
            panel.set(title=title, xlabel="share of B", xlim=(0, 1), yscale="log")
        panels[0].set_ylabel("nats (logarithmic)")
        panels[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
        figure.suptitle("Proposition 2 on the line after matching", x=0.01, ha="left", fontsize=10)
        return save(figure, folder, "bound")


def draw_features(panels: Sequence[tuple[str, Sequence[Cloud]]], folder: Path) -> list[Path]:
    """Draw t-SNE maps side by side: colour is the site (the model where there is one site), shape the model."""
    models = list(dict.fromkeys(cloud.model for _, clouds in panels for cloud in clouds))
    sites = list(dict.fromkeys(cloud.site for _, clouds in panels for cloud in clouds))
    by_site = len(sites) > 1
    with canvas((4.3 * len(panels) + 1.8, 4.2)) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, clouds) in zip(axes, panels, strict=True):
            for cloud in clouds:
                shade = sites.index(cloud.site) if by_site else models.index(cloud.model)
                marker = MARKERS[models.index(cloud.model) % len(MARKERS)]
                axis.scatter(*cloud.points.T, s=11, alpha=0.7, linewidths=0, marker=marker, color=COLOURS[shade % 7])
            axis.set(title=title, xticks=[], yticks=[])
            axis.spines[:].set(visible=True, color=GREY, linewidth=0.5)
        handles = [_key(MARKERS[i % 6], GREY if by_site else COLOURS[i % 7], name) for i, name in enumerate(models)]
        handles += [_key("o", COLOURS[i % 7], name) for i, name in enumerate(sites)] if by_site else []
        axes[-1].legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
        return save(figure, folder, "features")


def _curve(panel: Any, alphas: Points, values: Sequence[float], colour: str, label: str) -> None:
    panel.plot(alphas, values, color=colour, marker="o", markersize=3, label=label)
    panel.plot([0, 1], [values[0], values[-1]], color=colour, linewidth=1, linestyle=":")


def _write_cells(panel: Any, matrix: Matrix) -> None:
    if len(matrix) > _WRITTEN:
        return
    for row, column in np.ndindex(*matrix.shape):
        value = round(float(matrix[row, column]), 2) + 0.0  # never -0.00
        # White on the dark ends of the colours.
        ink = "white" if abs(value) > 0.6 else "black"
        panel.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=ink)


def _key(marker: str, colour: str, name: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=marker, color=colour, label=name)


@contextmanager
def canvas(size: tuple[float, float]) -> Iterator[Figure]:
    """Yield an empty figure of this size (inches) in the house's style."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write the figure as ``name.png`` and ``name.svg`` and return their paths.

    Raises:
        RunError: If the folder cannot be written.
    """
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(paths[0], dpi=160)
        figure.savefig(paths[1], metadata={"Date": None})
    except OSError as error:
        raise RunError(f"cannot write pictures to {folder}: {error.strerror}. Choose another folder.") from error
    return paths
