"""What a model answers when its images are turned: curves by angle, with the floor that turning itself costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.dashboard.charts import FIXED, Chart, Line
from server.dashboard.looks import Told
from server.dashboard.words import N_

MEASURES = {
    "total_variation": (
        N_("Change of the answer"),
        N_("half the summed difference of the class probabilities; lower is better"),
    ),
    "flips": (N_("Changed top class"), N_("share of images whose top class changes; lower is better")),
    "accuracy": (N_("Accuracy when turned"), N_("share of right answers; higher is better")),
}
_FLOOR_STYLE = -1


def rotation_charts(told: Told, styles: Mapping[str, int]) -> tuple[Chart, ...]:
    """Return a chart a measure: the global model, its floor, every site; ``rounds`` of the charts are angles."""
    scopes = ({"global": told.whole} if told.whole is not None else {}) | dict(told.sites)
    angles = next((tuple(value["angles"]) for value in scopes.values()), ())
    charts = []
    for name, (title, about) in MEASURES.items():
        lines = [
            Line(scope, scope if scope in FIXED else "site", styles.get(scope, 1), tuple(value[name]))
            for scope, value in scopes.items()
            if value.get(name) is not None and tuple(value["angles"]) == angles
        ]
        if floor := _floor(scopes, name):
            lines.append(Line("floor", "other", _FLOOR_STYLE, floor))
        if lines:
            worst = _worst(lines, name)
            charts.append(Chart(f"rotation-{name}", title, about, angles, tuple(lines), worst, len(angles)))
    return tuple(charts)


def _floor(scopes: Mapping[str, Mapping[str, Any]], name: str) -> tuple[float | None, ...] | None:
    """The floor of all images; where it is not told, a site's."""
    for value in scopes.values():
        found = (value.get("floor") or {}).get(name)
        if found is not None:
            return tuple(found)
    return None


def _worst(lines: list[Line], name: str) -> str | None:
    """The site that is worst on average over the angles; None where fewer than two are compared."""
    means = {}
    for line in lines:
        known = [value for value in line.values if value is not None]
        if line.kind == "site" and known:
            means[line.scope] = sum(known) / len(known)
    if len(set(means.values())) < 2:
        return None
    pick = max if name != "accuracy" else min
    return pick(sorted(means), key=lambda scope: means[scope])
