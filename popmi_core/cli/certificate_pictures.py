"""Pictures of a certificate, as PNG and SVG: residues of weights, terms by layer, bounds by site."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from popmi_core.cli.certifying import Certificate, total
from popmi_core.cli.pictures import COLOURS, GREY, canvas, save
from popmi_core.equivariance.certificate.algebra import WEIGHT_TOLERANCE

_WEIGHTS = 20
# Zero has no place on a logarithmic axis: it is drawn at the left edge and called zero.
_ZERO = 1e-18


def draw_all(found: Certificate, folder: Path) -> list[Path]:
    """Draw every part there is and return the paths.

    Raises:
        RunError: If the folder cannot be written.
    """
    paths = draw_weights(found, folder) if found.algebra.residues else []
    if found.telescopes:
        paths += draw_layers(found, folder)
    return paths + draw_sites(found, folder)


def draw_weights(found: Certificate, folder: Path) -> list[Path]:
    """Draw how far every constrained weight is off, beside what rounding may leave."""
    ranked = sorted(found.algebra.residues, key=lambda one: -one.relative)[:_WEIGHTS][::-1]
    with canvas((8.6, 1.6 + 0.24 * len(ranked))) as figure:
        panel = figure.subplots()
        places = np.arange(len(ranked))
        values = np.array([max(one.relative, _ZERO) for one in ranked])
        off = values > WEIGHT_TOLERANCE
        panel.scatter(values[~off], places[~off], color=COLOURS[0], label="on the subspace")
        panel.scatter(values[off], places[off], color=COLOURS[1], marker="X", label="off the subspace")
        panel.axvline(WEIGHT_TOLERANCE, color="black", linestyle=":", linewidth=1, label="rounding allowed")
        panel.set_yticks(places, [one.tensor for one in ranked], fontsize=7)
        panel.set_xscale("log")
        panel.set_xticks(
            [_ZERO, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 1], ["0", "1e-15", "1e-12", "1e-9", "1e-6", "1e-3", "1"]
        )
        panel.set(xlim=(_ZERO / 5, 5), ylim=(-0.7, len(ranked) - 0.3), xlabel="max |ρW − Wρ| / max |W|")
        panel.set_title(f"Weights under {found.algebra.group}: {found.algebra.verdict}")
        panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
        return save(figure, folder, "weights")


def draw_layers(found: Certificate, folder: Path) -> list[Path]:
    """Draw the size of every layer's term at each angle, and of the whole change."""
    layers = found.telescopes[0].layers
    with canvas((8.6, 3.6)) as figure:
        panel = figure.subplots()
        width = 0.8 / len(found.telescopes)
        for number, one in enumerate(found.telescopes):
            sizes = one.sizes()
            places = np.arange(len(layers)) + (number - (len(found.telescopes) - 1) / 2) * width
            label = f"{one.angle:g}°: whole change {total(one):.2g}"
            panel.bar(places, [sizes[name] for name in layers], width, color=COLOURS[number], label=label)
        panel.set_xticks(range(len(layers)), layers, rotation=45 if len(layers) > 5 else 0, fontsize=8,
                         ha="right" if len(layers) > 5 else "center")  # fmt: skip
        panel.set(title="Which layers the change comes from", ylabel="term of the sum, RMS of logits")
        panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
        return save(figure, folder, "layers")


def draw_sites(found: Certificate, folder: Path) -> list[Path]:
    """Draw each site's median change, its bound, and the largest change seen."""
    names = [site.site for site in found.sites]
    with canvas((8.6, 1.8 + 0.42 * len(names))) as figure:
        panel = figure.subplots()
        for place, site in enumerate(found.sites):
            panel.plot(
                [0, site.bound], [place, place], color=COLOURS[0], linewidth=6, solid_capstyle="butt", alpha=0.35
            )
            panel.plot([site.median], [place], marker="|", markersize=12, color=GREY)
            panel.plot([site.bound], [place], marker="D", color=COLOURS[0])
            panel.plot([site.worst], [place], marker="x", color=COLOURS[1])
        level = found.sites[0].level
        keys = (("|", GREY, "median"), ("D", COLOURS[0], f"bound, level {level:g}"), ("x", COLOURS[1], "largest seen"))
        for marker, colour, label in keys:
            panel.plot([], [], marker=marker, color=colour, linestyle="", label=label)
        panel.set_yticks(range(len(names)), names)
        # Changes lie between 0 and 1, most models' far below 1: the axis ends where these do.
        end = 1.1 * max(max(site.bound, site.worst) for site in found.sites) or 1.0
        panel.set(xlim=(-0.02 * end, end), ylim=(-0.6, len(names) - 0.4))
        panel.set_xlabel("total variation from the upright answer (0 to 1)")
        panel.set_title(f"By how much turning changes answers (worst of {len(found.angles)} angles)")
        panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
        return save(figure, folder, "sites")
