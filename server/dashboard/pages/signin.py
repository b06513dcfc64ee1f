"""Signing in and out, and the links by which the first admin and invited people choose their password."""

from __future__ import annotations

import math
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from sqlalchemy.engine import Engine
from starlette.responses import RedirectResponse, Response

from popmi_core.errors import AccessError
from server.centre import accounts, onetime, sessions, throttle
from server.centre.passwords import CrowdedError
from server.centre.people import AccountRow
from server.dashboard.access import cookies
from server.dashboard.access.answers import no
from server.dashboard.access.forms import inside
from server.dashboard.access.person import person_of
from server.dashboard.catalogue import NotFound
from server.dashboard.language import N_
from server.dashboard.rendering import render

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]
_WRONG = N_("Name and password do not fit together. Mind small and large letters in the password.")
_SOON = N_("Too many tries with this name or from this address. Try again in %(seconds)s s.")
UNLIKE = N_("The two passwords are not the same. Type the new one twice.")


def centre_of(request: Request) -> Engine:
    """Return the centre.

    Raises:
        NotFound: If there is none: then nobody signs in, and there is no such page.
    """
    found: Engine | None = request.app.state.centre
    if found is None:
        raise NotFound(request.url.path)
    return found


@router.get("/login")
def login_page(request: Request, next: str = "/") -> Response:
    """The page to sign in; whoever is signed in goes on."""
    if person_of(request).session:
        return RedirectResponse(inside(next), status_code=303)
    return _login(request, next=next, first=accounts.count(centre_of(request)) == 0)


@router.post("/login")
def login(request: Request, name: Text = "", password: Text = "", next: Text = "/") -> Response:
    """Sign in: a new session, whatever there was before."""
    centre = centre_of(request)
    tried = throttle.begin(centre, [throttle.name_key(name), throttle.address_key(request.state.address)])
    if tried.wait > 0:
        seconds = math.ceil(tried.wait)
        answer = _login(request, 429, next=next, name=name, wrong=_SOON, values={"seconds": seconds})
        answer.headers["Retry-After"] = str(seconds)
        return answer
    try:
        account = accounts.sign_in(centre, name, password)
    except CrowdedError as error:
        throttle.withdraw(centre, tried)
        answer = _login(request, 503, next=next, name=name, wrong=error.text)
        answer.headers["Retry-After"] = "3"
        return answer
    if account is None:
        throttle.failed(centre, tried, request.state.address)
        return _login(request, 401, next=next, name=name, wrong=_WRONG)
    throttle.succeeded(centre, tried)
    return signed_in(request, account, inside(next))


@router.post("/logout")
def logout(request: Request) -> Response:
    """End this session and its event streams."""
    centre, person = centre_of(request), person_of(request)
    sessions.end(centre, person.session, accounts.find(centre, person.name), person.doer())
    request.app.state.watcher.end([person.session])
    answer = RedirectResponse("/login", status_code=303)
    cookies.take(request, answer, cookies.SESSION)
    return answer


@router.get("/first")
def first_page(request: Request, key: str = "") -> Response:
    """The page by which the first admin chooses name and password."""
    try:
        if onetime.purpose(centre_of(request), key).account is not None:
            return _spent(request)
    except AccessError:
        return _spent(request)
    return _choose(request, key=key, first=True)


@router.post("/first")
def first(request: Request, key: Text = "", name: Text = "", password: Text = "", again: Text = "") -> Response:
    """Make the first admin, and sign them in."""
    centre = centre_of(request)
    if password != again:
        return _choose(request, 422, key=key, first=True, name=name, wrong=UNLIKE)
    try:
        account = onetime.make_first_admin(centre, key, name, password)
    except AccessError as error:
        return _choose(request, 422, key=key, first=True, name=name, wrong=error.text, values=error.values)
    return signed_in(request, account, "/")


@router.get("/password")
def password_page(request: Request, key: str = "") -> Response:
    """The page by which an invited person chooses a password."""
    try:
        name = onetime.purpose(centre_of(request), key).account
    except AccessError:
        return _spent(request)
    return _spent(request) if name is None else _choose(request, key=key, first=False, name=name)


@router.post("/password")
def choose(request: Request, key: Text = "", password: Text = "", again: Text = "") -> Response:
    """Set the password, and sign the person in."""
    centre = centre_of(request)
    try:
        name = onetime.purpose(centre, key).account or ""
        if password != again:
            return _choose(request, 422, key=key, first=False, name=name, wrong=UNLIKE)
        account, ended = onetime.choose_password(centre, key, password)
    except AccessError as error:
        return _choose(request, 422, key=key, first=False, wrong=error.text, values=error.values)
    request.app.state.watcher.end(ended)
    return signed_in(request, account, "/")


def signed_in(request: Request, account: AccountRow, where: str) -> Response:
    """Begin a session, end the one that this browser had, and go on."""
    centre, before = centre_of(request), person_of(request)
    if before.via == "page" and before.session:
        sessions.end(centre, before.session, accounts.find(centre, before.name), before.doer())
        request.app.state.watcher.end([before.session])
    agent, limits = request.headers.get("user-agent", ""), request.app.state.limits
    opened = sessions.begin(centre, account, address=request.state.address, agent=agent, limits=limits)
    answer = RedirectResponse(where, status_code=303)
    cookies.give(request, answer, cookies.SESSION, opened.secret, limits.whole_seconds)
    cookies.take(request, answer, cookies.FORM)
    return answer


def _login(request: Request, status: int = 200, **values: Any) -> Response:
    told: dict[str, Any] = {"next": "/", "name": "", "wrong": "", "values": {}, "first": False}
    return _form(request, "login.html", status, told | values)


def _choose(request: Request, status: int = 200, **values: Any) -> Response:
    told: dict[str, Any] = {"name": "", "wrong": "", "values": {}}
    return _form(request, "password.html", status, told | values)


def _form(request: Request, template: str, status: int, values: dict[str, Any]) -> Response:
    """Return a page with a form of somebody who has no session: cookie and form carry the same secret."""
    secret = cookies.read(request, cookies.FORM) or secrets.token_urlsafe(sessions.SECRET_BYTES)
    answer = render(request, template, status=status, form_secret=secret, **values)
    cookies.give(request, answer, cookies.FORM, secret, cookies.FORM_SECONDS)
    return answer


def _spent(request: Request) -> Response:
    return no(
        request, 404, N_("This link is no longer good"),
        N_("It works once and for a limited time, and a newer one replaces it. Ask an admin for a new one; the link of "
           "the first admin is printed anew when the pages start again."),
    )  # fmt: skip
