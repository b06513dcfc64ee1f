"""Errors that nobody foresaw: a page or JSON that says so, hardened as every answer is, and a line for the operator.

Starlette's own answer to them lies outside every middleware, so it would go out without the headers of the others.
"""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.dashboard.access.answers import no
from server.dashboard.language import N_

log = logging.getLogger("popmi.dashboard")
_TITLE = N_("These pages made a mistake")
_TEXT = N_(
    "What was asked could not be answered, because of an error in these pages. Whether anything was changed is not "
    "known: look before you repeat it. The pages' log at the server says what went wrong."
)


class Unforeseen:
    """Answer what ended in an error that nothing further inside took care of.

    Args:
        app: What answers otherwise.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watch(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            # Without the query: a one-time link's secret stands there.
            log.exception("%s %s", scope["method"], repr(scope["path"][:200]))
            if begun:
                # Half an answer is out: the connection is cut, so that nobody takes it for a whole one.
                raise
            answer = no(Request(scope, receive), 500, _TITLE, _TEXT, headers={"Cache-Control": "no-store"})
            await answer(scope, receive, send)
