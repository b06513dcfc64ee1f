"""Turn what a run hands over into values that every database takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, overload

from popmi_core.errors import PopmiError, RunError

_TEXT_LIMIT = 4000


def ending(error: BaseException | None) -> tuple[str, str]:
    """Return status and reason of a run whose writer was left with ``error``."""
    if error is None:
        return "stopped", "the record was closed before the run ended"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "stopped", "interrupted by the operator"
    # A foreign exception's text may quote anything; only our own messages are known to be clean.
    return "failed", str(error) if isinstance(error, PopmiError) else f"unexpected {type(error).__name__}"


def one_of(what: str, got: str, expected: tuple[str, ...]) -> None:
    """Refuse a word the schema does not know.

    Raises:
        RunError: If ``got`` is none of ``expected``.
    """
    if got not in expected:
        raise RunError(f"record: {what} {got!r} is unknown, expected one of {', '.join(expected)}. Use one of these.")


def finite(value: float | None) -> float | None:
    """Return a plain float; NaN and infinity become None, which reads *undefined*."""
    return None if value is None or not math.isfinite(value) else float(value)


def whole(value: int | None) -> int | None:
    """Return a plain int; numpy's integers would reach SQLite as bytes."""
    return None if value is None else int(value)


@overload
def clean(text: str) -> str: ...
@overload
def clean(text: str | None) -> str | None: ...
def clean(text: str | None) -> str | None:
    """Drop what no database takes (NUL, half characters) and cap the length."""
    if text is None:
        return None
    sound = text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
    return sound if len(sound) <= _TEXT_LIMIT else sound[: _TEXT_LIMIT - 1] + "…"


def jsonable(value: Any) -> Any:
    """Return ``value`` as JSON keeps it: text keys, lists, finite numbers; the rest as text."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return finite(float(value))
    return clean(str(value))
