"""Sessions: known by a secret nobody keeps, over after a while, ended everywhere at once."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import select, update
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from server.centre import LoginSession, accounts, open_centre, sessions, tokens
from server.centre.opening import writing
from server.centre.people import AccountRow, Doer
from server.centre.sessions import Opened, SessionLimits

GOOD = "correct horse battery"
BY = Doer("root", "terminal")
LIMITS = SessionLimits(idle_seconds=3600, whole_seconds=7200)
pytestmark = pytest.mark.usefixtures("cheap")


@pytest.fixture
def lin(centre: Engine) -> AccountRow:
    return accounts.add(centre, "lin", "admin", GOOD, BY)


def begun(centre: Engine, account: AccountRow) -> Opened:
    return sessions.begin(centre, account, address="192.0.2.7", agent="Browser 1", limits=LIMITS)


def aged(centre: Engine, opened: Opened, **columns: float) -> None:
    with writing(centre) as session:
        session.execute(update(LoginSession).where(LoginSession.digest == opened.digest).values(**columns))


def test_a_session_is_known_by_its_secret_alone(centre: Engine, lin: AccountRow) -> None:
    opened = begun(centre, lin)
    found = sessions.known(centre, opened.secret, LIMITS, acts=True)
    assert found is not None
    assert (found.account.name, found.csrf, found.address, found.agent) == (
        "lin",
        opened.csrf,
        "192.0.2.7",
        "Browser 1",
    )
    for other in ("", opened.digest, opened.secret + "x", opened.csrf, "\x00", "😀"):
        assert sessions.known(centre, other, LIMITS, acts=True) is None


def test_the_table_does_not_hold_the_secret(centre: Engine, lin: AccountRow) -> None:
    opened = begun(centre, lin)
    with Session(centre) as session:
        row = session.scalars(select(LoginSession)).one()
        assert opened.secret not in {str(value) for value in vars(row).values()}
    # 256 bits as base64.
    assert len(opened.secret) == 43
    assert begun(centre, lin).secret != opened.secret


def test_a_session_is_over_after_its_whole_time(centre: Engine, lin: AccountRow) -> None:
    opened = begun(centre, lin)
    aged(centre, opened, expires=time.time() - 1)
    assert sessions.known(centre, opened.secret, LIMITS, acts=True) is None
    assert sessions.alive(centre, [opened.digest], LIMITS) == frozenset()


def test_a_session_is_over_after_a_while_without_an_act(centre: Engine, lin: AccountRow) -> None:
    opened = begun(centre, lin)
    aged(centre, opened, seen=time.time() - 3599)
    assert sessions.known(centre, opened.secret, LIMITS, acts=False) is not None
    aged(centre, opened, seen=time.time() - 3601)
    assert sessions.known(centre, opened.secret, LIMITS, acts=True) is None


def test_only_a_persons_act_keeps_a_session(centre: Engine, lin: AccountRow) -> None:
    opened, long_ago = begun(centre, lin), time.time() - 3000
    aged(centre, opened, seen=long_ago)
    sessions.known(centre, opened.secret, LIMITS, acts=False)
    assert sessions.of_account(centre, lin, LIMITS)[0].seen == pytest.approx(long_ago)
    sessions.known(centre, opened.secret, LIMITS, acts=True)
    assert sessions.of_account(centre, lin, LIMITS)[0].seen == pytest.approx(time.time(), abs=5)


def test_an_ended_session_is_over_for_every_process(database: str, centre: Engine, lin: AccountRow) -> None:
    opened = begun(centre, lin)
    other = open_centre(database)
    try:
        assert sessions.known(other, opened.secret, LIMITS, acts=True) is not None
        sessions.end(centre, opened.digest, lin, BY)
        assert sessions.known(other, opened.secret, LIMITS, acts=True) is None
        assert sessions.alive(other, [opened.digest], LIMITS) == frozenset()
    finally:
        other.dispose()


def test_a_session_that_began_while_its_account_was_disabled_is_none(centre: Engine, lin: AccountRow) -> None:
    accounts.add(centre, "root", "admin", GOOD, BY)
    accounts.disable(centre, "lin", BY)
    opened = begun(centre, lin)  # the password was right a moment before
    assert sessions.known(centre, opened.secret, LIMITS, acts=True) is None
    assert sessions.alive(centre, [opened.digest], LIMITS) == frozenset()


def test_nobody_ends_another_accounts_session(centre: Engine, lin: AccountRow) -> None:
    chen = accounts.add(centre, "chen", "viewer", GOOD, BY)
    opened = begun(centre, lin)
    sessions.end(centre, opened.digest, chen, BY)
    assert sessions.known(centre, opened.secret, LIMITS, acts=True) is not None


def test_all_sessions_of_an_account_end_and_no_others(centre: Engine, lin: AccountRow) -> None:
    chen = accounts.add(centre, "chen", "viewer", GOOD, BY)
    mine, his = {begun(centre, lin).digest for _ in range(3)}, begun(centre, chen)
    assert set(sessions.end_all(centre, lin, BY)) == mine
    assert sessions.alive(centre, [*mine, his.digest], LIMITS) == {his.digest}


def test_who_is_alive_is_asked_of_tokens_as_well(centre: Engine, lin: AccountRow) -> None:
    opened = begun(centre, lin)
    token, _ = tokens.make(centre, lin, "ci", "viewer", 1, BY)
    assert sessions.alive(centre, [opened.digest, token.digest, "0" * 64], LIMITS) == {opened.digest, token.digest}
    tokens.revoke(centre, token.id, BY)
    assert sessions.alive(centre, [opened.digest, token.digest], LIMITS) == {opened.digest}
    assert sessions.alive(centre, [], LIMITS) == frozenset()


def test_a_new_session_clears_away_those_that_are_over(centre: Engine, lin: AccountRow) -> None:
    aged(centre, begun(centre, lin), expires=time.time() - 1)
    aged(centre, begun(centre, lin), seen=time.time() - 3601)
    newest = begun(centre, lin)
    with Session(centre) as session:
        assert session.scalars(select(LoginSession.digest)).all() == [newest.digest]


def test_what_a_browser_calls_itself_is_cut_and_steers_nothing(centre: Engine, lin: AccountRow) -> None:
    sessions.begin(centre, lin, address="a" * 99, agent="\x1b[2J\x00" + "b" * 999, limits=LIMITS)
    found = sessions.of_account(centre, lin, LIMITS)[0]
    assert found.address == "a" * 64
    assert found.agent == ("[2J" + "b" * 999)[:200]
