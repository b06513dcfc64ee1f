"""The keeper carries out what persons order on the pages, each order once (server/control/carrying.py)."""

from __future__ import annotations

import base64
import io
import zipfile

import pytest

from popmi_core.config import RunConfig
from popmi_core.errors import SetupError
from server.centre import accounts, open_centre
from server.centre.board import kit_key, read_board
from server.centre.orders import find, place, take
from server.centre.people import Doer
from server.control import carrying
from server.control.carrying import EXPIRES, Carrier
from server.control.home import Asker
from server.control.kits import post_kit
from server.control.leaving import exclude
from server.control.operate import start
from server.control.pins import Pin, read_pins
from server.control.plans import make_plan, read_plan


@pytest.fixture
def centre(database):
    engine = open_centre(database)
    yield engine
    engine.dispose()


BY = Doer("root", "terminal")


class NoExports:
    """Stands in for exports: remembers what was begun and ends what it is told to."""

    def __init__(self):
        self.begun, self.over = [], []

    @property
    def numbers(self):
        return [item[0] for item in self.begun]

    def begin(self, number, run, server_round, *, by):
        self.begun.append((number, run, server_round, by.name))

    def ended(self):
        self.begun = [item for item in self.begun if item[0] not in [one[0] for one in self.over]]
        return self.over

    def close(self):
        self.begun = []


@pytest.fixture
def exports():
    return NoExports()


@pytest.fixture
def carrier(invited, control, centre, clock, exports):
    accounts.add(centre, "anna", "operator", None, BY)
    accounts.add(centre, "root", "admin", "correct horse battery", BY)
    return Carrier(invited, control, centre, exports=exports, clock=clock)


@pytest.fixture
def ordered(carrier, centre, clock):
    """Return a function that gives an order, has it carried out, and returns it as it stands then.

    ``meanwhile`` is done with its number before; ``taken``: a keeper before took it up.
    """

    def order(kind, *, taken=False, meanwhile=None, **arguments):
        number = place(centre, kind, arguments, who="anna", via="page", clock=clock)
        if taken:
            assert take(centre, clock=clock)[0].id == number
        if meanwhile is not None:
            meanwhile(number)
        carrier.look()
        return find(centre, number)

    return order


def test_a_run_is_begun_stopped_and_gone_on_with_and_the_log_says_who_asked(ordered, invited, audited):
    row = ordered("start", name="first", config={"strategy": "fedavg", "rounds": 2})
    assert (row.state, row.answer) == ("done", "run first is wanted; it starts within seconds")
    assert read_plan(invited, "first").config.strategy == "fedavg"
    told = audited("run.wanted")
    assert (told["who"], told["via"], told["order"]) == ("anna", "page", row.id)
    assert ordered("stop", run="first").state == "done"
    assert invited.wanted().state == "stopped"
    assert ordered("resume", run="first").answer == "run first goes on after its last round"
    assert (invited.wanted().run, invited.wanted().state) == ("first", "going")
    assert audited()[-2:] == ["run.stop", "run.resume"]


def test_a_refusal_is_in_the_log_unless_there_is_no_room(ordered, invited, audited, caplog):
    row = ordered("stop", run="first")
    told = audited("order.refused")
    assert (told["who"], told["order"], told["kind"], told["about"]) == ("anna", row.id, "stop", "first")
    assert "no run was ever started here" in told["reason"]
    invited.audit_file.rename(invited.audit_file.with_name("whole.jsonl"))
    invited.audit_file.mkdir()
    assert ordered("stop", run="first").state == "refused"
    assert "its refusal is not in the audit log" in caplog.text


def test_what_cannot_be_done_is_refused_with_the_reason(ordered):
    assert "no run was ever started here" in ordered("stop", run="first").answer
    assert "there is no run other" in ordered("resume", run="other").answer
    row = ordered("start", name="first", config={"min_sites": 9})
    assert (row.state, "at least min_sites = 9" in row.answer) == ("refused", True)
    assert "is not going; the run that is wanted is" in stopped_another(ordered)


def stopped_another(ordered):
    ordered("start", name="first", config={})
    return ordered("stop", run="second").answer


