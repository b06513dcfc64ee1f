"""API tokens: random, kept as a hash, never more than their account, over by themselves."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import select, update
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from popmi_core.errors import AccessError
from server.centre import ApiToken, accounts, sessions, tokens
from server.centre.opening import writing
from server.centre.people import AccountRow, Doer
from server.centre.remarks import unwritten
from server.centre.sessions import SessionLimits

GOOD = "correct horse battery"
BY = Doer("root", "terminal")
pytestmark = pytest.mark.usefixtures("cheap")


@pytest.fixture
def lin(centre: Engine) -> AccountRow:
    accounts.add(centre, "root", "admin", GOOD, BY)
    return accounts.add(centre, "lin", "operator", GOOD, BY)


def test_a_token_is_known_by_itself_and_kept_as_a_hash(centre: Engine, lin: AccountRow) -> None:
    told, secret = tokens.make(centre, lin, "ci", "viewer", 30, BY)
    assert secret.startswith("popmi_")
    found = tokens.known(centre, secret)
    assert found is not None
    assert (found.account.name, found.role, found.name) == ("lin", "viewer", "ci")
    assert found.expires - found.created == 30 * 86_400
    with Session(centre) as session:
        assert secret not in str(vars(session.scalars(select(ApiToken)).one()))
    assert secret not in str(unwritten(centre))
    for other in ("", "popmi_", secret[:-1], secret.removeprefix("popmi_"), told.digest):
        assert tokens.known(centre, other) is None


def test_its_last_use_is_written_down(centre: Engine, lin: AccountRow) -> None:
    _, secret = tokens.make(centre, lin, "ci", "viewer", 30, BY)
    assert tokens.listed(centre, lin)[0].used is None
    tokens.known(centre, secret)
    assert tokens.listed(centre, lin)[0].used == pytest.approx(time.time(), abs=5)


def test_a_token_ends_by_itself(centre: Engine, lin: AccountRow) -> None:
    _, secret = tokens.make(centre, lin, "ci", "viewer", 1, BY)
    with writing(centre) as session:
        session.execute(update(ApiToken).values(expires=time.time() - 1))
    assert tokens.known(centre, secret) is None


def test_a_revoked_token_is_known_no_more(centre: Engine, lin: AccountRow) -> None:
    told, secret = tokens.make(centre, lin, "ci", "viewer", 1, BY)
    assert tokens.revoke(centre, told.id, BY).revoked
    assert tokens.known(centre, secret) is None


def test_nobody_revokes_another_accounts_token(centre: Engine, lin: AccountRow) -> None:
    told, secret = tokens.make(centre, lin, "ci", "viewer", 1, BY)
    with pytest.raises(AccessError, match=rf"API token {told.id}: there is none of this number"):
        tokens.revoke(centre, told.id, BY, account=accounts.find(centre, "root"))
    with pytest.raises(AccessError, match="API token 999: there is none"):
        tokens.revoke(centre, 999, BY)
    assert tokens.known(centre, secret) is not None


def test_a_token_may_no_more_than_its_account(centre: Engine, lin: AccountRow) -> None:
    with pytest.raises(AccessError, match="role admin is more than account lin may do, expected at most operator"):
        tokens.make(centre, lin, "ci", "admin", 1, BY)
    _, secret = tokens.make(centre, lin, "ci", "operator", 1, BY)
    accounts.set_role(centre, "lin", "viewer", BY)
    found = tokens.known(centre, secret)
    assert found is not None
    assert found.role == "viewer"


@pytest.mark.parametrize("days", [0, -1, 366, 10**9])
def test_a_token_lasts_a_year_at_most(centre: Engine, lin: AccountRow, days: int) -> None:
    with pytest.raises(AccessError, match=rf"{days} days, expected 1 to 365"):
        tokens.make(centre, lin, "ci", "viewer", days, BY)


@pytest.mark.parametrize("name", ["", "  ", "\n\x00"])
def test_a_token_needs_a_name(centre: Engine, lin: AccountRow, name: str) -> None:
    with pytest.raises(AccessError, match="an API token needs a name"):
        tokens.make(centre, lin, name, "viewer", 1, BY)


def test_an_account_has_so_many_tokens(centre: Engine, lin: AccountRow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MOST_TOKENS", 2)
    first, _ = tokens.make(centre, lin, "a", "viewer", 1, BY)
    tokens.make(centre, lin, "b", "viewer", 1, BY)
    with pytest.raises(AccessError, match="account lin has 2 API tokens, the most there may be"):
        tokens.make(centre, lin, "c", "viewer", 1, BY)
    tokens.revoke(centre, first.id, BY)
    tokens.make(centre, lin, "c", "viewer", 1, BY)


def test_a_token_of_an_account_that_is_invited_only_lets_nobody_in(centre: Engine, lin: AccountRow) -> None:
    chen = accounts.add(centre, "chen", "viewer", None, BY)
    told, secret = tokens.make(centre, chen, "ci", "viewer", 1, BY)
    assert tokens.known(centre, secret) is None
    assert sessions.alive(centre, [told.digest], SessionLimits()) == frozenset()
    accounts.set_password(centre, "chen", GOOD, BY)
    assert tokens.known(centre, secret) is not None
