"""The answer to a method that an address does not take: which it takes, all of them."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from server.dashboard.language import N_
from server.dashboard.rendering import render

_TEXT = N_("This address does not take what was sent to it. Go back, load the page again, then repeat it.")


def not_so(request: Request, error: Exception) -> Response:
    """Return 405 with every method of the address: Starlette names those of the first route that fits it alone."""
    assert isinstance(error, HTTPException)
    allowed = _described(request.app, request.url.path) or (error.headers or {}).get("Allow", "")
    headers = {"Allow": allowed} if allowed else None
    if request.url.path.startswith(("/api/", "/healthz", "/metrics")):
        return JSONResponse({"detail": "Method Not Allowed"}, status_code=405, headers=headers)
    answer = render(request, "message.html", status=405, title=N_("Not understood"), text=_TEXT)
    answer.headers.update(headers or {})
    return answer


def _described(app: FastAPI, path: str) -> str:
    """Return the methods that the OpenAPI file tells of an address; empty for pages, which are not in it."""
    paths: dict[str, Any] = app.openapi()["paths"]
    fitting = [methods for template, methods in paths.items() if _pattern(template).fullmatch(path)]
    return ", ".join(sorted({method.upper() for methods in fitting for method in methods}))


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("[^/]+".join(map(re.escape, re.split(r"\{\w+\}", template))))