def test_a_site_is_excluded_included_and_revoked(ordered, invited, audited):
    assert ordered("exclude", site="charite", reason="moves house").state == "done"
    assert invited.sites()["charite"].excluded.by == "anna"
    assert ordered("include", site="charite").state == "done"
    assert invited.sites()["charite"].excluded is None
    assert ordered("include", site="charite").state == "refused"
    row = ordered("revoke", site="charite", reason="stolen")
    assert (row.state, row.answer) == ("done", "charite is cut off, and its key is never let in again")
    assert (audited("site.revoked")["who"], audited("site.revoked")["reason"]) == ("anna", "stolen")


def test_a_revocation_counts_although_the_superlink_is_away(ordered, control, invited):
    control.away = True
    row = ordered("revoke", site="charite", reason="stolen")
    assert (row.state, "no round asks it any more" in row.answer) == ("done", True)
    assert invited.sites()["charite"].state == "revoked"
    assert ordered("revoke", site="nowhere", reason="x").state == "refused"


def test_a_registry_that_cannot_be_read_refuses_a_revocation(ordered, invited):
    invited.sites_file.write_text("{")
    assert ordered("revoke", site="charite", reason="stolen").state == "refused"


def test_an_invitation_puts_the_kit_where_the_pages_find_it(ordered, centre, invited):
    assert ordered("invite", site="basel").state == "done"
    kit = read_board(centre, kit_key("basel")).value
    assert kit["name"] == "basel.zip"
    assert "kit.json" in zipfile.ZipFile(io.BytesIO(base64.b64decode(kit["base64"]))).namelist()
    assert invited.sites()["basel"].state == "invited"


def test_a_kit_that_is_gone_is_told(centre, tmp_path):
    with pytest.raises(SetupError, match=r"kit .*basel.zip cannot be read: No such file"):
        post_kit(centre, "basel", tmp_path / "basel.zip")


def test_a_key_is_let_in_whose_fingerprint_s_last_letters_were_read_out(ordered, invited, enrolment_of, audited):
    file = enrolment_of("charite")
    right = carrying.parse_enrolment(file.read_text(), source="f").fingerprint[-8:]
    wrong = ordered("confirm", enrolment=file.read_text(), read_out="AAAAAAAA")
    assert (wrong.state, "is not the one the site read out" in wrong.answer) == ("refused", True)
    assert invited.sites()["charite"].state == "invited"
    assert audited("site.refused")["who"] == "anna"
    row = ordered("confirm", enrolment=file.read_text(), read_out=right)
    assert (row.state, "charite is enrolled as node 1001" in row.answer) == ("done", True)
    assert "typed its last letters" in audited("site.confirmed")["how"]
    assert "the file is no enrolment" in ordered("confirm", enrolment="{}", read_out=right).answer


def test_a_model_is_pinned_and_let_go(ordered, invited, monkeypatch):
    made = Pin(round=2, sha256="a" * 64, by="anna", time=1.0)
    monkeypatch.setattr(carrying, "pin", lambda home, run, number, **told: made)
    row = ordered("pin", run="first", round=2, note="best")
    assert (row.state, row.answer) == ("done", f"run first, round 2 is pinned; sha256 {'a' * 64}")
    assert "no model of run first is pinned" in ordered("unpin", run="first").answer


def test_an_export_is_answered_when_it_has_ended_and_holds_nobody_up(ordered, carrier, exports, centre):
    row = ordered("onnx", run="first", round=2)
    assert row.state == "waiting"
    assert exports.begun == [(row.id, "first", 2, "anna")]
    assert ordered("exclude", site="charite", reason="x").state == "done"
    exports.over = [(row.id, "run first, round 2: the ONNX file is made", True)]
    carrier.look()
    assert find(centre, row.id).state == "done"
    carrier.close()
    assert exports.begun == []


