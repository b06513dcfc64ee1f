"""Who is let in by a folder: tried again while it may pass, left alone when it never will, and no flood in the log."""

from __future__ import annotations

import pytest

from popmi_core.deployment.enrolment import read_enrolment
from server.control import bounded
from server.control.bounded import BoundedNotes
from server.control.contract import RefusedForNow
from server.control.doorkeeper import LONGEST_PAUSE, Doorkeeper
from server.control.home import LONGEST_REASON
from server.control.sites import NotLetIn, add_site, confirm


@pytest.fixture
def door(home, control, clock, enrolment_of):
    add_site(home, "charite")
    return Doorkeeper(home, control, enrolment_of("charite").parent, clock=clock)


def registering(control, monkeypatch, *answers):
    """Have the SuperLink answer so to the next keys, and then let them in; return the list of what was asked."""
    register, waiting, asked = control.register, list(answers), []

    def answer(site, key):
        asked.append(site)
        if waiting:
            raise waiting.pop(0)
        return register(site, key)

    monkeypatch.setattr(control, "register", answer)
    return asked


def test_a_refusal_that_passes_is_tried_again_with_growing_pauses(door, home, control, clock, monkeypatch, audited):
    asked = registering(control, monkeypatch, *[RefusedForNow("the SuperLink refused (HTTP status 500).")] * 6)
    waits, waited = [], 0
    while home.sites()["charite"].state != "enrolled":
        before = len(asked)
        door.look()
        if len(asked) > before:
            waits.append(waited)
            waited = 0
        clock.now += 1
        waited += 1
    assert waits == [0, 5, 10, 20, 40, LONGEST_PAUSE, LONGEST_PAUSE]
    assert audited().count("site.not_confirmed") == 1
    assert "status 500" in audited("site.not_confirmed")["reason"]


def test_one_who_was_not_invited_yet_is_let_in_once_he_is(door, home, clock, enrolment_of, audited):
    enrolment_of("basel")
    door.look()
    add_site(home, "basel")
    clock.now += 5
    door.look()
    assert home.sites()["basel"].state == "enrolled"
    assert "never invited" in audited("site.not_confirmed")["reason"]


def test_a_key_used_twice_is_written_down_and_not_tried_again(door, home, clock, enrolment_of, audited):
    door.look()
    add_site(home, "twin")
    file = enrolment_of("twin", key="charite")
    for _ in range(3):
        door.look()
        clock.now += 100
    told = audited("site.refused")
    assert (told["site"], told["fingerprint"]) == ("twin", read_enrolment(file).fingerprint)
    assert "already that of site charite" in told["reason"]
    assert audited().count("site.refused") == 1


def test_a_file_that_changed_is_tried_again(door, home, enrolment_of):
    file = enrolment_of("charite")
    whole = file.read_bytes()
    file.write_text("{")
    door.look()
    assert home.sites()["charite"].state == "invited"
    file.write_bytes(whole)
    door.look()
    assert home.sites()["charite"].state == "enrolled"


def test_a_file_that_went_away_is_forgotten(door, enrolment_of):
    door.look()
    enrolment_of("charite").unlink()
    for file in door.folder.iterdir():
        file.unlink()
    door.look()
    assert door._tried == {}


def test_a_flood_of_files_does_not_flood_the_log(door, home, clock, enrolment_of, audited):
    door._notes = BoundedNotes(home, "site.refused_more", lines=3, clock=clock)
    text = enrolment_of("charite").read_text()
    for number in range(20):
        (door.folder / f"flood-{number}.json").write_text(text.replace('"site":"charite"', f'"site":"x{number}"'))
    before = len(audited())
    door.look()
    # The one who was invited came in, with two lines of his own.
    assert home.sites()["charite"].state == "enrolled"
    assert len(audited()) - before == 3 + 2
    clock.now += bounded.WINDOW
    door.look()
    assert audited("site.refused_more")["left_out"] == 17


def test_what_a_site_writes_is_cut_before_it_reaches_the_log(home, control, enrolment_of, audited):
    with pytest.raises(NotLetIn, match="is for project 'ggg"):
        confirm(home, control, enrolment_of("charite", project="g" * 5000), agreed=lambda _: True, how="test")
    assert len(audited("site.refused")["reason"]) == LONGEST_REASON


def test_every_refusal_at_the_operators_hands_is_written_down(home, control, enrolment_of, audited):
    add_site(home, "charite")
    confirm(home, control, enrolment_of("charite"), agreed=lambda _: True, how="test")
    add_site(home, "twin")
    with pytest.raises(NotLetIn, match="One key is one site"):
        confirm(home, control, enrolment_of("twin", key="charite"), agreed=lambda _: True, how="test")
    assert audited("site.refused")["site"] == "twin"
