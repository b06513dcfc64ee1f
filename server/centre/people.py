"""What the centre tells of accounts, sessions and tokens, and who asked for a change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")
"""From the least to the most: an operator may do what a viewer may, an admin what an operator may."""


def at_most(role: Role, limit: Role) -> Role:
    """Return the smaller of two roles."""
    return min(role, limit, key=ROLES.index)


@dataclass(frozen=True)
class Doer:
    """Who asked for a change: an account's name, or a user of this machine; ``via`` is page, api or terminal."""

    who: str
    via: str


@dataclass(frozen=True)
class AccountRow:
    """One account; ``created`` is in seconds since 1970 UTC.

    ``invited`` is True while the person has chosen no password: then nobody signs in by this account.
    """

    id: int
    name: str
    role: Role
    created: float
    disabled: bool
    invited: bool


@dataclass(frozen=True)
class SessionRow:
    """One browser that is signed in; times are seconds since 1970 UTC, ``digest`` is the secret's sha256."""

    digest: str
    account: AccountRow
    csrf: str
    created: float
    seen: float
    expires: float
    address: str
    agent: str


@dataclass(frozen=True)
class TokenRow:
    """One API token; times are seconds since 1970 UTC, ``used`` is None before the first use.

    ``role`` is what it may do today: no more than its account may.
    """

    id: int
    account: AccountRow
    name: str
    digest: str
    role: Role
    created: float
    expires: float
    used: float | None
    revoked: bool
