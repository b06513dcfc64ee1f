"""Sentences that other parts say in English, in the reader's language: what is in no list below stays as it was said.

In English every one reads as it was written.
"""

from __future__ import annotations

import re

from server.dashboard.language import N_
from server.dashboard.words import Said, said

_SENTENCES = (
    # Of an order, which whoever takes it back writes (server.centre.orders).
    N_("withdrawn by %(who)s"),
    # Of the audit log's chain (popmi_core.audit, server.centre.trail).
    N_("audit log, line %(number)s: is missing here. It was taken out of the database."),
    N_("audit log: %(lines)s lines are here, expected %(number)s. Some were taken out."),
    N_("audit log, line %(number)s: was changed after it was written. Ask who did."),
    N_("audit log, line %(number)s: is no entry, expected JSON with number, event and hashes. It was changed."),
    N_(
        "audit log, line %(number)s: follows entry %(got)s with hash %(hash)s, expected entry %(before)s with hash "
        "%(expected)s. Lines were taken out or put in before it."
    ),
    # Of a run's description (pydantic).
    N_("Input should be greater than or equal to %(limit)s"),
    N_("Input should be less than or equal to %(limit)s"),
    N_("Input should be greater than %(limit)s"),
    N_("Input should be less than %(limit)s"),
    N_("Input should be a valid integer, unable to parse string as an integer"),
    N_("Input should be a valid number, unable to parse string as a number"),
    N_("Input should be %(choices)s"),
    N_("Extra inputs are not permitted"),
    N_("Field required"),
)


def _pattern(sentence: str) -> re.Pattern[str]:
    plain = re.split(r"%\((\w+)\)s", sentence)
    return re.compile("".join(f"(?P<{part}>.+)" if at % 2 else re.escape(part) for at, part in enumerate(plain)))


_PATTERNS = tuple((_pattern(sentence), sentence) for sentence in _SENTENCES)


def heard(text: str) -> Said:
    """Return what another part said, so that it can be said in another language."""
    for pattern, sentence in _PATTERNS:
        if (found := pattern.fullmatch(text)) is not None:
            return said(sentence, **found.groupdict())
    return said("%(what)s", what=text)
