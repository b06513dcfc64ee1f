"""Accounts: who may sign in, in which role. Every change and its line for the audit log are one transaction."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import delete, func, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from popmi_core.errors import AccessError
from server.centre.opening import writing
from server.centre.passwords import check_new, hashed, is_outdated, matches
from server.centre.people import ROLES, AccountRow, Doer, Role
from server.centre.remarks import remark
from server.centre.schema import Account, LoginSession, Secret
from server.centre.words import N_

INVITED = "password:"
"""What the name of every link begins with by which somebody chooses a password."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")


def add(centre: Engine, name: str, role: str, password: str | None, by: Doer) -> AccountRow:
    """Make an account; without a password nobody signs in by it until its one-time link was used.

    Raises:
        AccessError: If the name is taken or no name, the role is none, or the password would be guessed.
    """
    name, chosen = clean_name(name), clean_role(role)
    if password is not None:
        check_new(name, password)
    kept = "" if password is None else hashed(password)
    try:
        with writing(centre) as session:
            return insert(session, name, chosen, kept, by)
    except IntegrityError as error:
        raise AccessError(N_("account %(name)s: there is one of this name. Choose another name."), name=name) from error


def insert(session: Session, name: str, role: Role, kept: str, by: Doer) -> AccountRow:
    """Make an account within a transaction; ``kept`` is what ``passwords.hashed`` returned, or empty."""
    made = Account(name=name, role=role, password=kept, created=time.time(), disabled=False)
    session.add(made)
    session.flush()
    remark(session, "account.added", by, account=name, role=role)
    return row(made)


def listed(centre: Engine) -> tuple[AccountRow, ...]:
    """Return all accounts by name."""
    with Session(centre) as session:
        return tuple(row(found) for found in session.scalars(select(Account).order_by(Account.name)))


def count(centre: Engine) -> int:
    """Return how many accounts there are."""
    with Session(centre) as session:
        return session.scalar(select(func.count()).select_from(Account)) or 0


def find(centre: Engine, name: str) -> AccountRow:
    """Return the account of a name.

    Raises:
        AccessError: If there is none.
    """
    with Session(centre) as session:
        return row(_account(session, name))


def sign_in(centre: Engine, name: str, password: str) -> AccountRow | None:
    """Return the account whose name and password these are, None otherwise; takes as long in every case.

    A password kept with older parameters is kept anew.
    """
    with Session(centre) as session:
        found = session.scalar(select(Account).where(Account.name == typed(name)))
        kept = found.password if found is not None else None
        person = row(found) if found is not None else None
    if not matches(kept, password) or person is None or person.disabled:
        return None
    if kept is not None and is_outdated(kept):
        with writing(centre) as session:
            _account(session, person.name).password = hashed(password)
    return person


def set_password(centre: Engine, name: str, password: str, by: Doer, *, but: str | None = None) -> tuple[str, ...]:
    """Give an account another password and end its sessions, except the one with the digest ``but``; a link is spent.

    Returns the digests of the sessions that ended.

    Raises:
        AccessError: If there is no such account, or the password would be guessed.
    """
    check_new(name, password)
    kept = hashed(password)
    with writing(centre) as session:
        account = _account(session, name)
        account.password = kept
        end_invitation(session, account)
        remark(session, "account.password", by, account=account.name)
        return end_sessions(session, account.id, but=but)


def set_role(centre: Engine, name: str, role: str, by: Doer) -> None:
    """Give an account another role; it counts from the next request on.

    Raises:
        AccessError: If there is no such account or role, or no admin would be left.
    """
    chosen = clean_role(role)
    with writing(centre) as session, _an_admin_stays(session):
        account = _account(session, name)
        account.role = chosen
        remark(session, "account.role", by, account=account.name, role=chosen)


def disable(centre: Engine, name: str, by: Doer) -> tuple[str, ...]:
    """Let nobody in by an account, and end its sessions; returns their digests. Its tokens rest, its link is spent.

    Raises:
        AccessError: If there is no such account, or no admin would be left.
    """
    with writing(centre) as session, _an_admin_stays(session):
        account = _account(session, name)
        account.disabled = True
        end_invitation(session, account)
        remark(session, "account.disabled", by, account=account.name)
        return end_sessions(session, account.id)


