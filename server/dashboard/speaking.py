"""The formats of pages that hold words: the same figures, in the reader's language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from server.dashboard import formats
from server.dashboard.charts import label
from server.dashboard.health import State
from server.dashboard.heard import heard
from server.dashboard.words import LEVELS, LINES, OUTCOMES, PHASES, SCOPES, Said, word
from server.store import MetricRow

Translate = Callable[[str], str]


def filters(translate: Translate) -> dict[str, Callable[..., Any]]:
    """Return the filters of one language."""

    def among(words: Mapping[str, str]) -> Callable[[str], str]:
        return lambda text: word(text, words).speak(translate)

    def figure(value: float | None, digits: int = 3) -> str:
        return translate(formats.UNDEFINED) if value is None else formats.figure(value, digits)

    def bounded(row: MetricRow | None) -> str:
        return translate(formats.UNDEFINED) if row is not None and row.value is None else formats.bounded(row)

    def detail(state: State) -> str:
        return "; ".join(item.speak(translate) for item in state.said) or state.detail

    return {
        "figure": figure,
        "bounded": bounded,
        "detail": detail,
        "heard": lambda text: heard(text).speak(translate),
        "split_name": lambda split: translate(formats.split_name(split)),
        "split_title": lambda split: _first_large(translate(formats.split_name(split))),
        "label": lambda name: translate(label(name)),
        "said": lambda item: item.speak(translate) if isinstance(item, Said) else translate(item),
        "outcome": among(OUTCOMES),
        "phase": among(PHASES),
        "scope": among(SCOPES),
        "level": among(LEVELS),
        "line": among(LINES),
    }


def _first_large(text: str) -> str:
    return text[:1].upper() + text[1:]
