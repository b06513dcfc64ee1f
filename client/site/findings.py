"""What a check found: right, doubtful or wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

State = Literal["ok", "warning", "failed"]


class Finding(BaseModel):
    """One check's result; ``remedy`` is empty where all is well."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    state: State
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Finding:
    """Return that all is well."""
    return Finding(name=name, state="ok", found=found)


def warning(name: str, found: str, remedy: str) -> Finding:
    """Return that the site can take part, but somebody should look."""
    return Finding(name=name, state="warning", found=found, remedy=remedy)


def failed(name: str, found: str, remedy: str) -> Finding:
    """Return that the site cannot take part like this."""
    return Finding(name=name, state="failed", found=found, remedy=remedy)


def all_well(findings: Sequence[Finding]) -> bool:
    """Return whether nothing failed; warnings are no failure."""
    return all(item.state != "failed" for item in findings)
