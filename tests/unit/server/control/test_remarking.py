"""What was done to accounts reaches the audit log by the keeper, and stands among no orders."""

from __future__ import annotations

import pytest
import signing_in

from popmi_core.deployment import AuditLog
from popmi_core.errors import AuditError
from server.centre import accounts, open_centre
from server.centre.opening import writing
from server.centre.orders import count_waiting, find, history, take
from server.centre.people import Doer
from server.centre.remarks import remark, unwritten
from server.control.carrying import Carrier
from server.control.home import ServerHome
from server.control.remarking import write_remarks

BY = Doer("anna", "page")


@pytest.fixture
def centre(database, monkeypatch):
    signing_in.make_cheap(monkeypatch)
    engine = open_centre(database)
    yield engine
    engine.dispose()


def newest(home, number):
    return list(AuditLog(home.audit_file).entries())[-number:]


def test_a_remark_becomes_a_line_with_who_did_it_and_when(invited, centre):
    accounts.add(centre, "chen", "operator", signing_in.PASSWORD, BY)
    when = unwritten(centre)[0].time
    assert write_remarks(invited, centre) == 1
    line = newest(invited, 1)[0]
    assert line.event == "account.added"
    assert line.details == {"who": "anna", "via": "page", "at": round(when), "account": "chen", "role": "operator"}
    assert unwritten(centre) == ()
    assert write_remarks(invited, centre) == 0


def test_the_keepers_look_writes_them_in_their_order(invited, control, centre):
    for name in ("a1", "b1", "c1"):
        accounts.add(centre, name, "viewer", None, BY)
    Carrier(invited, control, centre).look()
    assert [line.details["account"] for line in newest(invited, 3)] == ["a1", "b1", "c1"]


def test_a_remark_is_no_order(centre):
    accounts.add(centre, "chen", "operator", None, BY)
    number = unwritten(centre)[0].id
    assert count_waiting(centre) == 0
    assert take(centre) is None
    assert history(centre) == ()
    assert find(centre, number) is None


def test_a_log_that_cannot_be_written_leaves_them_waiting(invited, centre, monkeypatch, caplog):
    def full(*_, **__):
        raise AuditError("audit log x: No space left on device.")

    accounts.add(centre, "chen", "operator", None, BY)
    with monkeypatch.context() as patched:
        patched.setattr(ServerHome, "note", full)
        assert write_remarks(invited, centre) == 0
    assert "what was done to accounts waits for the audit log" in caplog.text
    assert len(unwritten(centre)) == 1
    assert write_remarks(invited, centre) == 1


def test_no_detail_poses_as_who_did_it(invited, centre):
    with writing(centre) as session:
        remark(session, "account.guessed", Doer("stranger", "page"), who="anna", via="terminal", order=7, tried="x")
    write_remarks(invited, centre)
    details = newest(invited, 1)[0].details
    assert (details["who"], details["via"], details["tried"], "order" in details) == ("stranger", "page", "x", False)
