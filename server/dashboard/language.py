"""In which language a page speaks: English, the texts' own, or Traditional Chinese."""

from __future__ import annotations

import gettext
import io
from functools import lru_cache
from pathlib import Path

from starlette.requests import Request

from server.dashboard.words import N_

__all__ = ["COOKIE", "LANGUAGES", "N_", "SOURCE", "language_of", "translations"]

COOKIE = "popmi_language"
SOURCE = "en"
LANGUAGES = {"en": "English", "zh-Hant": "繁體中文"}
"""Languages by their tag in HTML, each called by its own name."""
_LOCALE = Path(__file__).parent / "locale"
# What browsers in Taiwan, Hong Kong and Macau ask for.
_ASKED = {"zh_Hant": "zh-Hant", "zh_TW": "zh-Hant", "zh_HK": "zh-Hant", "zh_MO": "zh-Hant", "zh": "zh-Hant", "en": "en"}


@lru_cache(maxsize=len(LANGUAGES))
def translations(language: str) -> gettext.NullTranslations:
    """Return the texts of a language; a text without a translation stays English."""
    path = _LOCALE / language.replace("-", "_") / "LC_MESSAGES" / "dashboard.po"
    if language == SOURCE or not path.exists():
        return gettext.NullTranslations()
    # Not needed for English: a server that only writes reports has no Babel.
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    compiled = io.BytesIO()
    with path.open("rb") as file:
        write_mo(compiled, read_po(file))
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)


def language_of(request: Request) -> str:
    """Return the language to answer in: what the person chose, else what the browser asks for, else English."""
    chosen = request.query_params.get("language") or request.cookies.get(COOKIE, "")
    if chosen in LANGUAGES:
        return chosen
    from babel import negotiate_locale

    asked = [part.partition(";")[0].strip().replace("-", "_") for part in _accepted(request)]
    found = negotiate_locale(asked, list(_ASKED))
    return _ASKED.get(found or SOURCE, SOURCE)


def _accepted(request: Request) -> list[str]:
    parts = request.headers.get("accept-language", "").split(",")[:20]

    def weight(part: str) -> float:
        try:
            return float(part.partition("q=")[2] or 1)
        except ValueError:
            return 0.0

    return sorted(parts, key=weight, reverse=True)
