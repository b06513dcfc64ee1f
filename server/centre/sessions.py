"""Browsers that are signed in. The cookie holds a random secret, the table its sha256: a stolen table signs nobody in.

A session ends where it is ended, for every process of the pages, because nothing of it is kept anywhere else.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import delete, or_, select, update
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from server.centre.accounts import end_sessions, row
from server.centre.opening import writing
from server.centre.people import AccountRow, Doer, SessionRow
from server.centre.remarks import remark
from server.centre.schema import Account, ApiToken, LoginSession

SECRET_BYTES = 32
_DIGEST = re.compile("[0-9a-f]{64}")
SEEN_SECONDS = 60.0
"""How old the time of the last act may be: not every request is a write."""


@dataclass(frozen=True)
class SessionLimits:
    """How long a session lasts: seconds without an act of the person's, and seconds in all."""

    idle_seconds: float = 8 * 3600.0
    whole_seconds: float = 24 * 3600.0


@dataclass(frozen=True)
class Opened:
    """A session just begun; ``secret`` is told this once."""

    secret: str
    digest: str
    csrf: str
    expires: float


def digest_of(secret: str) -> str:
    """Return the sha256 (hex) of a random secret; a slow hash is for passwords, which are guessable."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def begin(centre: Engine, account: AccountRow, *, address: str, agent: str, limits: SessionLimits) -> Opened:
    """Begin a session, and clear away those that are over."""
    now, secret = time.time(), secrets.token_urlsafe(SECRET_BYTES)
    made = LoginSession(
        digest=digest_of(secret),
        account_id=account.id,
        csrf=secrets.token_urlsafe(SECRET_BYTES),
        created=now,
        seen=now,
        expires=now + limits.whole_seconds,
        address=address[:64],
        agent="".join(letter for letter in agent if letter.isprintable())[:200],
    )
    opened = Opened(secret, made.digest, made.csrf, made.expires)
    over = or_(LoginSession.expires <= now, LoginSession.seen <= now - limits.idle_seconds)
    with writing(centre) as session:
        session.execute(delete(LoginSession).where(over))
        session.add(made)
        remark(session, "account.signed-in", Doer(account.name, "page"), address=address[:64])
    return opened


def known(centre: Engine, secret: str, limits: SessionLimits, *, acts: bool) -> SessionRow | None:
    """Return the session of a cookie's secret, None where it is over, unknown, or its account is disabled.

    Args:
        centre: The centre.
        secret: What the cookie holds.
        limits: How long a session lasts.
        acts: Whether the person asks; a page that brings itself up to date is nobody's act.
    """
    now = time.time()
    chosen = (
        select(LoginSession, Account)
        .join(Account, Account.id == LoginSession.account_id)
        .where(LoginSession.digest == digest_of(secret), Account.disabled.is_(False))
        .where(LoginSession.expires > now, LoginSession.seen > now - limits.idle_seconds)
    )
    with Session(centre) as session:
        pair = session.execute(chosen).one_or_none()
        if pair is None:
            return None
        found = _told(*pair)
    if acts and now - found.seen > SEEN_SECONDS:
        with writing(centre) as session:
            session.execute(update(LoginSession).where(LoginSession.digest == found.digest).values(seen=now))
    return found


def end(centre: Engine, digest: str, account: AccountRow, by: Doer) -> None:
    """End one session of an account; one that is over already, or another's, is left."""
    if _DIGEST.fullmatch(digest) is None:
        # A form may say anything, also what PostgreSQL takes for no text.
        return
    chosen = (LoginSession.digest == digest, LoginSession.account_id == account.id)
    with writing(centre) as session:
        if session.scalar(select(LoginSession.digest).where(*chosen)) is not None:
            session.execute(delete(LoginSession).where(*chosen))
            remark(session, "account.signed-out", by, account=account.name)


def end_all(centre: Engine, account: AccountRow, by: Doer) -> tuple[str, ...]:
    """End every session of an account; returns their digests."""
    with writing(centre) as session:
        ended = end_sessions(session, account.id)
        remark(session, "account.signed-out", by, account=account.name, sessions=len(ended))
    return ended


def of_account(centre: Engine, account: AccountRow, limits: SessionLimits) -> tuple[SessionRow, ...]:
    """Return an account's sessions that are not over, the newest first."""
    now = time.time()
    chosen = (
        select(LoginSession, Account)
        .join(Account, Account.id == LoginSession.account_id)
        .where(LoginSession.account_id == account.id, LoginSession.expires > now)
        .where(LoginSession.seen > now - limits.idle_seconds)
        .order_by(LoginSession.created.desc())
    )
    with Session(centre) as session:
        return tuple(_told(*pair) for pair in session.execute(chosen))


def alive(centre: Engine, digests: Collection[str], limits: SessionLimits) -> frozenset[str]:
    """Return those of the digests, of sessions or of API tokens, that would still be let in."""
    now = time.time()
    sessions = (
        select(LoginSession.digest)
        .join(Account, Account.id == LoginSession.account_id)
        .where(LoginSession.digest.in_(digests), Account.disabled.is_(False))
        .where(LoginSession.expires > now, LoginSession.seen > now - limits.idle_seconds)
    )
    tokens = (
        select(ApiToken.digest)
        .join(Account, Account.id == ApiToken.account_id)
        .where(ApiToken.digest.in_(digests), Account.disabled.is_(False), Account.password != "")
        .where(ApiToken.expires > now, ApiToken.revoked.is_(False))
    )
    with Session(centre) as session:
        return frozenset([*session.scalars(sessions), *session.scalars(tokens)])


def _told(found: LoginSession, account: Account) -> SessionRow:
    return SessionRow(
        digest=found.digest,
        account=row(account),
        csrf=found.csrf,
        created=found.created,
        seen=found.seen,
        expires=found.expires,
        address=found.address,
        agent=found.agent,
    )
