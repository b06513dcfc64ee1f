"""Which steps of a backbone commute with quarter turns and mirrors, once their weights are tied, and which cannot.

A window that slides over a grid of n cells, with p cells of padding on both sides, sees positions that lie evenly
around the middle exactly when n + 2p - k is a multiple of the stride. Then a turn of the grid turns what is sampled;
otherwise the samples lie off the centre, and the turned image is looked at in other places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from popmi_core.adapters.geometry.trace import Axis, Step
from popmi_core.groups import PointGroup


@dataclass(frozen=True)
class Reason:
    """Why a model is not exact: the module, what it does, and by how much (cells off the centre, or measured).

    ``lasting``: another image size does not change it.
    """

    module: str
    what: str
    how_much: str = ""
    lasting: bool = False

    def __str__(self) -> str:
        where = f"{self.module}: " if self.module else ""
        return f"{where}{self.what}" + (f" ({self.how_much})" if self.how_much else "")


def breaks(steps: Sequence[Step], group: PointGroup) -> tuple[Reason, ...]:
    """Return every step that cannot commute with the group, whatever its weights."""
    found = (_break(step, turns=_turns(group)) for step in steps)
    return tuple(reason for reason in found if reason is not None)


def _turns(group: PointGroup) -> bool:
    return any(element.turns % 2 for element in group.elements)


def _break(step: Step, *, turns: bool) -> Reason | None:
    rows, columns = step.rows, step.columns
    if step.kind == "rotary":
        what = "rotary positions enter queries and keys as angles that do not turn with the image"
        return Reason(step.module, what, lasting=True)
    if turns and rows != columns:
        return _oblong(step, rows, columns)
    for axis in (rows, columns):
        reason = _off_centre(step, axis)
        if reason is not None:
            return reason
    return None


def _oblong(step: Step, rows: Axis, columns: Axis) -> Reason:
    if rows.size != columns.size:
        return Reason(step.module, f"a grid of {rows.size} x {columns.size} cells is not square")
    what = f"a {step.kind} of {rows.reach} x {columns.reach} cells is another one after a quarter turn"
    return Reason(step.module, what, lasting=True)


def _off_centre(step: Step, axis: Axis) -> Reason | None:
    if step.kind == "window":
        return _odd_window(step, axis)
    if step.kind == "resizing":
        if axis.out % axis.size == 0:
            return None
        return Reason(step.module, f"{axis.size} cells are resized to {axis.out} by nearest neighbours, not a multiple")
    off = axis.off_centre
    if not off:
        return None
    if step.kind == "padding":
        what = f"a grid of {axis.size} is padded by {axis.before} cells before and {axis.after} after it"
    else:
        what = (
            f"a {step.kind} of {axis.reach} cells with stride {axis.stride} and padding {axis.before} does not fit "
            f"a grid of {axis.size} evenly"
        )
    return Reason(step.module, what, f"{abs(off):g} cells off the centre")


def _odd_window(step: Step, axis: Axis) -> Reason | None:
    if (axis.before - axis.after) % axis.reach == 0:
        return None
    what = f"windows of {axis.reach} cells shifted by {axis.after} lie elsewhere seen from the other side"
    return Reason(step.module, what, f"{abs(axis.before - axis.after) / 2:g} cells off the centre")
