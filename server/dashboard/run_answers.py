"""What ``/api/v1`` answers of runs: every field described, null is undefined or unknown."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.dashboard.health import State
from server.store import RunSummary


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class StateAnswer(_Answer):
    """How a run is."""

    word: str = Field(description="waiting, running, 'running, degraded', lost, finished, stopped, failed, ...")
    tone: Literal["good", "warn", "bad", "idle"] = Field(description="degraded is never good")
    detail: str = Field(description="why, for a person")


class RunAnswer(_Answer):
    """A run's head; times are seconds since 1970 UTC."""

    key: str = Field(description="the run's name in addresses")
    id: int = Field(description="its number in the record")
    name: str
    state: StateAnswer
    status: str = Field(description="as the run itself wrote it last")
    reason: str | None
    created: float
    started: float | None
    finished: float | None
    heartbeat: float = Field(description="its last sign of life")
    revision: int = Field(description="grows with every write")
    strategy: str
    seed: int
    rounds_planned: int
    rounds_done: int = Field(description="the last finished round")
    seconds_left: float | None = Field(
        description="an estimate: the median of the last ten rounds times the rounds left; null where it does not go on"
    )
    data_name: str
    phantom: bool = Field(description="made with synthetic images: says nothing about patients")
    classes: list[str]
    sites: list[str]
    config: dict[str, Any]
    environment: dict[str, Any]


class UnreadableRun(_Answer):
    """A run whose record cannot be read now."""

    key: str
    unreadable: str = Field(description="why")


def run_answer(key: str, run: RunSummary, state: State, seconds_left: float | None) -> RunAnswer:
    """Return a run's head with its state in words."""
    told = {name: getattr(run, name) for name in RunAnswer.model_fields if hasattr(run, name)}
    words = StateAnswer.model_validate({"word": state.word, "tone": state.tone, "detail": state.detail})
    return RunAnswer(**{**told, "key": key, "state": words, "seconds_left": seconds_left})
