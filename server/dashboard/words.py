"""What a page says in words that change with the reader's language, and with what they are said of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


def N_(text: str) -> str:
    """Mark a text of Python's for translation; it is translated where it is rendered."""
    return text


OUTCOMES = {
    "ok": N_("ok"),
    "late": N_("late"),
    "failed": N_("failed"),
    "quarantined": N_("quarantined"),
    "unreachable": N_("unreachable"),
    "stopped": N_("stopped"),
    "void": N_("void"),
    "open": N_("open"),
}
PHASES = {"train": N_("training"), "evaluate": N_("evaluation"), "fuse": N_("fusion"), "total": N_("total")}
SCOPES = {"global": N_("global"), "external": N_("external")}
LINES = {**SCOPES, **PHASES, "up": N_("up"), "down": N_("down"), "floor": N_("floor")}
"""Curves that are no sites."""
LEVELS = {"info": N_("note"), "warning": N_("warning"), "error": N_("error")}


@dataclass(frozen=True)
class Said:
    """A sentence with gaps: ``text`` is the English pattern (``%(name)s``), ``values`` fill the gaps."""

    text: str
    values: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.speak(lambda text: text)

    def speak(self, translate: Callable[[str], str]) -> str:
        """Return the sentence in another language; a value that is itself said is translated too."""
        filled = {
            name: value.speak(translate) if isinstance(value, Said) else value for name, value in self.values.items()
        }
        text = translate(self.text)
        return text % filled if filled else text


def said(text: str, **values: object) -> Said:
    """Return a sentence; ``text`` is marked with ``N_`` where it is written."""
    return Said(text, values)


def word(text: str, of: Mapping[str, str]) -> Said:
    """Return a word of one of the lists above; one that is in none stays as it is."""
    return Said(of.get(text, "%(text)s"), {} if text in of else {"text": text})
