"""Accounts, for admins: who may sign in, in which role, and every API token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Form, Path, Request
from sqlalchemy.engine import Engine
from starlette.responses import RedirectResponse, Response

from popmi_core.errors import AccessError
from server.centre import accounts, onetime, sessions, tokens
from server.centre.people import ROLES, AccountRow, Doer
from server.dashboard.access.person import allow
from server.dashboard.catalogue import NotFound
from server.dashboard.language import N_
from server.dashboard.pages.signin import centre_of
from server.dashboard.rendering import render

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]
Number = Annotated[int, Path(ge=1, lt=2**31)]
DONE = {
    "role": N_("The role is changed; it counts from now on."),
    "disable": N_("The account is disabled: it is signed out everywhere, and its tokens rest."),
    "enable": N_("The account may sign in again."),
    "end": N_("The account is signed out everywhere."),
    "remove": N_("The account is removed, with its tokens."),
    "token": N_("The API token is revoked."),
}
_UNTYPED = N_("The name that was typed is not the account's. Nothing was removed.")


@router.get("/accounts")
def page(request: Request, done: str = "") -> Response:
    """All accounts and tokens."""
    return _page(request, done=DONE.get(done, ""))


@router.post("/accounts")
def add(request: Request, name: Text = "", role: Text = "viewer") -> Response:
    """Make an account, and a link by which its owner chooses a password."""
    centre, by = _admin(request)
    try:
        made = accounts.add(centre, name, role, None, by)
        secret = onetime.invite(centre, made, by)
    except AccessError as error:
        return _page(request, 422, wrong=error.text, values=error.values, name=name)
    return _one(request, made.name, link=_link(request, secret))


@router.get("/accounts/{name}")
def one(request: Request, name: str, done: str = "") -> Response:
    """One account."""
    return _one(request, name, done=DONE.get(done, ""))


@router.post("/accounts/{name}/role")
def role(request: Request, name: str, role: Text = "") -> Response:
    """Give another role."""
    return _do(request, name, "role", lambda centre, by: accounts.set_role(centre, name, role, by))


@router.post("/accounts/{name}/disable")
def disable(request: Request, name: str) -> Response:
    """Let nobody in by this account."""
    return _do(request, name, "disable", lambda centre, by: accounts.disable(centre, name, by))


@router.post("/accounts/{name}/enable")
def enable(request: Request, name: str) -> Response:
    """Let a disabled account in again."""
    return _do(request, name, "enable", lambda centre, by: accounts.enable(centre, name, by))


@router.post("/accounts/{name}/end")
def end(request: Request, name: str) -> Response:
    """Sign the account out everywhere."""
    return _do(request, name, "end", lambda centre, by: sessions.end_all(centre, accounts.find(centre, name), by))


@router.post("/accounts/{name}/link")
def link(request: Request, name: str) -> Response:
    """Make a new link by which the owner chooses a password; the old password stays good until it is used."""
    centre, by = _admin(request)
    account = _account(centre, name)
    try:
        secret = onetime.invite(centre, account, by)
    except AccessError as error:
        return _page(request, 422, wrong=error.text, values=error.values)
    return _one(request, name, link=_link(request, secret))


@router.post("/accounts/{name}/remove")
def remove(request: Request, name: str, typed: Text = "") -> Response:
    """Take the account away, once its name was typed."""
    if typed.strip().casefold() != name.casefold():
        return _one(request, name, 422, wrong=_UNTYPED)
    return _do(request, name, "remove", lambda centre, by: accounts.remove(centre, name, by), after="/accounts")


@router.post("/accounts/{name}/tokens/{number}/revoke")
def revoke(request: Request, name: str, number: Number) -> Response:
    """Let one of the account's tokens in no more."""

    def work(centre: Engine, by: Doer) -> None:
        tokens.revoke(centre, number, by, account=accounts.find(centre, name))

    return _do(request, name, "token", work)


def _do(
    request: Request,
    name: str,
    what: str,
    work: Callable[[Engine, Doer], tuple[str, ...] | None],
    *,
    after: str | None = None,
) -> Response:
    """Do one thing to an account, end the streams of the sessions that it ended, and show the account again."""
    centre, by = _admin(request)
    _account(centre, name)
    try:
        ended = work(centre, by)
    except AccessError as error:
        return _one(request, name, 422, wrong=error.text, values=error.values)
    request.app.state.watcher.end(ended or ())
    return RedirectResponse(f"{after or '/accounts/' + quote(name, safe='')}?done={what}", status_code=303)


def _admin(request: Request) -> tuple[Engine, Doer]:
    person = allow(request, "admin")
    return centre_of(request), person.doer()


def _account(centre: Engine, name: str) -> AccountRow:
    try:
        return accounts.find(centre, name)
    except AccessError as error:
        raise NotFound(name) from error


def _link(request: Request, secret: str) -> str:
    origin = request.app.state.binding.origin(request.headers.get("host", ""))
    return f"{origin}/password?key={secret}"


def _page(request: Request, status: int = 200, **values: Any) -> Response:
    centre, _ = _admin(request)
    told: dict[str, Any] = {"done": "", "wrong": "", "values": {}, "name": ""}
    return render(
        request,
        "accounts.html",
        status=status,
        accounts=accounts.listed(centre),
        tokens=[token for token in tokens.listed(centre) if not token.revoked],
        roles=ROLES,
        **(told | values),
    )


def _one(request: Request, name: str, status: int = 200, **values: Any) -> Response:
    centre, _ = _admin(request)
    found = _account(centre, name)
    told: dict[str, Any] = {"done": "", "wrong": "", "values": {}, "link": ""}
    return render(
        request,
        "one_account.html",
        status=status,
        account=found,
        sessions=sessions.of_account(centre, found, request.app.state.limits),
        tokens=[token for token in tokens.listed(centre, found) if not token.revoked],
        roles=ROLES,
        **(told | values),
    )
