"""The cookies: which are set, how they are called, and what they hold."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from server.dashboard.access.binding import Binding, host_port

SESSION, FORM = "popmi", "popmi-form"
FORM_SECONDS = 3600


def cookie_name(request: Request, kind: str) -> str:
    """Return a cookie's name.

    Under TLS no other name of the domain can set it (``__Host-``). Without, all servers of one host name share their
    cookies whatever their port is, so the port stands in the name.
    """
    binding: Binding = request.app.state.binding
    return f"__Host-{kind}" if binding.secure else f"{kind}-{host_port(request.headers.get('host', '')) or 80}"


def read(request: Request, kind: str) -> str:
    """Return what a cookie holds, empty where there is none."""
    return request.cookies.get(cookie_name(request, kind), "")


def give(request: Request, answer: Response, kind: str, value: str, seconds: float) -> None:
    """Set a cookie that no script reads and no other site sends."""
    answer.set_cookie(
        cookie_name(request, kind),
        value,
        max_age=int(seconds),
        path="/",
        secure=request.app.state.binding.secure,
        httponly=True,
        samesite="strict",
    )


def take(request: Request, answer: Response, kind: str) -> None:
    """Take a cookie away."""
    answer.delete_cookie(
        cookie_name(request, kind),
        path="/",
        secure=request.app.state.binding.secure,
        httponly=True,
        samesite="strict",
    )
