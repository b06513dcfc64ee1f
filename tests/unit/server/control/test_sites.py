"""How a site gets in, and how it is cut off."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from popmi_core.deployment.enrolment import fingerprint, read_enrolment, read_kit
from popmi_core.errors import SetupError
from server.control.contract import SuperLinkAway
from server.control.home import SiteEntry
from server.control.revoking import cut_off_revoked, revoke
from server.control.sites import add_site, confirm, view_sites


def agree(_):
    return True


@pytest.fixture
def enrolled(home, control, enrolment_of):
    """Return a function that lets a site in."""

    def enrol(site, **described):
        add_site(home, site)
        return confirm(home, control, enrolment_of(site, **described), agreed=agree, how="test")

    return enrol


def test_an_invited_site_gets_a_kit_without_a_secret(home, audited):
    path = add_site(home, "charite")
    kit = read_kit(path)
    assert (kit.project, kit.site, kit.endpoint) == ("Melanoma", "charite", "popmi.example.org:8443")
    assert (kit.classes, kit.config.rounds) == (("mel", "nv"), 3)
    assert kit.ca_pem == home.ca.read_text()
    with zipfile.ZipFile(path) as file:
        assert all(b"PRIVATE" not in file.read(name) for name in file.namelist())
    assert home.sites()["charite"].state == "invited"
    assert audited("site.invited")["site"] == "charite"


@pytest.mark.parametrize("name", ["", "Charité", "a b", "../x", "x" * 64, "-x"])
def test_a_name_that_cannot_be_a_sites_is_refused(home, name):
    with pytest.raises(SetupError, match=r"site name .*expected lower-case letters"):
        add_site(home, name)
    assert home.sites() == {}


def test_a_kit_is_made_anew_until_the_site_is_in(home, enrolled):
    add_site(home, "charite")
    enrolled("charite")
    with pytest.raises(SetupError, match="site charite is enrolled already, with key SHA256:"):
        add_site(home, "charite")


def test_without_an_authority_there_is_no_kit(home):
    home.ca.unlink()
    with pytest.raises(SetupError, match=r"cannot read .*ca.pem"):
        add_site(home, "charite")


def test_a_compared_fingerprint_lets_the_site_in(home, control, enrolment_of, audited):
    add_site(home, "charite")
    file, asked = enrolment_of("charite"), []

    def agreed(enrolment):
        asked.append(enrolment.fingerprint)
        return True

    entry = confirm(home, control, file, agreed=agreed, how="by telephone")
    enrolment = read_enrolment(file)
    assert asked == [enrolment.fingerprint]
    assert (entry.state, entry.node_id) == ("enrolled", 1001)
    # The comment behind a key is its owner's note and no part of it.
    assert entry.public_key == " ".join(enrolment.public_key.split()[:2])
    assert home.sites()["charite"] == entry
    assert audited("site.confirmed")["how"] == "by telephone"
    assert audited("site.enrolled")["node_id"] == 1001


def test_another_fingerprint_registers_nothing(home, control, enrolment_of, audited):
    add_site(home, "charite")
    with pytest.raises(SetupError, match=r"is not the one the site read out. Nothing was registered"):
        confirm(home, control, enrolment_of("charite"), agreed=lambda _: False, how="test")
    assert control.asked == []
    assert home.sites()["charite"].state == "invited"
    assert "is not the one the site read out" in audited("site.refused")["reason"]


def test_while_a_person_compares_fingerprints_another_site_can_be_revoked(home, control, enrolment_of, enrolled):
    enrolled("basel", key="basel")
    add_site(home, "charite")

    def agreed(_):
        revoke(home, control, "basel", reason="laptop stolen")
        return True

    confirm(home, control, enrolment_of("charite"), agreed=agreed, how="test")
    assert {name: entry.state for name, entry in home.sites().items()} == {"basel": "revoked", "charite": "enrolled"}


def test_a_site_revoked_while_its_fingerprint_is_compared_stays_out(home, control, enrolment_of):
    add_site(home, "charite")

    def agreed(_):
        revoke(home, control, "charite", reason="never mind")
        return True

    with pytest.raises(SetupError, match="site charite was revoked"):
        confirm(home, control, enrolment_of("charite"), agreed=agreed, how="test")
    assert control.known_nodes == []


def test_confirming_twice_changes_nothing(home, control, enrolment_of, enrolled):
    before = enrolled("charite")
    assert confirm(home, control, enrolment_of("charite"), agreed=agree, how="again") == before
    assert [what for what, *_ in control.asked].count("register") == 1


def test_an_enrolment_of_another_project_is_refused(home, control, enrolment_of):
    add_site(home, "charite")
    with pytest.raises(SetupError, match="is for project 'Glaucoma', expected 'Melanoma'"):
        confirm(home, control, enrolment_of("charite", project="Glaucoma"), agreed=agree, how="test")


def test_nobody_comes_in_uninvited(home, control, enrolment_of):
    with pytest.raises(SetupError, match="site charite was never invited"):
        confirm(home, control, enrolment_of("charite"), agreed=agree, how="test")


def test_one_key_is_one_site(home, control, enrolment_of, enrolled):
    enrolled("charite", key="shared")
    add_site(home, "basel")
    with pytest.raises(SetupError, match=r"its key SHA256:\S+ is already that of site charite \(enrolled\)"):
        confirm(home, control, enrolment_of("basel", key="shared"), agreed=agree, how="test")
    assert home.sites()["basel"].state == "invited"


def test_a_second_key_for_a_site_that_is_in_is_refused(home, control, enrolment_of, enrolled):
    enrolled("charite", key="first")
    with pytest.raises(SetupError, match=r"site charite is enrolled with key .* take it off first"):
        confirm(home, control, enrolment_of("charite", key="second"), agreed=agree, how="test")


def test_a_crash_after_registering_is_made_good_by_confirming_again(home, control, enrolment_of):
    add_site(home, "charite")
    file = enrolment_of("charite")
    control.register("charite", read_enrolment(file).public_key)
    assert confirm(home, control, file, agreed=agree, how="test").node_id == 1001


def test_a_key_the_superlink_knows_as_anothers_is_refused(home, control, enrolment_of):
    add_site(home, "charite")
    file = enrolment_of("charite")
    control.register("basel", read_enrolment(file).public_key)
    with pytest.raises(SetupError, match="A key is never let in twice"):
        confirm(home, control, file, agreed=agree, how="test")
    assert home.sites()["charite"].state == "invited"


def test_while_the_superlink_is_away_nobody_is_let_in(home, control, enrolment_of):
    add_site(home, "charite")
    control.away = True
    with pytest.raises(SuperLinkAway):
        confirm(home, control, enrolment_of("charite"), agreed=agree, how="test")
    assert home.sites()["charite"].state == "invited"


def test_a_revoked_site_is_cut_off_and_its_key_never_let_in_again(home, control, enrolment_of, enrolled, audited):
    enrolled("charite")
    revoke(home, control, "charite", reason="stolen laptop")
    assert control.known_nodes == []
    entry = home.sites()["charite"]
    assert (entry.state, entry.node_id) == ("revoked", None)
    assert audited("site.revoked")["reason"] == "stolen laptop"
    assert audited("site.cut_off")["node_id"] == 1001
    with pytest.raises(SetupError, match=r"site charite was revoked. Invite it again"):
        confirm(home, control, enrolment_of("charite"), agreed=agree, how="test")
    add_site(home, "charite")
    with pytest.raises(SetupError, match="A key is never let in twice"):
        confirm(home, control, enrolment_of("charite"), agreed=agree, how="test")
    assert confirm(home, control, enrolment_of("charite", key="new"), agreed=agree, how="test").node_id == 1002


def test_a_site_is_revoked_even_while_the_superlink_is_away(home, control, enrolled):
    enrolled("charite")
    control.away = True
    with pytest.raises(SuperLinkAway, match="site charite is revoked and no round asks it any more"):
        revoke(home, control, "charite", reason="stolen")
    entry = home.sites()["charite"]
    assert (entry.state, entry.node_id) == ("revoked", 1001)
    with pytest.raises(SetupError, match="revoked but not cut off yet"):
        add_site(home, "charite")
    control.away = False
    assert cut_off_revoked(home, control) == ["charite"]
    assert cut_off_revoked(home, control) == []
    assert control.known_nodes == []


def test_a_key_that_a_killed_confirm_left_behind_is_cut_off_too(home, control, enrolment_of, audited):
    add_site(home, "charite")
    control.register("charite", read_enrolment(enrolment_of("charite")).public_key)
    revoke(home, control, "charite", reason="stolen laptop")
    assert control.known_nodes == []
    assert audited("site.cut_off")["node_id"] == 1001


def test_revoking_twice_keeps_the_time_of_the_first(home, control, enrolled):
    enrolled("charite")
    revoke(home, control, "charite", reason="a")
    since = home.sites()["charite"].since
    revoke(home, control, "charite", reason="b")
    assert home.sites()["charite"].since == since


def test_revoking_nobody_names_the_sites(home, control, enrolled):
    enrolled("charite")
    with pytest.raises(SetupError, match=r"there is no site basel. The sites are: charite"):
        revoke(home, control, "basel", reason="test")


def test_sites_are_shown_with_what_the_superlink_knows(home, control, enrolled):
    enrolled("charite")
    add_site(home, "basel")
    control.known_nodes = [replace(node, online=True, last_seen=5.0) for node in control.known_nodes]
    basel, charite = view_sites(home, control)
    assert (basel.name, basel.state, basel.fingerprint, basel.node_id) == ("basel", "invited", None, None)
    assert (charite.online, charite.last_seen, charite.note) == (True, 5.0, "")
    assert charite.fingerprint == fingerprint(control.known_nodes[0].public_key)


def test_while_the_superlink_is_away_nobody_is_called_offline(home, control, enrolled):
    enrolled("charite")
    control.away = True
    (charite,) = view_sites(home, control)
    assert (charite.online, charite.last_seen, charite.note) == (None, None, "the SuperLink is away")


def test_a_lost_state_of_the_superlink_is_told(home, control, enrolled):
    enrolled("charite")
    control.known_nodes = []
    (charite,) = view_sites(home, control)
    assert "does not know this node" in charite.note


def test_a_site_that_lingers_is_told(home, control):
    with home.changing_sites() as sites:
        sites["charite"] = SiteEntry(public_key=None, node_id=5, state="revoked")
    assert view_sites(home, control)[0].note == "revoked, not cut off yet"


def test_the_registry_is_what_the_rounds_read(home, enrolled):
    entry = enrolled("charite")
    told = json.loads(Path(home.sites_file).read_text())
    assert told["charite"]["node_id"] == entry.node_id
    assert told["charite"]["state"] == "enrolled"
