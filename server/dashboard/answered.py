"""What ``/api/v1`` answers of sites, models and the audit log: every field described, null is unknown or undefined."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from server.dashboard.modelcards import Card, Verdict
from server.dashboard.sitebook import Tone


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Problem(_Answer):
    """Why there is no answer."""

    detail: str


class SiteRunAnswer(_Answer):
    """One site in one run; its epsilon is what it has spent since the study began."""

    key: str = Field(description="the run's name in addresses")
    run: str
    begun: float = Field(description="seconds since 1970 UTC")
    rounds_ok: int
    rounds_all: int
    last_round: int
    outcome: str = Field(description="of its newest round: ok, late, failed, quarantined, unreachable or stopped")
    reason: str | None
    num_examples: int | None
    epsilon: float | None
    epsilon_limit: float | None
    version: str | None = Field(description="the site's POPMI version")
    skipped_rows: int | None
    code_hash: str | None = Field(description="of the code the run was started with")


class SiteAnswer(_Answer):
    """One site; what only the keeper knows is null without a server behind the pages."""

    name: str
    state: str = Field(description="in words, never better than the worst that is known")
    tone: Tone
    detail: str
    registered: str | None = Field(description="invited, enrolled or revoked")
    online: bool | None
    last_seen: float | None = Field(description="seconds since 1970 UTC")
    clock_skew: float | None = Field(description="seconds the site's clock is ahead of the server's")
    excluded: str | None = Field(description="why it is left out of rounds for now")
    fingerprint: str | None
    version: str | None
    runs: list[SiteRunAnswer] = Field(description="newest first")


class SitesAnswer(_Answer):
    """All sites by name."""

    sites: list[SiteAnswer]
    told: float | None = Field(description="when the keeper last told, seconds since 1970 UTC")
    trouble: list[str] = Field(description="what could not be read, and why")


class FigureAnswer(_Answer):
    """One figure; ``lower`` and ``upper`` bound the exact value."""

    name: str
    split: str
    scope: str
    value: float | None
    lower: float | None
    upper: float | None


class ModelAnswer(_Answer):
    """One round's model; figures are macro AUROC of the global model."""

    key: str
    run: str
    round: int
    outcome: str = Field(description="ok, or void where the model is that of the round before")
    finished: float = Field(description="seconds since 1970 UTC")
    strategy: str
    phantom: bool
    best: bool = Field(description="best by validation images")
    newest: bool
    pinned_by: str | None
    pin_note: str | None
    auroc_validation: float | None
    auroc_external: float | None
    size: int | None = Field(description="bytes; null where no file is known")
    sha256: str | None


class ModelsAnswer(_Answer):
    """Models, newest first; without a run its best, newest and pinned ones of every run."""

    models: list[ModelAnswer]
    trouble: list[str]


class PartAnswer(_Answer):
    """One site's part in a model; ``share`` of all weights is null where its update is not in the model."""

    site: str
    share: float | None
    num_examples: int | None
    outcome: str
    reason: str


class ModelDetail(ModelAnswer):
    """One model with its lineage, card and figures; ``files`` are what can be downloaded, as addresses."""

    parent: int = Field(description="the round it began from; 0 is the run's start")
    sites: list[PartAnswer]
    chosen: str | None = Field(description="the candidate that was taken")
    rules: dict[str, Any]
    equivariance: Verdict | None
    card: Card | None
    figures: list[FigureAnswer]
    files: dict[str, str]


class ChainAnswer(_Answer):
    """Whether the log's chain is whole; ``trouble`` says what is broken, empty if nothing."""

    whole: bool
    lines: int
    head: str
    verified: float = Field(description="seconds since 1970 UTC")
    trouble: str


class AuditAnswer(_Answer):
    """One line of the log; ``line`` is the text as it stands there."""

    number: int
    time: float = Field(description="seconds since 1970 UTC")
    event: str
    who: str | None
    run: str | None
    site: str | None
    details: dict[str, Any]
    digest: str
    line: str


class AuditPage(_Answer):
    """Lines, newest first; ``older`` is ``before`` of the next page, null on the last one."""

    lines: list[AuditAnswer]
    found: int
    older: int | None
    chain: ChainAnswer
