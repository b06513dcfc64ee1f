"""The keeper when something is away, damaged or full, and the sites it looks after."""

from __future__ import annotations

import shutil
import threading

import pytest

from popmi_core.errors import AuditError, RunError
from server.control.contract import SuperLinkAway
from server.control.keeper import Keeper
from server.control.revoking import revoke
from server.control.sites import add_site, confirm
from server.store.schema import RECORD_NAME

BUNDLE = (b"packed", "c" * 64)


def starts(control):
    return len(control.bundles)


def test_while_the_superlink_is_away_the_keeper_waits_and_says_so_once(keeper, control, wanted, audited):
    control.away = True
    ended = threading.Event()
    looks = []

    def look():
        looks.append(1)
        if len(looks) == 3:
            control.away = False
        if len(looks) == 5:
            ended.set()
        Keeper.look(keeper)

    keeper.look = look
    keeper.run(ended, every=0)
    told = audited()
    assert (told.count("superlink.away"), told.count("superlink.back"), told.count("run.started")) == (1, 1, 1)
    assert told[-1] == "keeper.ended"


def test_a_file_says_when_a_look_last_went_well(keeper, control, home):
    ended, seen = threading.Event(), []
    control.away = True

    def look():
        seen.append(home.looked.exists())
        if len(seen) == 2:
            control.away = False
        if len(seen) == 3:
            ended.set()
        Keeper.look(keeper)

    keeper.look = look
    keeper.run(ended, every=0)
    # After the first look that saw something, not after the one before.
    assert seen == [False, False, True]


def test_a_keeper_that_cannot_touch_its_file_still_keeps_the_run_going(keeper, control, wanted, home):
    shutil.rmtree(home.processes, ignore_errors=True)
    ended = threading.Event()

    def look():
        ended.set()
        Keeper.look(keeper)

    keeper.look = look
    keeper.run(ended, every=0)
    assert starts(control) == 1
    assert not home.looked.exists()


def test_away_is_raised_by_a_single_look(keeper, control, wanted):
    control.away = True
    with pytest.raises(SuperLinkAway):
        keeper.look()


def test_trouble_passes_and_is_told_once(keeper, control, wanted, home, audited):
    plan = home.run_folder("first") / "plan.json"
    whole, ended, looks = plan.read_bytes(), threading.Event(), []
    plan.write_text("{")

    def look():
        looks.append(1)
        if len(looks) == 3:
            plan.write_bytes(whole)
        if len(looks) == 4:
            ended.set()
        Keeper.look(keeper)

    keeper.look = look
    keeper.run(ended, every=0)
    told = audited()
    assert (told.count("keeper.trouble"), told.count("keeper.well"), told.count("run.started")) == (1, 1, 1)


def test_a_record_that_cannot_be_read_starts_nothing(keeper, control, wanted, home):
    (home.run_folder("first") / RECORD_NAME).write_bytes(b"no database at all, however long it is")
    with pytest.raises(RunError, match="cannot be read"):
        keeper.look()
    assert starts(control) == 0


def test_without_an_audit_log_nothing_is_done(keeper, control, wanted, home):
    home.audit_file.unlink()
    home.audit_file.mkdir()
    with pytest.raises(AuditError):
        keeper.look()
    assert starts(control) == 0


def test_a_log_that_cannot_be_written_does_not_end_the_keeper(keeper, control, home):
    control.away = True
    ended = threading.Event()

    def look():
        shutil.move(home.audit_file, home.folder / "kept")
        home.audit_file.mkdir()
        ended.set()
        try:
            Keeper.look(keeper)
        finally:
            keeper._once("superlink.away", "tried")
            home.audit_file.rmdir()
            shutil.move(home.folder / "kept", home.audit_file)

    keeper.look = look
    keeper.run(ended, every=0)
    assert "superlink.away" in keeper._said


def test_a_revoked_site_is_cut_off_as_soon_as_the_superlink_is_back(keeper, control, home, enrolment_of):
    add_site(home, "charite")
    confirm(home, control, enrolment_of("charite"), agreed=lambda _: True, how="test")
    control.away = True
    with pytest.raises(SuperLinkAway):
        revoke(home, control, "charite", reason="stolen")
    control.away = False
    keeper.look()
    assert control.known_nodes == []


def test_a_simulation_may_confirm_by_itself_and_the_log_says_so(home, control, enrolment_of, clock, audited):
    add_site(home, "charite")
    file = enrolment_of("charite")
    enrolment_of("uninvited")
    keeper = Keeper(home, control, pack=lambda: BUNDLE, confirm_from=file.parent, clock=clock)
    keeper.look()
    keeper.look()
    assert home.sites()["charite"].state == "enrolled"
    assert "nobody compared the fingerprint" in audited("site.confirmed")["how"]
    assert "never invited" in audited("site.not_confirmed")["reason"]
    assert audited().count("site.not_confirmed") == 1


def test_every_site_may_have_a_folder_of_its_own_to_be_confirmed_from(home, control, enrolment_of, clock):
    add_site(home, "charite")
    file = enrolment_of("charite")
    own = file.parent / "1"
    own.mkdir()
    file.rename(own / "enrolment.json")
    Keeper(home, control, pack=lambda: BUNDLE, confirm_from=file.parent, clock=clock).look()
    assert home.sites()["charite"].state == "enrolled"


def test_confirming_waits_for_the_superlink(home, control, enrolment_of, clock, monkeypatch):
    add_site(home, "charite")
    keeper = Keeper(home, control, pack=lambda: BUNDLE, confirm_from=enrolment_of("charite").parent, clock=clock)
    register = control.register

    def away(*_):
        raise SuperLinkAway("away")

    monkeypatch.setattr(control, "register", away)
    with pytest.raises(SuperLinkAway):
        keeper.look()
    monkeypatch.setattr(control, "register", register)
    keeper.look()
    assert home.sites()["charite"].state == "enrolled"


def test_nothing_is_confirmed_unless_asked(keeper, home, enrolment_of):
    add_site(home, "charite")
    enrolment_of("charite")
    keeper.look()
    assert home.sites()["charite"].state == "invited"
