"""The pages by which an operator acts: what can be done, one page for each act, and what became of every order."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Form, Path, Query, Request
from sqlalchemy.engine import Engine
from starlette.datastructures import FormData
from starlette.responses import RedirectResponse, Response

from popmi_core.errors import ConfigError, RunError
from server.centre.board import kit_key, read_board
from server.centre.orders import OrderRow, find, history, place, withdraw
from server.dashboard.access import allow
from server.dashboard.access.person import Person
from server.dashboard.acts import ACTS, PATIENCE, TITLES, Act, choices, run_going, runs_of
from server.dashboard.catalogue import NotFound
from server.dashboard.downloads import disposition
from server.dashboard.keeping import Told, told
from server.dashboard.language import N_
from server.dashboard.pages.signin import centre_of
from server.dashboard.rendering import render, render_live

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form(max_length=4000)]
Number = Annotated[int, Path(ge=0, lt=2**31)]
ORDERS_A_PAGE = 30
_UNTYPED = N_("The name that was typed is not the site's. Nothing was ordered.")
_NO_REASON = N_("Say why: the rounds and the audit log tell it.")
_NOT_CHOSEN = N_("Choose one.")
_NO_ROUND = N_("Expected the number of a round.")


@dataclass(frozen=True)
class Seen:
    """What the keeper told, as far as the pages of acts show it."""

    sites: Told
    status: Told

    @classmethod
    def by(cls, request: Request) -> Seen:
        """Return what it told last."""
        return cls(told(request, "sites"), told(request, "status"))


@dataclass(frozen=True)
class Asked:
    """What the form of an act holds, as it was typed."""

    run: str = ""
    site: str = ""
    round: str = ""
    reason: str = ""
    note: str = ""
    typed: str = ""
    wrong: Mapping[str, str] = field(default_factory=dict)


@router.get("/act")
def overview(request: Request, before: Annotated[int | None, Query(ge=0)] = None) -> Response:
    """What can be done, and the newest orders."""
    centre: Engine | None = request.app.state.centre
    seen = Seen.by(request)
    orders = () if centre is None else history(centre, before=before, limit=ORDERS_A_PAGE + 1)
    return render_live(
        request,
        "act",
        orders=orders[:ORDERS_A_PAGE],
        older=orders[ORDERS_A_PAGE - 1].id if len(orders) > ORDERS_A_PAGE else None,
        titles=TITLES,
        open_kinds={kind: bool(choices(kind, seen.sites, seen.status)) for kind in ACTS},
        going=run_going(seen.status),
        told=seen.status,
        now=time.time(),
        patience=PATIENCE,
    )


@router.get("/act/orders/{number}")
def order(request: Request, number: int) -> Response:
    """One order, and what became of it."""
    row = _order(centre_of(request), number)
    return render_live(
        request,
        "order",
        order=row,
        titles=TITLES,
        shown=_shown(row),
        told=told(request, "status"),
        now=time.time(),
        patience=PATIENCE,
    )


@router.post("/act/orders/{number}/withdraw")
def take_back(request: Request, number: Number) -> Response:
    """Take an order back that nobody has taken up."""
    person = allow(request, "operator")
    withdraw(centre_of(request), number, person.doer())
    return RedirectResponse(f"/act/orders/{number}", status_code=303)


@router.get("/act/kits/{site}.zip")
def kit(request: Request, site: str) -> Response:
    """The kit of an invited site, to be sent to it."""
    allow(request, "operator")
    notice = read_board(centre_of(request), kit_key(site))
    value = notice.value if notice is not None else None
    if not isinstance(value, Mapping):
        raise NotFound(f"kit of {site}")
    try:
        packed = base64.b64decode(str(value.get("base64", "")), validate=True)
    except binascii.Error as error:
        raise NotFound(f"kit of {site}") from error
    headers = {"Content-Disposition": disposition(f"{site}.zip")}
    return Response(packed, media_type="application/zip", headers=headers)


@router.get("/act/{kind}")
def ask(request: Request, kind: str, run: str = "", site: str = "", round: str = "") -> Response:
    """The page of one act: what will happen, and what it needs to be told."""
    allow(request, "operator")
    return _form(request, _act(kind), Asked(run=run, site=site, round=round))


@router.post("/act/{kind}")
def give(
    request: Request,
    kind: str,
    run: Text = "",
    site: Text = "",
    round: Text = "",
    reason: Text = "",
    note: Text = "",
    typed: Text = "",
) -> Response:
    """Give the order, or show what is wrong with it."""
    person, act = allow(request, "operator"), _act(kind)
    asked = Asked(run.strip(), site.strip(), round.strip(), reason, note, typed)
    if wrong := _wrong(act, asked):
        return _form(request, act, asked, wrong=wrong)
    try:
        number = give_order(centre_of(request), kind, _arguments(act, asked), person)
    except (ConfigError, RunError) as error:
        status = 422 if isinstance(error, ConfigError) else 503
        return _form(request, act, asked, wrong={"": str(error)}, status=status)
    return RedirectResponse(f"/act/orders/{number}", status_code=303)


def give_order(centre: Engine, kind: str, arguments: Mapping[str, Any], person: Person) -> int:
    """Give an order in a person's name and return its number.

    Raises:
        ConfigError: If its arguments are unusable.
        RunError: If too many wait, or the centre is away.
    """
    return place(centre, kind, arguments, who=person.name, via=person.via)


async def form_of(request: Request) -> FormData:
    """Return a form that was sent; asked for by handlers that then work in a thread of their own."""
    return await request.form(max_files=2, max_fields=200)


def _act(kind: str) -> Act:
    if kind not in ACTS:
        raise NotFound(kind)
    return ACTS[kind]


def _order(centre: Engine, number: int) -> OrderRow:
    row = find(centre, number) if number > 0 else None
    if row is None:
        raise NotFound(f"order {number}")
    return row


def _wrong(act: Act, asked: Asked) -> dict[str, str]:
    wrong: dict[str, str] = {}
    if act.about == "site" and not asked.site:
        wrong["site"] = _NOT_CHOSEN
    if act.about != "site" and not asked.run:
        wrong["run"] = _NOT_CHOSEN
    if act.about == "round" and not (asked.round.isascii() and asked.round.isdigit()):
        wrong["round"] = _NO_ROUND
    if act.reason and not asked.reason.strip():
        wrong["reason"] = _NO_REASON
    if act.typed and asked.typed.strip() != asked.site:
        wrong["typed"] = _UNTYPED
    return wrong


def _arguments(act: Act, asked: Asked) -> dict[str, Any]:
    told: dict[str, Any] = {"site": asked.site} if act.about == "site" else {"run": asked.run}
    told |= {"round": asked.round} if act.about == "round" else {}
    told |= {"reason": asked.reason} if act.reason else {}
    return told | ({"note": asked.note} if act.note else {})


def _form(
    request: Request, act: Act, asked: Asked, *, wrong: Mapping[str, str] | None = None, status: int = 422
) -> Response:
    seen = Seen.by(request)
    return render(
        request,
        "act_form.html",
        status=status if wrong else 200,
        act=act,
        asked=asked,
        wrong=wrong or {},
        choices=choices(act.kind, seen.sites, seen.status),
        state=next((item for item in runs_of(seen.status) if item.get("name") == asked.run), None),
        told=seen.status,
    )


def _shown(row: OrderRow) -> list[tuple[str, str]]:
    """Return an order's arguments as lines for a person; a file's text and a run's whole description are not."""
    return [
        (name, str(value))
        for name, value in row.arguments.items()
        if name not in ("enrolment", "read_out", "config") and value != ""
    ]
