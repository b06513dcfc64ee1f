"""A site is left out of rounds and taken in again; its key stays good."""

from __future__ import annotations

import pytest

from popmi_core.config import RunConfig
from popmi_core.errors import ConfigError, SetupError
from server.control.home import Asker
from server.control.leaving import exclude, include
from server.control.plans import expected_sites
from server.control.revoking import revoke
from server.control.sites import add_site, confirm, view_sites


def test_an_excluded_site_keeps_its_key_and_says_why(invited, control, enrolment_of, audited):
    confirm(invited, control, enrolment_of("charite"), agreed=lambda _: True, how="test")
    exclude(invited, "charite", reason=" scanner is being mended ", by=Asker("anna", "page"))
    entry = invited.sites()["charite"]
    assert (entry.state, entry.node_id, entry.excluded.reason) == ("enrolled", 1001, "scanner is being mended")
    assert entry.excluded.by == "anna"
    assert view_sites(invited, control)[0].excluded == "scanner is being mended"
    told = audited("site.excluded")
    assert (told["who"], told["via"], told["reason"]) == ("anna", "page", "scanner is being mended")
    include(invited, "charite")
    assert invited.sites()["charite"].excluded is None
    assert audited()[-1] == "site.included"
    assert "via" not in audited("site.included")


def test_a_run_does_not_wait_for_an_excluded_site_and_may_not_name_it(invited):
    add_site(invited, "zurich")
    exclude(invited, "zurich", reason="moves house")
    assert expected_sites(invited, RunConfig()) == ("charite",)
    with pytest.raises(ConfigError, match="sites zurich are excluded, but the run names them"):
        expected_sites(invited, RunConfig(sites=("charite", "zurich")))


def test_an_excluded_site_stays_so_when_it_gets_its_kit_anew_or_its_key_is_let_in(invited, control, enrolment_of):
    exclude(invited, "charite", reason="not yet")
    add_site(invited, "charite")
    assert invited.sites()["charite"].excluded.reason == "not yet"
    confirm(invited, control, enrolment_of("charite"), agreed=lambda _: True, how="test")
    assert invited.sites()["charite"].excluded.reason == "not yet"


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501])
def test_without_a_reason_nobody_is_excluded(invited, reason):
    with pytest.raises(SetupError, match="site charite is not excluded: the reason has"):
        exclude(invited, "charite", reason=reason)
    assert invited.sites()["charite"].excluded is None


def test_who_is_unknown_revoked_or_not_excluded_is_told(invited, control):
    with pytest.raises(SetupError, match=r"there is no site nowhere. The sites are: charite"):
        exclude(invited, "nowhere", reason="x")
    with pytest.raises(SetupError, match="site charite is not excluded: it takes part"):
        include(invited, "charite")
    revoke(invited, control, "charite", reason="stolen")
    with pytest.raises(SetupError, match="site charite is revoked"):
        exclude(invited, "charite", reason="x")


def test_a_revocation_asked_for_on_the_pages_names_the_person(invited, control, audited):
    revoke(invited, control, "charite", reason="stolen", by=Asker("anna", "page"))
    told = audited("site.revoked")
    assert (told["who"], told["via"], told["by"]) == ("anna", "page", "anna")
