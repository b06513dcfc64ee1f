"""My account: the password, the browsers that are signed in, the API tokens."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from popmi_core.errors import AccessError
from server.centre import accounts, sessions, throttle, tokens
from server.centre.passwords import CrowdedError
from server.centre.people import ROLES, AccountRow
from server.dashboard.access.person import Person, allow
from server.dashboard.language import N_
from server.dashboard.pages.signin import UNLIKE, centre_of, signed_in
from server.dashboard.rendering import render

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]
DONE = {
    "password": N_("The password is changed. Every other browser of yours is signed out."),
    "session": N_("That browser is signed out."),
    "token": N_("The API token is revoked."),
}
_NOT_YOURS = N_("This is not your password. Nothing was changed.")


@router.get("/account")
def page(request: Request, done: str = "") -> Response:
    """My account."""
    return _page(request, done=DONE.get(done, ""))


@router.post("/account/password")
def change_password(request: Request, current: Text = "", password: Text = "", again: Text = "") -> Response:
    """Choose another password: this browser gets a new session, all others are signed out."""
    centre, person, mine = centre_of(request), *_me(request)
    if password != again:
        return _page(request, 422, wrong=UNLIKE)
    # Who found a browser open shall not try passwords here either.
    tried = throttle.begin(centre, [throttle.name_key(mine.name), throttle.address_key(request.state.address)])
    if tried.wait > 0:
        return _page(request, 429, wrong=N_("Too many tries. Wait a little, then try again."))
    try:
        if accounts.sign_in(centre, mine.name, current) is None:
            throttle.failed(centre, tried, request.state.address)
            return _page(request, 422, wrong=_NOT_YOURS)
        throttle.succeeded(centre, tried)
        ended = accounts.set_password(centre, mine.name, password, person.doer(), but=person.session)
    except CrowdedError as error:
        # Nobody looked at the password: this was no try.
        throttle.withdraw(centre, tried)
        answer = _page(request, 503, wrong=error.text)
        answer.headers["Retry-After"] = "3"
        return answer
    except AccessError as error:
        return _page(request, 422, wrong=error.text, values=error.values)
    request.app.state.watcher.end(ended)
    return signed_in(request, mine, "/account?done=password")


@router.post("/account/sessions/end")
def end_session(request: Request, session: Text = "") -> Response:
    """Sign one browser of mine out."""
    person, mine = _me(request)
    sessions.end(centre_of(request), session, mine, person.doer())
    request.app.state.watcher.end([session])
    return RedirectResponse("/account?done=session", status_code=303)


@router.post("/account/sessions/end-all")
def end_sessions(request: Request) -> Response:
    """Sign all browsers of mine out, this one too."""
    person, mine = _me(request)
    request.app.state.watcher.end(sessions.end_all(centre_of(request), mine, person.doer()))
    return RedirectResponse("/login", status_code=303)


@router.post("/account/tokens")
def make_token(request: Request, name: Text = "", role: Text = "viewer", days: Text = "30") -> Response:
    """Make an API token; it is shown this once."""
    person, mine = _me(request)
    try:
        if not days.isdecimal() or len(days) > 4:
            raise AccessError(
                N_("token %(token)s: %(days)s days, expected 1 to %(most)s."),
                token=repr(name[:80]),
                days=repr(days[:20]),
                most=tokens.MOST_DAYS,
            )
        _, secret = tokens.make(centre_of(request), mine, name, role, int(days), person.doer())
    except AccessError as error:
        return _page(request, 422, wrong=error.text, values=error.values)
    return _page(request, secret=secret)


@router.post("/account/tokens/revoke")
def revoke_token(request: Request, number: Text = "") -> Response:
    """Let a token of mine in no more."""
    person, mine = _me(request)
    try:
        tokens.revoke(centre_of(request), _number(number), person.doer(), account=mine)
    except AccessError as error:
        return _page(request, 422, wrong=error.text, values=error.values)
    return RedirectResponse("/account?done=token", status_code=303)


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise AccessError(N_("API token %(number)s: expected its number."), number=repr(text[:20]))
    return int(text)


def _me(request: Request) -> tuple[Person, AccountRow]:
    centre = centre_of(request)
    person = allow(request, "viewer")
    return person, accounts.find(centre, person.name)


def _page(request: Request, status: int = 200, **values: Any) -> Response:
    centre = centre_of(request)
    person, mine = _me(request)
    told: dict[str, Any] = {"done": "", "wrong": "", "values": {}, "secret": ""}
    return render(
        request,
        "account.html",
        status=status,
        mine=mine,
        sessions=sessions.of_account(centre, mine, request.app.state.limits),
        this=person.session,
        tokens=[token for token in tokens.listed(centre, mine) if not token.revoked],
        roles=ROLES[: ROLES.index(mine.role) + 1],
        most_days=tokens.MOST_DAYS,
        **(told | values),
    )
