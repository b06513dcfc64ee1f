"""How long rounds wait and for whom, what an update may be at most, and how few patients may not be counted."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MIN_CELL = 5
"""The smallest number of patients, images or files that may be told to others."""


def hide_few(count: int) -> int | None:
    """Return a number as others may have it: None for one from 1 to ``MIN_CELL`` - 1; none is told as none."""
    return None if 0 < count < MIN_CELL else count


def tell_number(count: int | None) -> str:
    """Return such a number in words."""
    told = None if count is None else hide_few(count)
    return f"fewer than {MIN_CELL}" if told is None else str(told)


class LimitsConfig(BaseModel):
    """Patience and bounds of a run; times are seconds.

    ``quorum``: so many sites' usable answers close a question after ``grace`` more seconds (None: it stays open for
    all, to the deadline). ``join``: how long the run waits at its start for the sites it expects, and before a round
    for as many as it needs. ``again``: how often a site that restarted in the middle of its work is asked anew.
    ``empty_rounds`` on end without a model fail the run.
    ``max_change``: largest norm of a site's change of the model, in norms of the model it started from; also of
    the change of its control variate, and of its BatchNorm statistics in norms of the model's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    quorum: int | None = Field(default=None, ge=1)
    grace: Annotated[float, Field(ge=0)] = 60.0
    join: Annotated[float, Field(ge=0)] = 600.0
    again: int = Field(default=2, ge=0)
    empty_rounds: int = Field(default=3, ge=1)
    max_change: Annotated[float, Field(gt=0)] = 100.0
