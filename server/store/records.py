"""What the reader hands out: frozen values, free of the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunSummary:
    """A run's head. ``rounds_done`` is the last finished round; times are seconds since 1970 UTC."""

    id: int
    name: str
    status: str
    reason: str | None
    created: float
    started: float | None
    finished: float | None
    heartbeat: float
    revision: int
    strategy: str
    seed: int
    rounds_planned: int
    rounds_done: int
    data_name: str
    phantom: bool
    classes: tuple[str, ...]
    sites: tuple[str, ...]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class Pulse:
    """What changes when a run does: ``revision`` with every write, ``heartbeat`` every few seconds."""

    revision: int
    status: str
    heartbeat: float


@dataclass(frozen=True)
class RoundRow:
    """One round; ``finished`` is None while it goes on."""

    server_round: int
    started: float
    finished: float | None
    outcome: str
    seconds_total: float | None
    seconds_train: float | None
    seconds_fuse: float | None
    seconds_evaluate: float | None
    notes: Mapping[str, Any]
    model_sha256: str | None


@dataclass(frozen=True)
class SiteRow:
    """What one site did in one phase of one round."""

    server_round: int
    site: str
    phase: str
    outcome: str
    reason: str | None
    num_examples: int | None
    seconds: float | None
    bytes_up: int | None
    bytes_down: int | None
    epsilon: float | None
    train_loss: float | None


@dataclass(frozen=True)
class MetricRow:
    """One figure; ``value`` None is undefined."""

    server_round: int
    scope: str
    split: str
    name: str
    value: float | None
    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class MatchRow:
    """One layer of one site: similarity gained by matching, and whether nothing had to move.

    ``angle`` in degrees; ``moved`` of ``units`` took another place. None where the round did not say.
    """

    server_round: int
    site: str
    layer: str
    gain: float | None
    identity: bool
    note: str | None
    angle: float | None = None
    moved: int | None = None
    units: int | None = None


@dataclass(frozen=True)
class CandidateRow:
    """One candidate at one site's validation images; ``loss`` is in nats, None where it is infinite."""

    server_round: int
    candidate: str
    site: str
    num_examples: int
    loss: float | None
    accuracy: float | None
    auroc: float | None


@dataclass(frozen=True)
class DetailRow:
    """What is more than one figure; the form of ``value`` is the ``kind``'s (docs/dashboard.md)."""

    server_round: int
    scope: str
    split: str
    kind: str
    value: Mapping[str, Any]


@dataclass(frozen=True)
class EventRow:
    """One line of the run's diary."""

    id: int
    server_round: int | None
    time: float
    level: str
    text: str
