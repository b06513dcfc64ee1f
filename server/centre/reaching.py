"""A centre that is away, full or locked is told in words, whoever asks it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from popmi_core.errors import RecordError, RunError
from server.store.trouble import passes


class CentreAway(RunError):
    """The centre's database does not answer, is locked or is full; it may answer again by itself."""


class CentreRefuses(RecordError):
    """The centre's database refuses what was asked of it, and would refuse it again."""


@contextmanager
def reaching(engine: Engine, what: str) -> Iterator[None]:
    """Turn what the database says into an error a person reads; ``what`` is what was tried, e.g. "read the orders".

    Raises:
        CentreAway: If it may well succeed later.
        CentreRefuses: If it will not.
    """
    try:
        yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or type(error).__name__
        if passes(error):
            raise CentreAway(
                f"centre: cannot {what}: {cause}. Check that the database answers and its disk has room."
            ) from error
        raise CentreRefuses(f"centre: cannot {what}: {cause}. Check this user's rights there.") from error
