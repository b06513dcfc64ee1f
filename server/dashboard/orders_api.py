"""``/api/v1/orders``: have something done by the keeper, and ask what became of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from popmi_core.errors import ConfigError
from server.centre.kinds import KINDS
from server.centre.orders import OrderRow, find, history
from server.dashboard.access import allow
from server.dashboard.answered import Problem
from server.dashboard.pages.act import give_order
from server.dashboard.pages.signin import centre_of

UNREAD: dict[int | str, dict[str, Any]] = {
    503: {"model": Problem, "description": "the centre is away, or too many orders wait already"}
}
UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "there is no such order, or no server behind these pages"}
}
REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "the body or its length is broken"},
    403: {"model": Problem, "description": "the role is too small, or a cookie came without its form's secret"},
    413: {"model": Problem, "description": "the body is too large"},
    422: {"description": "it is no order, or its arguments are unusable"},
}
Kind = Literal[
    "start", "stop", "resume", "exclude", "include", "revoke", "invite", "confirm", "pin", "unpin", "onnx"
]  # fmt: skip
assert set(Kind.__args__) == set(KINDS)  # type: ignore[attr-defined]

router = APIRouter(prefix="/api/v1/orders", tags=["acts"])


class OrderAsked(BaseModel):
    """What is to be done; what each kind needs to be told stands in docs/operate.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    arguments: dict[str, Any] = Field(description="for example {'site': 'basel', 'reason': 'moves house'}")


class OrderAnswer(BaseModel):
    """One order and what became of it; times are seconds since 1970 UTC."""

    model_config = ConfigDict(frozen=True)

    id: int
    kind: str
    arguments: dict[str, Any]
    who: str = Field(description="the account that gave it")
    via: str = Field(description="page or api")
    created: float
    state: Literal["waiting", "done", "refused"]
    answer: str | None = Field(description="what the keeper says of it; null while it waits")
    decided: float | None = Field(description="when it was answered, or, while it waits, taken up")


@router.post("", status_code=202, responses=REFUSED | UNKNOWN | UNREAD)
def order(request: Request, asked: OrderAsked) -> OrderAnswer:
    """Give an order (role operator); the keeper carries it out within seconds. Ask for its number to see the answer."""
    person, centre = allow(request, "operator"), centre_of(request)
    try:
        number = give_order(centre, asked.kind, asked.arguments, person)
    except ConfigError as error:
        raise HTTPException(422, str(error)) from error
    return _found(find(centre, number), number)


@router.get("", responses=UNKNOWN | UNREAD)
def orders(
    request: Request,
    state: Annotated[Literal["waiting", "done", "refused"] | None, Query()] = None,
    before: Annotated[int | None, Query(ge=1, description="only orders with a smaller number")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> list[OrderAnswer]:
    """List orders, newest first."""
    rows = history(centre_of(request), state=state, before=before, limit=limit)
    return [_answer(row) for row in rows]


@router.get("/{number}", responses=UNKNOWN | UNREAD)
def one(request: Request, number: Annotated[int, Path(ge=1)]) -> OrderAnswer:
    """One order."""
    return _found(find(centre_of(request), number), number)


def _found(row: OrderRow | None, number: int) -> OrderAnswer:
    if row is None:
        raise HTTPException(404, f"there is no order {number}")
    return _answer(row)


def _answer(row: OrderRow) -> OrderAnswer:
    return OrderAnswer(**{name: getattr(row, name) for name in OrderAnswer.model_fields})
