"""What the pages and the keeper share beside round records: accounts, orders, what is shown; no torch, no flwr."""

from server.centre.opening import centre_database, open_centre, writing
from server.centre.schema import (
    Account,
    ApiToken,
    Attempt,
    AuditLine,
    Board,
    LoginSession,
    Order,
)

__all__ = [
    "Account",
    "ApiToken",
    "Attempt",
    "AuditLine",
    "Board",
    "LoginSession",
    "Order",
    "centre_database",
    "open_centre",
    "writing",
]
