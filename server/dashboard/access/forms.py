"""Whether a form was made by these pages, and where to go on after it."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.requests import Request

from server.dashboard.access.binding import Binding


def comes_from_here(request: Request, binding: Binding) -> bool:
    """Say whether a request that changes something may come from one of these pages.

    Browsers say so in ``Sec-Fetch-Site``, older ones in ``Origin``; a program that says neither sends no cookie by
    itself, and what it sends must carry the form's own secret anyway.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None and site != "same-origin":
        return False
    return origin is None or origin.lower() == binding.origin(request.headers.get("host", ""))


def same(said: str, expected: str) -> bool:
    """Compare two secrets in a time that tells nothing; an empty one is like none."""
    return bool(expected) and hmac.compare_digest(said.encode("utf-8", "replace"), expected.encode("utf-8", "replace"))


def inside(where: str) -> str:
    """Return a path of these pages to go on to; the first page, where it could lead elsewhere."""
    plain = where.isprintable() and where.startswith("/") and not where.startswith("//") and "\\" not in where
    if not plain or urlsplit(where).netloc or where.startswith(("/login", "/logout", "/first", "/password")):
        return "/"
    return where
