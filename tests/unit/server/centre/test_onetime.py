"""Links that work once."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import select, update
from sqlalchemy.engine import Engine

from popmi_core.errors import AccessError
from server.centre import accounts, onetime, sessions
from server.centre.opening import writing
from server.centre.people import Doer
from server.centre.remarks import unwritten
from server.centre.schema import Account, Secret
from server.centre.sessions import SessionLimits

GOOD, BETTER = "correct horse battery", "seven quiet green hills"
BY = Doer("root", "terminal")
SPENT = "this link was used, is too old, or was replaced"
pytestmark = pytest.mark.usefixtures("cheap")


def test_the_first_admin_is_made_once(centre: Engine) -> None:
    secret = onetime.first_admin(centre)
    assert secret is not None
    assert onetime.purpose(centre, secret).account is None
    made = onetime.make_first_admin(centre, secret, "Lin", GOOD)
    assert (made.name, made.role) == ("lin", "admin")
    assert accounts.sign_in(centre, "lin", GOOD) is not None
    with pytest.raises(AccessError, match=SPENT):
        onetime.make_first_admin(centre, secret, "chen", GOOD)
    assert onetime.first_admin(centre) is None


def test_a_new_link_replaces_the_one_before(centre: Engine) -> None:
    old, new = onetime.first_admin(centre), onetime.first_admin(centre)
    assert old is not None
    assert new is not None
    with pytest.raises(AccessError, match=SPENT):
        onetime.purpose(centre, old)
    assert onetime.purpose(centre, new).account is None


def test_a_link_is_good_for_an_hour(centre: Engine) -> None:
    secret = onetime.first_admin(centre)
    assert secret is not None
    with writing(centre) as session:
        session.execute(update(Secret).values(expires=time.time() - 1))
    with pytest.raises(AccessError, match=SPENT):
        onetime.make_first_admin(centre, secret, "lin", GOOD)
    assert accounts.count(centre) == 0


def test_no_first_admin_is_made_beside_an_account(centre: Engine) -> None:
    secret = onetime.first_admin(centre)
    assert secret is not None
    accounts.add(centre, "chen", "admin", GOOD, BY)
    with pytest.raises(AccessError, match=SPENT):
        onetime.make_first_admin(centre, secret, "lin", GOOD)
    assert [item.name for item in accounts.listed(centre)] == ["chen"]


@pytest.mark.parametrize(("name", "password"), [("lin", "short"), ("no name", GOOD)])
def test_a_refused_name_or_password_leaves_the_link_good(centre: Engine, name: str, password: str) -> None:
    secret = onetime.first_admin(centre)
    assert secret is not None
    with pytest.raises(AccessError, match="expected"):
        onetime.make_first_admin(centre, secret, name, password)
    onetime.make_first_admin(centre, secret, "lin", GOOD)


def test_of_two_who_use_the_link_at_once_one_becomes_admin(centre: Engine) -> None:
    secret = onetime.first_admin(centre)
    assert secret is not None
    start, refused = threading.Barrier(4), []

    def use(name: str) -> None:
        start.wait()
        try:
            onetime.make_first_admin(centre, secret, name, GOOD)
        except AccessError:
            refused.append(name)

    threads = [threading.Thread(target=use, args=(name,)) for name in ("anna", "bert", "carl", "dora")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    assert accounts.count(centre) == 1


def test_an_invited_person_chooses_a_password_once(centre: Engine) -> None:
    accounts.add(centre, "root", "admin", GOOD, BY)
    chen = accounts.add(centre, "chen", "viewer", None, BY)
    secret = onetime.invite(centre, chen, BY)
    assert onetime.purpose(centre, secret).account == "chen"
    made, ended = onetime.choose_password(centre, secret, BETTER)
    assert (made.name, made.invited, ended) == ("chen", False, ())
    assert accounts.sign_in(centre, "chen", BETTER) is not None
    with pytest.raises(AccessError, match=SPENT):
        onetime.choose_password(centre, secret, GOOD)


def test_a_link_for_a_new_password_ends_the_sessions_of_the_old_one(centre: Engine) -> None:
    lin = accounts.add(centre, "lin", "admin", GOOD, BY)
    opened = sessions.begin(centre, lin, address="", agent="", limits=SessionLimits())
    _, ended = onetime.choose_password(centre, onetime.invite(centre, lin, BY), BETTER)
    assert ended == (opened.digest,)
    assert accounts.sign_in(centre, "lin", GOOD) is None


@pytest.mark.parametrize("what", ["removed", "disabled"])
def test_a_link_of_an_account_that_may_not_sign_in_is_good_for_nothing(centre: Engine, what: str) -> None:
    accounts.add(centre, "root", "admin", GOOD, BY)
    secret = onetime.invite(centre, accounts.add(centre, "chen", "viewer", None, BY), BY)
    (accounts.remove if what == "removed" else accounts.disable)(centre, "chen", BY)
    for act in (lambda: onetime.purpose(centre, secret), lambda: onetime.choose_password(centre, secret, BETTER)):
        with pytest.raises(AccessError, match=SPENT):
            act()


def test_an_old_link_is_no_way_into_a_new_account_of_the_same_number(centre: Engine) -> None:
    accounts.add(centre, "root", "admin", GOOD, BY)
    old = accounts.add(centre, "old", "viewer", None, BY)
    secret = onetime.invite(centre, old, BY)
    with writing(centre) as session:
        kept = session.scalars(select(Secret)).one()
        told = {"name": kept.name, "digest": kept.digest, "expires": kept.expires}
    accounts.remove(centre, "old", BY)
    with pytest.raises(AccessError, match="it was removed in the meantime"):
        onetime.invite(centre, old, BY)
    accounts.add(centre, "boss", "admin", None, BY)
    with writing(centre) as session:
        assert session.scalars(select(Secret)).all() == []
        # As SQLite numbers accounts; and a link that was left behind all the same.
        session.execute(update(Account).where(Account.name == "boss").values(id=old.id))
        session.add(Secret(**told))
    for act in (lambda: onetime.purpose(centre, secret), lambda: onetime.choose_password(centre, secret, BETTER)):
        with pytest.raises(AccessError, match=SPENT):
            act()
    assert accounts.find(centre, "boss").invited


def test_a_link_is_spent_once_the_password_is_another(centre: Engine) -> None:
    lin = accounts.add(centre, "lin", "admin", GOOD, BY)
    secret = onetime.invite(centre, lin, BY)
    accounts.set_password(centre, "lin", BETTER, BY)
    with pytest.raises(AccessError, match=SPENT):
        onetime.purpose(centre, secret)


def test_a_link_stays_spent_when_a_disabled_account_is_let_in_again(centre: Engine) -> None:
    accounts.add(centre, "root", "admin", GOOD, BY)
    secret = onetime.invite(centre, accounts.add(centre, "chen", "viewer", None, BY), BY)
    accounts.disable(centre, "chen", BY)
    accounts.enable(centre, "chen", BY)
    with pytest.raises(AccessError, match=SPENT):
        onetime.purpose(centre, secret)


def test_one_kind_of_link_is_not_the_other(centre: Engine) -> None:
    first = onetime.first_admin(centre)
    assert first is not None
    with pytest.raises(AccessError, match=SPENT):
        onetime.choose_password(centre, first, GOOD)
    lin = accounts.add(centre, "lin", "admin", GOOD, BY)
    with pytest.raises(AccessError, match=SPENT):
        onetime.make_first_admin(centre, onetime.invite(centre, lin, BY), "eve", GOOD)
    assert [item.name for item in accounts.listed(centre)] == ["lin"]


def test_a_link_for_a_password_makes_no_admin_even_where_no_account_is_left(centre: Engine) -> None:
    secret = onetime.invite(centre, accounts.add(centre, "chen", "viewer", None, BY), BY)
    with writing(centre) as session:
        session.connection().exec_driver_sql("DELETE FROM accounts")
    with pytest.raises(AccessError, match=SPENT):
        onetime.make_first_admin(centre, secret, "eve", GOOD)
    assert accounts.count(centre) == 0


def test_no_link_reaches_the_audit_log(centre: Engine) -> None:
    lin = accounts.add(centre, "lin", "admin", GOOD, BY)
    secret = onetime.invite(centre, lin, BY)
    assert "account.invited" in [item.event for item in unwritten(centre)]
    assert secret not in str(unwritten(centre))