def enable(centre: Engine, name: str, by: Doer) -> None:
    """Let a disabled account in again.

    Raises:
        AccessError: If there is no such account.
    """
    with writing(centre) as session:
        account = _account(session, name)
        account.disabled = False
        remark(session, "account.enabled", by, account=account.name)


def remove(centre: Engine, name: str, by: Doer) -> tuple[str, ...]:
    """Take an account away with its sessions and tokens; returns the digests of its sessions.

    Raises:
        AccessError: If there is no such account, or no admin would be left.
    """
    with writing(centre) as session, _an_admin_stays(session):
        account = _account(session, name)
        ended = end_sessions(session, account.id)
        end_invitation(session, account)
        session.delete(account)
        remark(session, "account.removed", by, account=account.name)
        return ended


def end_sessions(session: Session, account_id: int, *, but: str | None = None) -> tuple[str, ...]:
    """End an account's sessions within a transaction, except the one with the digest ``but``; returns their digests."""
    chosen = LoginSession.account_id == account_id
    ended = [digest for digest in session.scalars(select(LoginSession.digest).where(chosen)) if digest != but]
    session.execute(delete(LoginSession).where(chosen, LoginSession.digest.in_(ended)))
    return tuple(ended)


def invitation(account: Account) -> str:
    """Return the name under which the account's one-time link is kept.

    With the time of its making: SQLite gives the number of a removed account to the next one.
    """
    return f"{INVITED}{account.id}:{account.created:.6f}"


def end_invitation(session: Session, account: Account) -> None:
    """Let an account's one-time link be good for nothing any more, within a transaction."""
    session.execute(delete(Secret).where(Secret.name == invitation(account)))


def clean_name(name: str) -> str:
    """Return a name as accounts have it: small letters.

    Raises:
        AccessError: If it is none.
    """
    plain = name.strip().casefold()
    if _NAME.fullmatch(plain) is None:
        raise AccessError(
            N_(
                "account name %(name)s: expected letters a to z, digits, dot, dash, underline and @, at most 64, "
                "beginning with a letter or digit."
            ),
            name=repr(name[:80]),
        )
    return plain


def typed(name: str) -> str:
    """Return a name as somebody typed it, to be looked for: small, and text for every database.

    PostgreSQL refuses a NUL and half a surrogate pair, which stand in no name.
    """
    return name.replace("\x00", "\ufffd").encode("utf-8", "replace").decode().strip().casefold()


def clean_role(role: str) -> Role:
    """Return a role.

    Raises:
        AccessError: If it is none.
    """
    for known in ROLES:
        if known == role:
            return known
    raise AccessError(N_("role %(role)s: expected one of %(roles)s."), role=repr(role[:80]), roles=", ".join(ROLES))


def row(account: Account) -> AccountRow:
    """Return what is told of an account: never its password."""
    return AccountRow(
        id=account.id,
        name=account.name,
        role=clean_role(account.role),
        created=account.created,
        disabled=account.disabled,
        invited=not account.password,
    )


def _account(session: Session, name: str) -> Account:
    found = session.scalar(select(Account).where(Account.name == typed(name)))
    if found is None:
        raise AccessError(
            N_("account %(name)s: there is none of this name. See `popmi server account list`."), name=repr(name[:80])
        )
    return found


@contextmanager
def _an_admin_stays(session: Session) -> Iterator[None]:
    chosen = select(Account).where(Account.role == "admin", Account.disabled.is_(False), Account.password != "")
    # Two admins who take the role from each other at once must not both succeed: the second waits for the first.
    before = session.scalars(chosen.with_for_update()).all()
    yield
    session.flush()
    if before and not session.scalars(chosen.execution_options(populate_existing=True)).all():
        raise AccessError(
            N_(
                "this is the last admin who can sign in; without one nobody could let others in. Make another admin "
                "first."
            )
        )
