"""What can be ordered: each kind of act with its arguments, parsed before anything is written."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from popmi_core.config import RunConfig
from popmi_core.errors import ConfigError

Site = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Run = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
Round = Annotated[int, Field(ge=1, le=1_000_000)]
READ_OUT = 8
"""Last letters of a fingerprint that a person types as the site reads them out."""


class _Arguments(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Start(_Arguments):
    """Begin a run. Its name is fixed here, so that an order carried out twice begins one run."""

    name: Run
    config: RunConfig


class OfRun(_Arguments):
    """Something about a run."""

    run: Run


class OfSite(_Arguments):
    """Something about a site."""

    site: Site


class WithReason(OfSite):
    """Something about a site that needs a reason."""

    reason: Reason


class OfRound(OfRun):
    """Something about the model of one round."""

    round: Round


class Pin(OfRound):
    """Pin the model of a round; ``note`` is why this one."""

    note: Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)] = ""


class Confirm(_Arguments):
    """Let a site in: the file it sent, as text, and the last letters of the fingerprint as it read them out."""

    enrolment: Annotated[str, StringConstraints(min_length=2, max_length=20_000)]
    read_out: Annotated[str, StringConstraints(strip_whitespace=True, min_length=READ_OUT, max_length=READ_OUT)]

    @model_validator(mode="after")
    def _letters(self) -> Self:
        if not self.read_out.isascii() or not self.read_out.isprintable():
            raise ValueError(f"expected the last {READ_OUT} letters of the fingerprint")
        return self


KINDS: dict[str, type[BaseModel]] = {
    "start": Start, "stop": OfRun, "resume": OfRun,
    "exclude": WithReason, "include": OfSite, "revoke": WithReason, "invite": OfSite, "confirm": Confirm,
    "pin": Pin, "unpin": OfRun, "onnx": OfRound,
}  # fmt: skip
"""Kinds of orders and what each needs to be told."""


def parse_order(kind: str, arguments: Any) -> BaseModel:
    """Return the arguments of an order.

    Raises:
        ConfigError: If there is no such kind, or an argument is missing, unknown or out of range; all are named.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no order {kind[:40]!r}. Expected one of {', '.join(KINDS)}.")
    try:
        return KINDS[kind].model_validate(arguments)
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'the whole'}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_input=False, include_url=False)
        )
        raise ConfigError(f"the order {kind} cannot be given: {told}. Correct it.") from error
    except RecursionError as error:
        raise ConfigError(f"the order {kind} cannot be given: it lies too deep within itself. Correct it.") from error
