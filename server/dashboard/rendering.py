"""The templates, the formats they print with, and a page made of them in the reader's language."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response

from server.dashboard import formats
from server.dashboard.access.person import person_of
from server.dashboard.charts import Chart, label
from server.dashboard.language import LANGUAGES, N_, SOURCE, language_of, translations
from server.dashboard.svg import draw
from server.dashboard.views import flatten

NAVIGATION = (
    ("/", N_("Runs")),
    ("/sites", N_("Sites")),
    ("/models", N_("Models")),
    ("/audit", N_("Audit")),
    ("/act", N_("Act")),
)
"""Where the header leads, and in which order."""


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
    for name in ("figure", "bounded", "moment", "minute", "duration", "size", "count", "split_name"):
        found.filters[name] = getattr(formats, name)
    found.filters |= {"label": label, "flatten": flatten, "path": _path, "plot": _plot, "draw": draw}
    return found


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """Return a page, or a part of one, in the reader's language.

    Every template also knows ``person`` (nameless where nobody has to sign in), ``csrf()`` (the hidden field that every
    form needs), ``language``, ``here`` (the page's path), ``navigation`` and ``where`` (what is looked at).
    """
    language, person = language_of(request), person_of(request)
    known = {
        "where": request.app.state.catalogue.where,
        "person": person,
        "csrf": lambda: Markup('<input type="hidden" name="csrf" value="{}">').format(person.csrf),
        "centre": getattr(request.app.state, "centre", None),
        "language": language,
        "languages": LANGUAGES,
        "here": request.url.path,
        "navigation": NAVIGATION,
    }
    text = environment(language).get_template(template).render(**known, **values)
    return HTMLResponse(text.encode("utf-8", "replace"), status_code=status)


def _path(key: str) -> str:
    return quote(key, safe="", errors="surrogateescape")


def _plot(chart: Chart) -> str:
    lines = [{"scope": line.scope, "style": line.style, "values": line.values} for line in chart.lines]
    return json.dumps({"title": chart.title, "rounds": chart.rounds, "worst": chart.worst, "lines": lines})
