"""What somebody sees who is not let through: a page for a person, JSON for a program."""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.dashboard.access.person import Refused
from server.dashboard.language import N_
from server.dashboard.rendering import render

log = logging.getLogger("popmi.dashboard")
_AWAY = N_(
    "The database with the accounts does not answer, so nobody can be let in just now. The federation goes on without "
    "it. Try again in a moment; if it stays, the server's operator must look after the database."
)
_NO_CENTRE = N_(
    "Nobody signs in here, so everybody may look and nobody may act: these pages have no server's home behind them. "
    "To act, open the pages of the server: `popmi server up`, or `popmi serve --home FOLDER`."
)
_ROLE = N_(
    "You are signed in as %(name)s, whose role is %(role)s. This needs the role %(needed)s: ask an admin for it."
)


def refused(request: Request, error: Exception) -> Response:
    """Return the answer to somebody whose role is too small."""
    assert isinstance(error, Refused)
    if not error.person.name:
        return no(request, 403, N_("Not allowed"), _NO_CENTRE)
    return no(
        request, 403, N_("Not allowed"), _ROLE,
        name=error.person.name, role=error.person.role, needed=error.needed,
    )  # fmt: skip


def away(request: Request, error: Exception) -> Response:
    """Return the answer where the centre's database does not answer."""
    log.warning("the centre does not answer: %s", type(error).__name__)
    return no(request, 503, N_("The database does not answer"), _AWAY, headers={"Retry-After": "5"})


def no(
    request: Request, status: int, title: str, text: str, *, headers: dict[str, str] | None = None, **named: object
) -> Response:
    """Return a refusal.

    Args:
        request: What was asked.
        status: HTTP status.
        title: What it is, in two or three words; marked for translation.
        text: What is wrong and what helps; marked for translation, with ``%(name)s`` for what is ``named``.
        headers: Further headers.
        named: What stands for the names in ``text``.
    """
    if for_program(request):
        answer: Response = JSONResponse({"detail": text % named if named else text}, status_code=status)
    else:
        answer = render(request, "message.html", status=status, title=title, text=text, values=named)
    answer.headers.update(headers or {})
    return answer


def for_program(request: Request) -> bool:
    """Say whether a program asks, not a person with a browser."""
    return request.url.path.startswith(("/api/", "/metrics", "/healthz"))
