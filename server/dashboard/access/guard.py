"""Before every page: who asks, whether they may see anything at all, and whether a form is one of ours.

Open to everybody are the static files, ``/healthz``, and the pages by which one signs in. Everything else needs a
session or, below ``/api``, a token, wherever there is a centre.
"""

from __future__ import annotations

from urllib.parse import quote

from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.centre import sessions, tokens
from server.centre.sessions import SessionLimits
from server.dashboard.access import cookies
from server.dashboard.access.answers import away, for_program, no
from server.dashboard.access.binding import Binding, client_address
from server.dashboard.access.bodies import BodyRefused, form_field, read_body, replay
from server.dashboard.access.forms import comes_from_here, same
from server.dashboard.access.person import NOBODY, Person
from server.dashboard.language import N_

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = frozenset({"/healthz", "/login", "/first", "/password"})
"""Where nobody need be signed in: these check what they are given themselves."""
_BODIES = {
    400: (N_("Not understood"), N_("This request is broken: what it says of its length or of its form is not so.")),
    408: (N_("Too slow"), N_("The request took too long to arrive. Try again on a better line.")),
    413: (N_("Too large"), N_("That is more than these pages take. An enrolment file is a few kilobytes.")),
}
_STRANGE_FORM = N_(
    "This form is too old, or it was not made by these pages. Nothing was changed. Load the page again, then repeat it."
)
_UNKNOWN_TOKEN = N_("This API token is unknown, revoked or over. Make a new one: My account, API tokens.")
_SIGNED_OUT = N_("You are signed out, so nothing was changed. Sign in, then repeat it.")
_SIGN_IN = N_("Sign in first, or send an API token: Authorization: Bearer popmi_...")


class Guard:
    """Find out who asks, and let through what they may see.

    Args:
        app: What answers.
        binding: Where the pages listen.
        centre: The centre with the accounts; None: nobody signs in.
        limits: How long a session lasts.
    """

    def __init__(self, app: ASGIApp, *, binding: Binding, centre: Engine | None, limits: SessionLimits) -> None:
        self._app, self._binding, self._centre, self._limits = app, binding, centre, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # There is none; one that a page came to have must not stand beside this door.
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        answer, receive = await self._judge(request, scope, receive)
        await (self._app if answer is None else answer)(scope, receive, send)

    async def _judge(self, request: Request, scope: Scope, receive: Receive) -> tuple[Response | None, Receive]:
        """Return an answer to somebody who is not let through, else None; and the channel with the body."""
        peer = scope["client"][0] if scope.get("client") else ""
        if self._past_the_proxy(peer, request):
            return PlainTextResponse("These pages are behind a proxy: ask there.\n", status_code=403), receive
        state = scope.setdefault("state", {})
        state["address"] = client_address(self._binding, peer, Headers(scope=scope).getlist("x-forwarded-for"))
        state["person"] = NOBODY
        body = b""
        if request.method not in SAFE:
            try:
                body = await read_body(scope, receive)
            except BodyRefused as error:
                title, text = _BODIES[error.status]
                return no(request, error.status, title, text, headers={"Connection": "close"}), receive
        try:
            answer = await self._let_in(request)
            if answer is None and request.method not in SAFE:
                answer = await self._check_form(request, scope, receive, body)
        except SQLAlchemyError as error:
            answer = away(request, error)
        return answer, receive if request.method in SAFE else replay(body, receive)

    async def _let_in(self, request: Request) -> Response | None:
        """Find out who asks; an answer to those who are not let in."""
        path = request.url.path
        if self._centre is None or path.startswith("/static/") or path == "/healthz":
            return None
        kind, _, secret = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and path.startswith(("/api/", "/metrics")):
            token = await run_in_threadpool(tokens.known, self._centre, secret.strip())
            if token is None:
                return _unknown(request, _UNKNOWN_TOKEN)
            holder = token.account
            request.state.person = Person(holder.name, token.role, "", token.digest, "api")
            return None
        cookie = cookies.read(request, cookies.SESSION)
        if cookie:
            found = await run_in_threadpool(sessions.known, self._centre, cookie, self._limits, acts=_acts(request))
            if found is not None:
                holder = found.account
                request.state.person = Person(holder.name, holder.role, found.csrf, found.digest, "page")
                return None
        if path in OPEN_PATHS or (path == "/metrics" and not self._binding.public):
            return None
        return _unknown(request, _SIGN_IN)

    async def _check_form(self, request: Request, scope: Scope, receive: Receive, body: bytes) -> Response | None:
        """Refuse what another site had a browser send; a token is sent by no browser of itself."""
        person: Person = request.state.person
        if person.via == "api":
            return None
        if self._centre is None or request.url.path == "/healthz":
            # Nothing can be changed where nobody can be asked who they are, nor where only one question is answered.
            return None
        expected = [person.csrf]
        if request.url.path in OPEN_PATHS:
            # Who is about to sign in has no session yet; what the form carries is compared with a cookie.
            expected.append(cookies.read(request, cookies.FORM))
        try:
            said = request.headers.get("x-csrf-token") or await form_field(scope, body, receive, "csrf")
        except (HTTPException, ValueError):
            # A form of several parts that is none ends in errors of the parser's own.
            title, text = _BODIES[400]
            return no(request, 400, title, text)
        if comes_from_here(request, self._binding) and any(same(said, one) for one in expected):
            return None
        return no(request, 403, N_("Not accepted"), _STRANGE_FORM)

    def _past_the_proxy(self, peer: str, request: Request) -> bool:
        if self._binding.behind_proxy is None or self._binding.is_proxy(peer):
            return False
        return request.url.path not in ("/healthz", "/metrics")


def _acts(request: Request) -> bool:
    """Say whether a person asks, not a page that keeps itself up to date."""
    if request.method not in SAFE:
        return True
    mode = request.headers.get("sec-fetch-mode")
    return mode == "navigate" if mode is not None else "hx-request" not in request.headers


def _unknown(request: Request, text: str) -> Response:
    """Return the answer to somebody who is not signed in."""
    path = request.url.path
    if for_program(request):
        return JSONResponse({"detail": text}, status_code=401, headers={"WWW-Authenticate": 'Bearer realm="popmi"'})
    if "hx-request" in request.headers:
        # The part of a page cannot hold the page for signing in: have the browser load the whole one again.
        return PlainTextResponse("Signed out.\n", status_code=401, headers={"HX-Refresh": "true"})
    if "text/event-stream" in request.headers.get("accept", ""):
        return PlainTextResponse("Signed out.\n", status_code=401)
    if request.method not in SAFE:
        return no(request, 401, N_("Signed out"), _SIGNED_OUT)
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"/login?next={quote(path + query, safe='')}", status_code=303)
