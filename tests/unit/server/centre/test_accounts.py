"""Accounts: made, changed, taken away; nobody is locked out for good, and every change is told."""

from __future__ import annotations

import threading

import pytest
from argon2 import PasswordHasher
from sqlalchemy import select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from popmi_core.errors import AccessError
from server.centre import Account, accounts, passwords, sessions, tokens
from server.centre.people import Doer
from server.centre.remarks import unwritten
from server.centre.sessions import SessionLimits

GOOD, BETTER = "correct horse battery", "seven quiet green hills"
BY = Doer("root", "terminal")
pytestmark = pytest.mark.usefixtures("cheap")


def events(centre: Engine) -> list[str]:
    return [item.event for item in unwritten(centre)]


def test_an_account_signs_in_with_its_password_and_no_other(centre: Engine) -> None:
    accounts.add(centre, "Lin.Mei", "operator", GOOD, BY)
    found = accounts.sign_in(centre, " LIN.mei ", GOOD)
    assert found is not None
    assert (found.name, found.role, found.disabled, found.invited) == ("lin.mei", "operator", False, False)
    assert accounts.sign_in(centre, "lin.mei", BETTER) is None
    assert accounts.sign_in(centre, "nobody", GOOD) is None
    with Session(centre) as session:
        kept = session.scalars(select(Account.password)).one()
    assert GOOD not in kept
    assert kept.startswith("$argon2id$")


def test_an_account_without_a_password_lets_nobody_in(centre: Engine) -> None:
    assert accounts.add(centre, "chen", "viewer", None, BY).invited
    for password in ("", "a password that nobody has", GOOD):
        assert accounts.sign_in(centre, "chen", password) is None


