"""The templates, the formats they print with, and a page made of them in the reader's language."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response

from server.dashboard import formats
from server.dashboard.access.person import person_of
from server.dashboard.charts import Chart
from server.dashboard.language import COOKIE, LANGUAGES, N_, SOURCE, language_of, translations
from server.dashboard.pictures import bar, diagram, heat, largest, ribbon
from server.dashboard.speaking import filters
from server.dashboard.svg import draw
from server.dashboard.views import flatten
from server.dashboard.words import Said

NAVIGATION = (
    ("/", N_("Runs")),
    ("/sites", N_("Sites")),
    ("/models", N_("Models")),
    ("/audit", N_("Audit")),
    ("/act", N_("Act")),
)
"""Where the header leads, and in which order."""
KEPT_SECONDS = 365 * 24 * 3600
"""How long a browser keeps the language that was chosen."""


@lru_cache(maxsize=len(LANGUAGES))
def environment(language: str = SOURCE) -> Environment:
    """Return the templates with the house's formats, in one language; everything is escaped."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    found.install_gettext_translations(translations(language), newstyle=True)  # type: ignore[attr-defined]
    for name in ("moment", "minute", "duration", "size", "count", "share"):
        found.filters[name] = getattr(formats, name)
    found.filters["say"] = _saying(language)
    found.filters |= filters(translations(language).gettext)
    found.filters |= {"flatten": flatten, "path": _path, "plot": _plot, "draw": draw, "ago": _ago(language)}
    found.filters |= {"heat": heat, "bar": bar, "diagram": diagram, "most_of": largest}
    found.globals["ribbon"] = ribbon
    return found


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """Return a page, or a part of one, in the reader's language.

    Every template also knows ``person`` (nameless where nobody has to sign in), ``csrf()`` (the hidden field that every
    form needs), ``language``, ``here`` (the page's path), ``here_now`` (with its questions), ``here_in(language)``,
    ``navigation`` and ``where`` (what is looked at). A text that comes as a value is translated by the filter ``say``,
    never by ``_()``: what that gives counts as safe HTML.
    """
    language, person = language_of(request), person_of(request)
    known = {
        "where": where_of(request),
        "person": person,
        "csrf": lambda: Markup('<input type="hidden" name="csrf" value="{}">').format(person.csrf),
        "centre": getattr(request.app.state, "centre", None),
        "language": language,
        "languages": LANGUAGES,
        "here_in": _here_in(request),
        "here": request.url.path,
        "here_now": _here_now(request),
        "navigation": NAVIGATION,
    }
    text = environment(language).get_template(template).render(**known, **values)
    answer = HTMLResponse(text.encode("utf-8", "replace"), status_code=status)
    answer.headers["Vary"] = "Accept-Language, Cookie, HX-Request"
    if request.query_params.get("language") in LANGUAGES:
        # The one thing remembered of a person who has not signed in: which language they chose.
        answer.set_cookie(
            COOKIE,
            language,
            max_age=KEPT_SECONDS,
            samesite="strict",
            httponly=True,
            secure=request.url.scheme == "https",
        )
    return answer


def render_live(request: Request, name: str, *, status: int = 200, **values: Any) -> Response:
    """Return the page ``name.html``, or its part ``_name.html`` where the page itself asks for what changed."""
    if request.headers.get("hx-request") == "true":
        # 200, so that the page shows even a trouble in its place and recovers with the next change.
        return render(request, f"_{name}.html", **values)
    return render(request, f"{name}.html", status=status, **values)


def where_of(request: Request) -> str:
    """Return what is looked at: with accounts only its last name, for a server's paths are nobody's to know."""
    where: str = request.app.state.catalogue.where
    return where if getattr(request.app.state, "centre", None) is None else where.rstrip("/").rpartition("/")[2]


def _here_now(request: Request) -> str:
    """Return this page's address as it was asked for, to ask again what changed; the language is in the cookie."""
    return request.url.path + "?" + urlencode(request.query_params.multi_items(), errors="surrogateescape")


def _here_in(request: Request) -> Callable[[str], str]:
    """Return a function that gives this page's address in another language, its other questions kept."""
    asked = [(name, value) for name, value in request.query_params.multi_items() if name != "language"]
    return lambda tag: "?" + urlencode([*asked, ("language", tag)], errors="surrogateescape")


def _saying(language: str) -> Callable[..., str]:
    """Return the filter for texts that come as values: unlike ``_``, it leaves what it gives to be escaped."""

    def say(text: str | Said, values: Mapping[str, Any] | None = None) -> str:
        if isinstance(text, Said):
            return text.speak(translations(language).gettext)
        # An empty text is the catalogue's own head.
        told = translations(language).gettext(text) if text else text
        return told % values if values else told

    return say


def _ago(language: str) -> Callable[[float], str]:
    """Return the filter that tells how long ago something was, from seconds."""
    steps = (
        (90, 1, N_("%(number)s s ago")),
        (5400, 60, N_("%(number)s min ago")),
        (172_800, 3600, N_("%(number)s h ago")),
        (math.inf, 86_400, N_("%(number)s days ago")),
    )

    def ago(seconds: float) -> str:
        unit, text = next((unit, text) for below, unit, text in steps if seconds < below)
        return translations(language).gettext(text) % {"number": round(seconds / unit)}

    return ago


def _path(key: str) -> str:
    return quote(key, safe="", errors="surrogateescape")


def _plot(chart: Chart) -> str:
    lines = [{"scope": line.scope, "style": line.style, "values": line.values} for line in chart.lines]
    return json.dumps({"title": chart.title, "rounds": chart.rounds, "worst": chart.worst, "lines": lines})