def test_a_run_whose_keeper_was_ended_before_its_answer_is_begun_once(ordered, invited, audited):
    def begin(number):
        start(invited, RunConfig(), "first", by=Asker("anna", "page", number))

    assert ordered("start", taken=True, meanwhile=begin, name="first", config={}).state == "done"
    assert audited().count("run.wanted") == 1
    # A keeper that had written the plan and was ended before the run was wanted.
    invited.want("first", "stopped")
    make_plan(invited, RunConfig(), "second")
    assert ordered("start", taken=True, name="second", config={}).state == "done"
    assert (invited.wanted().run, invited.wanted().state) == ("second", "going")
    assert ordered("start", taken=False, name="second", config={}).state == "refused"


def test_an_order_that_was_taken_does_not_go_on_with_somebody_elses_run_of_the_name(ordered, invited):
    start(invited, RunConfig(), "first")
    invited.want("first", "stopped")
    row = ordered("start", taken=True, name="first", config={})
    assert (row.state, "there is a run first already" in row.answer) == ("refused", True)
    assert invited.wanted().state == "stopped"
    make_plan(invited, RunConfig(rounds=9), "second")
    assert ordered("start", taken=True, name="second", config={"rounds": 3}).state == "refused"
    assert invited.wanted().run == "first"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda centre: accounts.remove(centre, "anna", BY), "was removed since"),
        (lambda centre: accounts.disable(centre, "anna", BY), "was disabled since"),
        (lambda centre: accounts.set_role(centre, "anna", "viewer", BY), "is viewer by now; this needs operator"),
    ],
)
def test_an_order_does_not_outlive_what_its_giver_may(ordered, centre, invited, audited, change, said):
    row = ordered("revoke", meanwhile=lambda _: change(centre), site="charite", reason="a grudge")
    assert (row.state, said in row.answer) == ("refused", True)
    assert invited.sites()["charite"].state != "revoked"
    assert audited("order.refused")["order"] == row.id
    again = ordered("exclude", taken=True, site="charite", reason="a grudge")
    assert "look whether it was done" in again.answer
    assert invited.sites()["charite"].excluded is None


def test_a_revocation_does_not_hit_the_site_that_came_after_it(ordered, invited, clock):
    def invite_anew(_):
        with invited.changing_sites() as sites:
            sites["charite"] = sites["charite"].model_copy(update={"since": clock.now + 1})

    row = ordered("revoke", meanwhile=invite_anew, site="charite", reason="stolen")
    assert (row.state, "it may be another key, so nothing was revoked" in row.answer) == ("refused", True)
    assert invited.sites()["charite"].state == "invited"
    clock.now += 2
    assert ordered("revoke", site="charite", reason="stolen").state == "done"


def test_what_was_done_before_the_answer_is_answered_as_done(ordered, invited):
    assert ordered("include", taken=True, site="charite").state == "done"
    assert ordered("unpin", taken=True, run="first").state == "done"
    assert read_pins(invited) == {}
    exclude(invited, "charite", reason="a")
    assert ordered("exclude", taken=True, site="charite", reason="a").state == "done"


def test_an_order_nobody_carried_out_for_an_hour_surprises_nobody_except_a_revocation(carrier, centre, clock, invited):
    old = [
        place(centre, kind, {"site": "charite", "reason": "x"}, who="anna", via="api", clock=clock)
        for kind in ("exclude", "revoke")
    ]
    clock.now += EXPIRES + 1
    carrier.look()
    assert [find(centre, number).state for number in old] == ["refused", "done"]
    assert "Give it again" in find(centre, old[0]).answer
    taken = place(centre, "exclude", {"site": "charite", "reason": "x"}, who="anna", via="api", clock=clock)
    take(centre, clock=clock)
    clock.now += EXPIRES + 1
    carrier.look()
    assert "Look whether it was done" in find(centre, taken).answer
    assert invited.sites()["charite"].state == "revoked"


def test_an_unforeseen_error_is_answered_and_the_next_order_carried_out(ordered, monkeypatch, caplog):
    def falls(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(carrying, "exclude", falls)
    row = ordered("exclude", site="charite", reason="x")
    assert (row.state, "unexpected ZeroDivisionError" in row.answer) == ("refused", True)
    assert ordered("revoke", site="charite", reason="x").state == "done"
