"""API tokens: what programs sign in with. They are random, kept as their sha256, and end by themselves."""

from __future__ import annotations

import secrets
import time

from sqlalchemy import select, update
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from popmi_core.errors import AccessError
from server.centre.accounts import clean_role, row
from server.centre.opening import writing
from server.centre.people import ROLES, AccountRow, Doer, TokenRow, at_most
from server.centre.remarks import remark
from server.centre.schema import Account, ApiToken
from server.centre.sessions import SECRET_BYTES, SEEN_SECONDS, digest_of
from server.centre.words import N_

PREFIX = "popmi_"
"""What every token begins with, so that a search for leaked secrets finds it."""
MOST_DAYS = 365
MOST_TOKENS = 50
DAY = 86_400.0


def make(centre: Engine, account: AccountRow, name: str, role: str, days: int, by: Doer) -> tuple[TokenRow, str]:
    """Make a token; returns what is told of it, and the token itself, which is told this once.

    Raises:
        AccessError: If it has no name, may do more than its account, would last too long, or the account has too many.
    """
    plain, chosen = "".join(letter for letter in name if letter.isprintable()).strip()[:80], clean_role(role)
    if not plain:
        raise AccessError(N_("an API token needs a name, by which you know it again: say what it is for."))
    if ROLES.index(chosen) > ROLES.index(account.role):
        raise AccessError(
            N_("token %(token)s: role %(role)s is more than account %(name)s may do, expected at most %(most)s."),
            token=repr(plain),
            role=chosen,
            name=account.name,
            most=account.role,
        )
    if not 1 <= days <= MOST_DAYS:
        raise AccessError(
            N_("token %(token)s: %(days)s days, expected 1 to %(most)s."), token=repr(plain), days=days, most=MOST_DAYS
        )
    now, secret = time.time(), PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    with writing(centre) as session:
        held = session.scalars(
            select(ApiToken.id).where(
                ApiToken.account_id == account.id, ApiToken.revoked.is_(False), ApiToken.expires > now
            )
        ).all()
        if len(held) >= MOST_TOKENS:
            raise AccessError(
                N_("account %(name)s has %(number)s API tokens, the most there may be. Revoke some."),
                name=account.name,
                number=len(held),
            )
        made = ApiToken(
            account_id=account.id, name=plain, digest=digest_of(secret), role=chosen,
            created=now, expires=now + days * DAY, used=None, revoked=False,
        )  # fmt: skip
        session.add(made)
        session.flush()
        remark(session, "token.made", by, account=account.name, token=plain, number=made.id, role=chosen, days=days)
        told = _told(made, session.get_one(Account, account.id))
    return told, secret


def known(centre: Engine, secret: str) -> TokenRow | None:
    """Return the token, None where it is unknown, over, revoked, or its account is disabled or invited only."""
    if not secret.startswith(PREFIX):
        return None
    now = time.time()
    chosen = (
        select(ApiToken, Account)
        .join(Account, Account.id == ApiToken.account_id)
        .where(ApiToken.digest == digest_of(secret), ApiToken.revoked.is_(False), ApiToken.expires > now)
        .where(Account.disabled.is_(False), Account.password != "")
    )
    with Session(centre) as session:
        pair = session.execute(chosen).one_or_none()
        if pair is None:
            return None
        found = _told(*pair)
    if now - (found.used or 0.0) > SEEN_SECONDS:
        with writing(centre) as session:
            session.execute(update(ApiToken).where(ApiToken.id == found.id).values(used=now))
    return found


def listed(centre: Engine, account: AccountRow | None = None) -> tuple[TokenRow, ...]:
    """Return the tokens of an account, or of all, the newest first; revoked and ended ones too."""
    chosen = select(ApiToken, Account).join(Account, Account.id == ApiToken.account_id).order_by(ApiToken.id.desc())
    if account is not None:
        chosen = chosen.where(ApiToken.account_id == account.id)
    with Session(centre) as session:
        return tuple(_told(*pair) for pair in session.execute(chosen))


def revoke(centre: Engine, number: int, by: Doer, *, account: AccountRow | None = None) -> TokenRow:
    """Let a token in no more; only one of ``account``, where that is said.

    Raises:
        AccessError: If there is no such token.
    """
    with writing(centre) as session:
        found = session.get(ApiToken, number)
        if found is None or (account is not None and found.account_id != account.id):
            raise AccessError(
                N_("API token %(number)s: there is none of this number. See `popmi server account tokens`."),
                number=number,
            )
        found.revoked = True
        holder = session.get_one(Account, found.account_id)
        remark(session, "token.revoked", by, account=holder.name, token=found.name, number=number)
        session.flush()
        return _told(found, holder)


def _told(found: ApiToken, account: Account) -> TokenRow:
    holder = row(account)
    return TokenRow(
        id=found.id,
        account=holder,
        name=found.name,
        digest=found.digest,
        role=at_most(clean_role(found.role), holder.role),
        created=found.created,
        expires=found.expires,
        used=found.used,
        revoked=found.revoked,
    )
