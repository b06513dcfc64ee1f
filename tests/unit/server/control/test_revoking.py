"""A key is cut off whatever else is full or away, and every line that is owed is written once there is room."""

from __future__ import annotations

import shutil

import pytest

from popmi_core.errors import AuditError, SetupError
from server.control import home as home_module
from server.control.contract import RefusedForNow, SuperLinkAway
from server.control.reserve import PLENTY, RESERVE_BYTES, keep_reserve, use_reserve
from server.control.revoking import cut_off_revoked, revoke
from server.control.sites import add_site, confirm, view_sites


@pytest.fixture
def enrolled(home, control, enrolment_of):
    for site in ("basel", "charite"):
        add_site(home, site)
        confirm(home, control, enrolment_of(site), agreed=lambda _: True, how="test")
    return home


@pytest.fixture
def log_without_room(home):
    """Return functions that take the log's room away and give it back."""

    def take():
        shutil.move(home.audit_file, home.folder / "kept")
        home.audit_file.mkdir()

    def give():
        home.audit_file.rmdir()
        shutil.move(home.folder / "kept", home.audit_file)

    return take, give


def full_disk(monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(home_module, "replace_atomically", no_room)


def on_superlink(control):
    return [node.name for node in control.known_nodes]


def test_a_log_without_room_keeps_no_stolen_key_in(enrolled, control, log_without_room, audited):
    take, give = log_without_room
    take()
    with pytest.raises(
        AuditError, match=r"charite IS cut off.* the audit log does not say so yet: cannot write"
    ) as said:
        revoke(enrolled, control, "charite", reason="laptop stolen")
    assert said.value.exit_code != 0
    assert on_superlink(control) == ["basel"]
    assert enrolled.sites()["charite"].state == "revoked"
    give()
    assert cut_off_revoked(enrolled, control) == ["charite"]
    assert cut_off_revoked(enrolled, control) == []
    assert (audited().count("site.revoked"), audited().count("site.cut_off")) == (1, 1)
    told = audited("site.revoked")
    assert (told["reason"], told["node_id"], bool(told["by"])) == ("laptop stolen", 1002, True)
    assert told["since"] == enrolled.sites()["charite"].since


def test_the_next_revoke_writes_what_is_owed_and_forgets_no_reason(enrolled, control, log_without_room, audited):
    take, give = log_without_room
    take()
    for reason in ("laptop stolen", "said again"):
        with pytest.raises(AuditError, match="charite IS cut off"):
            revoke(enrolled, control, "charite", reason=reason)
    give()
    revoke(enrolled, control, "basel", reason="study over")
    assert [line for line in audited() if line.startswith(("site.revoked", "site.cut_off"))] == [
        "site.revoked", "site.cut_off", "site.revoked", "site.cut_off",
    ]  # fmt: skip
    assert audited("site.revoked")["reason"] == "laptop stolen; said again"


def test_while_a_line_is_owed_the_site_is_not_invited_again(enrolled, control, log_without_room):
    take, _ = log_without_room
    take()
    with pytest.raises(AuditError, match="IS cut off"):
        revoke(enrolled, control, "charite", reason="stolen")
    with pytest.raises(SetupError, match=r"the audit log does not say so yet\. Wait"):
        add_site(enrolled, "charite")
    assert view_sites(enrolled, control)[1].note == "cut off, the audit log does not say so yet"


def test_a_line_that_was_written_is_not_written_again_when_the_next_one_fails(enrolled, control, monkeypatch, audited):
    note = type(enrolled).note

    def fails_at_cut_off(self, event, *who, **details):
        if event == "site.cut_off":
            raise AuditError("cannot write audit log")
        note(self, event, **details)

    monkeypatch.setattr(type(enrolled), "note", fails_at_cut_off)
    with pytest.raises(AuditError, match="IS cut off"):
        revoke(enrolled, control, "charite", reason="stolen")
    monkeypatch.setattr(type(enrolled), "note", note)
    cut_off_revoked(enrolled, control)
    assert (audited().count("site.revoked"), audited().count("site.cut_off")) == (1, 1)


def test_one_sites_line_keeps_no_other_sites_key_in(enrolled, control, log_without_room):
    control.away = True
    for site in ("basel", "charite"):
        with pytest.raises(SuperLinkAway):
            revoke(enrolled, control, site, reason="both stolen")
    control.away = False
    log_without_room[0]()
    with pytest.raises(AuditError, match="cannot write"):
        cut_off_revoked(enrolled, control)
    assert on_superlink(control) == []


def test_the_keeper_cuts_off_before_it_says_that_the_superlink_is_back(enrolled, control, keeper, log_without_room):
    control.away = True
    with pytest.raises(SuperLinkAway):
        revoke(enrolled, control, "charite", reason="stolen")
    keeper._once("superlink.away", "away")
    control.away = False
    log_without_room[0]()
    with pytest.raises(AuditError):
        keeper.look()
    assert on_superlink(control) == ["basel"]


def test_a_registry_without_room_keeps_no_stolen_key_in(enrolled, control, monkeypatch, audited):
    with monkeypatch.context() as full:
        full_disk(full)
        with pytest.raises(SetupError, match=r"charite IS cut off, but neither the registry .*No space left.* again"):
            revoke(enrolled, control, "charite", reason="stolen")
    assert on_superlink(control) == ["basel"]
    revoke(enrolled, control, "charite", reason="stolen")
    assert enrolled.sites()["charite"].state == "revoked"
    assert audited("site.revoked")["reason"] == "stolen"


def test_with_neither_registry_nor_superlink_the_key_is_not_called_cut_off(enrolled, control, monkeypatch):
    full_disk(monkeypatch)
    control.away = True
    with pytest.raises(SuperLinkAway, match=r"charite is NOT revoked: cannot write .* Nor could the SuperLink be told"):
        revoke(enrolled, control, "charite", reason="stolen")
    assert enrolled.sites()["charite"].state == "enrolled"


def test_a_superlink_that_cannot_do_it_now_is_told_by_the_keeper_later(enrolled, control, monkeypatch):
    def full(_):
        raise RefusedForNow("the SuperLink refused (HTTP status 500).")

    with monkeypatch.context() as patched:
        patched.setattr(control, "unregister", full)
        with pytest.raises(SuperLinkAway, match=r"charite is revoked and no round asks it any more.*status 500"):
            revoke(enrolled, control, "charite", reason="stolen")
    assert cut_off_revoked(enrolled, control) == ["charite"]
    assert on_superlink(control) == ["basel"]


def with_free(monkeypatch, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))


def test_on_a_full_disk_a_revocation_uses_the_room_that_was_kept_back(enrolled, control, monkeypatch):
    keep_reserve(enrolled.reserve)
    with_free(monkeypatch, 0)
    revoke(enrolled, control, "charite", reason="stolen")
    assert not enrolled.reserve.exists()


def test_room_is_kept_back_where_there_is_plenty_and_used_where_there_is_none(tmp_path, monkeypatch):
    reserve = tmp_path / "reserve"
    with_free(monkeypatch, PLENTY - 1)
    keep_reserve(reserve)
    assert list(tmp_path.iterdir()) == []
    with_free(monkeypatch, PLENTY)
    keep_reserve(reserve)
    keep_reserve(reserve)
    assert [path.name for path in tmp_path.iterdir()] == ["reserve"]
    # Blocks of the disk, not a hole.
    assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES
    with_free(monkeypatch, RESERVE_BYTES)
    assert not use_reserve(reserve)
    with_free(monkeypatch, RESERVE_BYTES - 1)
    assert use_reserve(reserve)
    assert not use_reserve(reserve)


def test_a_reserve_that_cannot_be_given_back_is_no_reason_not_to_try(tmp_path):
    assert not use_reserve(tmp_path / "nowhere" / "reserve")
