"""Links that work once: the first admin's, and the one by which an account's owner chooses a password."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from popmi_core.errors import AccessError
from server.centre.accounts import INVITED, clean_name, end_sessions, insert, invitation, row
from server.centre.opening import writing
from server.centre.passwords import check_new, hashed
from server.centre.people import AccountRow, Doer
from server.centre.remarks import remark
from server.centre.schema import Account, Secret
from server.centre.sessions import SECRET_BYTES, digest_of
from server.centre.words import N_

FIRST = "first-admin"
FIRST_SECONDS = 3600.0
INVITATION_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Purpose:
    """What a link is for: ``account`` is whose password it sets, None where it makes the first admin."""

    account: str | None


def first_admin(centre: Engine) -> str | None:
    """Return a new secret that makes the first admin, good for an hour; None where there is an account already."""
    with writing(centre) as session:
        if session.scalar(select(func.count()).select_from(Account)):
            session.execute(delete(Secret).where(Secret.name == FIRST))
            return None
        return _new(session, FIRST, FIRST_SECONDS)


def invite(centre: Engine, account: AccountRow, by: Doer) -> str:
    """Return a new secret by which the account's owner chooses a password, good for a day.

    Raises:
        AccessError: If the account is gone.
    """
    with writing(centre) as session:
        found = session.get(Account, account.id)
        if found is None or found.created != account.created:
            raise AccessError(N_("account %(name)s: it was removed in the meantime."), name=account.name)
        remark(session, "account.invited", by, account=account.name)
        return _new(session, invitation(found), INVITATION_SECONDS)


def purpose(centre: Engine, secret: str) -> Purpose:
    """Return what a link is for; it stays good.

    Raises:
        AccessError: If it is good for nothing.
    """
    with Session(centre) as session:
        found = session.scalar(select(Secret).where(Secret.digest == digest_of(secret), Secret.expires > time.time()))
        if found is None:
            raise _spent()
        return Purpose(None if found.name == FIRST else _invited(session, found.name).name)


def make_first_admin(centre: Engine, secret: str, name: str, password: str) -> AccountRow:
    """Use the link of the first admin.

    Raises:
        AccessError: If the link is spent, or name or password are not taken; then it stays good.
    """
    name = clean_name(name)
    check_new(name, password)
    kept = hashed(password)
    try:
        with writing(centre) as session:
            if _use(session, secret) != FIRST or session.scalar(select(func.count()).select_from(Account)):
                raise _spent()
            return insert(session, name, "admin", kept, Doer(name, "page"))
    except IntegrityError as error:
        raise _spent() from error


def choose_password(centre: Engine, secret: str, password: str) -> tuple[AccountRow, tuple[str, ...]]:
    """Use the link that sets a password; returns the account and the digests of its sessions, which ended.

    Raises:
        AccessError: If the link is spent, or the password would be guessed; then it stays good.
    """
    name = purpose(centre, secret).account
    if name is None:
        raise _spent()
    check_new(name, password)
    kept = hashed(password)
    with writing(centre) as session:
        account = _invited(session, _use(session, secret))
        account.password = kept
        ended = end_sessions(session, account.id)
        remark(session, "account.password", Doer(account.name, "page"), account=account.name)
        session.flush()
        return row(account), ended


def _new(session: Session, name: str, seconds: float) -> str:
    secret = secrets.token_urlsafe(SECRET_BYTES)
    now = time.time()
    session.execute(delete(Secret).where((Secret.name == name) | (Secret.expires <= now)))
    session.add(Secret(name=name, digest=digest_of(secret), expires=now + seconds))
    return secret


def _use(session: Session, secret: str) -> str:
    chosen = (Secret.digest == digest_of(secret), Secret.expires > time.time())
    name = session.scalar(select(Secret.name).where(*chosen))
    # Of two who use it at one moment, one deletes it.
    if name is None or session.connection().execute(delete(Secret).where(*chosen)).rowcount != 1:
        raise _spent()
    return name


def _invited(session: Session, name: str) -> Account:
    number = name.removeprefix(INVITED).partition(":")[0] if name.startswith(INVITED) else ""
    account = session.get(Account, int(number)) if number else None
    if account is None or account.disabled or invitation(account) != name:
        raise _spent()
    return account


def _spent() -> AccessError:
    return AccessError(N_("this link was used, is too old, or was replaced by a newer one. Ask for a new one."))
