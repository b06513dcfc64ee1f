"""Which troubles with a record pass by themselves."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout


def passes(error: Exception) -> bool:
    """Return whether the same write may well succeed later: no room, no server, no connection, a lock."""
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return lost or isinstance(error, OperationalError | InterfaceError | InternalError | PoolTimeout)
