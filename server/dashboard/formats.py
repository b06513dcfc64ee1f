"""How figures are written for people: the same on pages and in reports."""

from __future__ import annotations

from datetime import UTC, datetime

from server.dashboard.health import span
from server.dashboard.words import N_
from server.store import MetricRow

UNDEFINED = N_("undefined")
ABSENT = "\N{EN DASH}"


_SPLITS = {
    "val": N_("validation"),
    "train": N_("training"),
    "test": N_("test"),
    "external": N_("external"),
    "test+external": N_("test, and the external set"),
}


def figure(value: float | None, digits: int = 3) -> str:
    """Return a figure with so many decimals; None is *undefined*."""
    if value is None:
        return UNDEFINED
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.3g}"


def share(value: float | None) -> str:
    """Return a share in per cent; one that is not nothing is never shown as nothing."""
    if value is None:
        return ABSENT
    return "< 0.1 %" if 0 < value < 0.001 else f"{100 * value:.1f} %"


def bounded(row: MetricRow | None) -> str:
    """Return a figure with its bounds where it has any."""
    if row is None:
        return ABSENT
    if row.name.startswith("num_") and row.value is not None:
        return count(round(row.value))
    if row.value is None or row.lower is None or row.upper is None or row.lower == row.upper:
        return figure(row.value)
    return f"{row.value:.3f} ({row.lower:.3f} to {row.upper:.3f})"


def minute(seconds: float | None) -> str:
    """Return a point in time in UTC, to the minute."""
    return ABSENT if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def moment(seconds: float | None) -> str:
    """Return a point in time in UTC, to the second."""
    return ABSENT if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float | None) -> str:
    """Return a length of time; short ones with a decimal."""
    if seconds is None:
        return ABSENT
    return f"{seconds:.1f} s" if seconds < 90 else span(seconds)


def size(count: int | None) -> str:
    """Return bytes in decimal units."""
    if count is None:
        return ABSENT
    value, units = float(count), ("B", "kB", "MB", "GB", "TB")
    for unit in units[:-1]:
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} {units[-1]}"


def count(value: int | None) -> str:
    """Return a number with thin thousands."""
    return ABSENT if value is None else f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def split_name(split: str) -> str:
    """Return a split in a whole word."""
    return _SPLITS.get(split, split)
