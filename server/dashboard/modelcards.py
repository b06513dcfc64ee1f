"""A model's card as the pages show it: read from the file's header or from what the keeper told, of any version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class _Lenient(BaseModel):
    # A card of a later version may hold more, one of an earlier version less.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Verdict(_Lenient):
    """Whether a model's weights keep the group it promises: ``residue`` and ``tolerance`` are relative."""

    group: str
    stored: str = ""
    constrained: int = 0
    residue: float
    tolerance: float
    tensor: str | None = None
    holds: bool


class Card(_Lenient):
    """What a card says; ``sites`` are training images by site, ``left_out`` reasons by site."""

    server_round: int = Field(alias="round")
    rounds: int
    strategy: str
    seed: int
    model: dict[str, Any] = Field(default_factory=dict)
    classes: tuple[str, ...] = ()
    data: str = ""
    phantom: bool = False
    sites: dict[str, int] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
    rules: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    external: dict[str, float | None] = Field(default_factory=dict)
    equivariance: Verdict | None = None
    privacy: dict[str, Any] | None = None
    limits: tuple[str, ...] = ()


def parse_card(told: Mapping[str, Any] | None) -> Card | None:
    """Return a card; None where there is none or it is none that this version can read."""
    if told is None:
        return None
    try:
        return Card.model_validate(told)
    except ValidationError:
        return None


def parse_verdict(told: object) -> Verdict | None:
    """Return the verdict that a round's notes hold; None for a model without a promise."""
    if not isinstance(told, Mapping):
        return None
    try:
        return Verdict.model_validate(told)
    except ValidationError:
        return None