def test_a_password_kept_with_older_parameters_is_kept_anew(centre: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts.add(centre, "lin", "admin", GOOD, BY)
    monkeypatch.setattr(passwords, "_HASHER", PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    assert accounts.sign_in(centre, "lin", GOOD) is not None
    with Session(centre) as session:
        assert "m=16,t=2" in session.scalars(select(Account.password)).one()
    assert accounts.sign_in(centre, "lin", GOOD) is not None


def test_two_accounts_of_one_name_are_refused(centre: Engine) -> None:
    accounts.add(centre, "lin", "viewer", GOOD, BY)
    with pytest.raises(AccessError, match=r"account lin: there is one of this name"):
        accounts.add(centre, "LIN", "viewer", GOOD, BY)
    assert events(centre) == ["account.added"]


@pytest.mark.parametrize("name", ["", " ", "a b", "<script>", "lin/../x", "é", "x" * 65, ".lin", "a\nb", "林"])
def test_what_is_no_name_is_refused(centre: Engine, name: str) -> None:
    with pytest.raises(AccessError, match=r"expected letters a to z, digits"):
        accounts.add(centre, name, "viewer", GOOD, BY)


def test_a_role_that_is_none_is_refused(centre: Engine) -> None:
    with pytest.raises(AccessError, match=r"role 'root': expected one of viewer, operator, admin"):
        accounts.add(centre, "lin", "root", GOOD, BY)


@pytest.mark.parametrize("act", ["set_password", "set_role", "disable", "enable", "remove"])
def test_an_account_that_is_not_there_is_said_to_be_missing(centre: Engine, act: str) -> None:
    more = {"set_password": (GOOD,), "set_role": ("viewer",)}.get(act, ())
    with pytest.raises(AccessError, match=r"account 'nobody': there is none of this name"):
        getattr(accounts, act)(centre, "nobody", *more, BY)


@pytest.mark.parametrize("act", ["disable", "remove", "set_role"])
def test_the_last_admin_stays(centre: Engine, act: str) -> None:
    accounts.add(centre, "lin", "admin", GOOD, BY)
    accounts.add(centre, "chen", "admin", None, BY)  # has no password yet, so cannot let others in
    before = events(centre)
    more = ("viewer",) if act == "set_role" else ()
    with pytest.raises(AccessError, match=r"this is the last admin who can sign in"):
        getattr(accounts, act)(centre, "lin", *more, BY)
    assert accounts.find(centre, "lin").role == "admin"
    assert not accounts.find(centre, "lin").disabled
    assert events(centre) == before
    accounts.set_password(centre, "chen", BETTER, BY)
    accounts.remove(centre, "lin", BY)
    assert [item.name for item in accounts.listed(centre)] == ["chen"]


def test_two_admins_who_demote_each_other_at_once_do_not_both_succeed(centre: Engine) -> None:
    for name in ("lin", "chen"):
        accounts.add(centre, name, "admin", GOOD, BY)
    start, refused = threading.Barrier(2), []

    def demote(name: str) -> None:
        start.wait()
        try:
            accounts.set_role(centre, name, "viewer", BY)
        except AccessError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=demote, args=(name,)) for name in ("lin", "chen")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1
    assert sorted(item.role for item in accounts.listed(centre)) == ["admin", "viewer"]


def test_disabling_ends_sessions_and_has_tokens_rest_until_the_account_is_enabled(centre: Engine) -> None:
    accounts.add(centre, "root", "admin", GOOD, BY)
    lin = accounts.add(centre, "lin", "viewer", GOOD, BY)
    opened = sessions.begin(centre, lin, address="", agent="", limits=SessionLimits())
    _, token = tokens.make(centre, lin, "ci", "viewer", 1, BY)
    assert accounts.disable(centre, "lin", BY) == (opened.digest,)
    assert accounts.sign_in(centre, "lin", GOOD) is None
    assert sessions.known(centre, opened.secret, SessionLimits(), acts=True) is None
    assert tokens.known(centre, token) is None
    accounts.enable(centre, "lin", BY)
    assert accounts.sign_in(centre, "lin", GOOD) is not None
    assert sessions.known(centre, opened.secret, SessionLimits(), acts=True) is None
    assert tokens.known(centre, token) is not None


def test_removing_takes_sessions_and_tokens_along(centre: Engine) -> None:
    accounts.add(centre, "root", "admin", GOOD, BY)
    lin = accounts.add(centre, "lin", "viewer", GOOD, BY)
    opened = sessions.begin(centre, lin, address="", agent="", limits=SessionLimits())
    _, token = tokens.make(centre, lin, "ci", "viewer", 1, BY)
    assert accounts.remove(centre, "lin", BY) == (opened.digest,)
    assert tokens.known(centre, token) is None
    assert tokens.listed(centre) == ()
    assert accounts.count(centre) == 1


def test_a_new_password_ends_every_session_but_the_one_at_work(centre: Engine) -> None:
    lin = accounts.add(centre, "lin", "admin", GOOD, BY)
    kept, gone = (sessions.begin(centre, lin, address="", agent="", limits=SessionLimits()) for _ in range(2))
    assert accounts.set_password(centre, "lin", BETTER, BY, but=kept.digest) == (gone.digest,)
    assert sessions.known(centre, kept.secret, SessionLimits(), acts=True) is not None
    assert sessions.known(centre, gone.secret, SessionLimits(), acts=True) is None
    assert accounts.sign_in(centre, "lin", GOOD) is None
    assert accounts.sign_in(centre, "lin", BETTER) is not None


def test_a_weak_new_password_changes_nothing(centre: Engine) -> None:
    accounts.add(centre, "lin", "admin", GOOD, BY)
    with pytest.raises(AccessError, match="expected 12 to 1024"):
        accounts.set_password(centre, "lin", "short", BY)
    assert accounts.sign_in(centre, "lin", GOOD) is not None


def test_every_change_waits_for_the_audit_log_and_holds_no_password(centre: Engine) -> None:
    accounts.add(centre, "root", "admin", GOOD, BY)
    accounts.add(centre, "lin", "viewer", GOOD, BY)
    accounts.set_role(centre, "lin", "operator", BY)
    accounts.set_password(centre, "lin", BETTER, BY)
    accounts.disable(centre, "lin", BY)
    accounts.enable(centre, "lin", BY)
    accounts.remove(centre, "lin", BY)
    told = unwritten(centre)
    assert [item.event.removeprefix("account.") for item in told] == [
        "added", "added", "role", "password", "disabled", "enabled", "removed",
    ]  # fmt: skip
    assert {item.by for item in told} == {BY}
    assert told[2].details == {"account": "lin", "role": "operator"}
    assert not any(word in str(told) for word in (GOOD, BETTER, "argon2"))
