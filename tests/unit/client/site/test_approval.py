"""Approving code: what differs is shown, nothing is approved unseen, and what was approved is on the disk."""

from __future__ import annotations

import pytest
from site_parts import make_home, small_bundle
from typer.testing import CliRunner

from client.site import approval
from client.site.approval import Approvals, changed, installed_code, summary, unified
from client.site.commands import app
from popmi_core.deployment import bundle_files, code_hash
from popmi_core.errors import SetupError


@pytest.fixture
def approvals(tmp_path):
    return Approvals(make_home(tmp_path / "site"))


def ran(approvals, *words, **more):
    return CliRunner().invoke(app, ["approve", *words, "--home", str(approvals.home.folder)], **more)


def test_nothing_is_approved_at_first_and_then_what_was_kept(approvals):
    code = approvals.keep(small_bundle())
    assert approvals.approved() == ()
    assert not approvals.allows(code)
    assert approvals.waiting() == [code]
    made = approvals.approve(code)
    assert approvals.allows(code)
    assert approvals.waiting() == []
    assert made.by


def test_code_that_is_not_here_cannot_be_approved(approvals):
    with pytest.raises(SetupError, match="no bundle aaaaaaaaaaaa is kept here"):
        approvals.approve("a" * 64)


def test_a_kept_bundle_that_was_changed_on_the_disk_is_refused(approvals):
    code = approvals.keep(small_bundle())
    other = approvals.keep(small_bundle("x = 1"))
    (approvals.home.bundles / f"{code}.zip").write_bytes((approvals.home.bundles / f"{other}.zip").read_bytes())
    with pytest.raises(SetupError, match=f"holds code {other[:12]}, expected {code[:12]}"):
        approvals.approve(code)


def test_a_hash_is_found_by_its_beginning_if_that_is_one(approvals):
    code = approvals.keep(small_bundle())
    assert approvals.find(code[:8]) == code
    approvals.keep(small_bundle("x = 1"))
    with pytest.raises(SetupError, match="2 bundles kept here begin with ''"):
        approvals.find("")
    with pytest.raises(SetupError, match="0 bundles kept here begin with 'zz'"):
        approvals.find("zz")


def test_ever_new_code_does_not_fill_the_disk_and_approved_code_stays(approvals):
    kept = approvals.keep(small_bundle())
    approvals.approve(kept)
    for number in range(9):
        approvals.keep(small_bundle(f"x = {number}"))
    assert len(approvals.waiting()) == approval.MOST_WAITING
    assert approvals.content(kept)


def test_a_damaged_list_approves_nothing(approvals):
    code = approvals.keep(small_bundle())
    approvals.approve(code)
    for damage in ("", "{}", '[{"code": "short", "time": 0, "by": "x"}]'):
        approvals.home.approved.write_text(damage)
        with pytest.raises(SetupError, match="nothing is approved"):
            approvals.allows(code)


def test_withdrawing_what_was_never_approved_is_an_error(approvals):
    with pytest.raises(SetupError, match="nothing to withdraw"):
        approvals.withdraw("b" * 64)


def test_a_changed_line_is_named(approvals):
    old = {"client/app.py": b"a = 1\nb = 2\n", "client/old.py": b"x\n"}
    new = {"client/app.py": b"a = 1\nb = 3\n", "client/new.py": b"y\n"}
    difference = changed(old, new)
    assert difference == {"added": ["client/new.py"], "changed": ["client/app.py"], "removed": ["client/old.py"]}
    assert summary(difference) == "1 added, 1 changed, 1 removed"
    assert summary(changed(old, old)) == "no difference"
    lines = list(unified(old, new))
    assert lines[:2] == ["--- approved/client/app.py", "+++ new/client/app.py"]
    assert {"-b = 2", "+b = 3", "+y", "-x"} <= set(lines)


def test_signs_that_a_terminal_obeys_are_shown_instead():
    lines = list(unified({}, {"a.py": b"evil()  # \x1b[2K\rharmless()\n\xff\n"}))
    assert not any(sign in "".join(lines) for sign in ("\x1b", "\r"))
    assert any("\\x1b[2K" in line for line in lines)
    assert any("\\xff" in line for line in lines)


def test_what_is_installed_is_what_a_server_would_send(approvals):
    assert code_hash(installed_code()) == code_hash(bundle_files())
    assert not any(path.startswith("client/site/") for path in installed_code())
    done = ran(approvals, "--installed", "--yes")
    assert done.exit_code == 0, done.output
    assert approvals.allows(code_hash(bundle_files()))
    assert f"Approved: {code_hash(bundle_files())}" in done.output
    assert "is approved already" in ran(approvals, "--installed", "--yes").output


def test_the_command_shows_the_difference_asks_and_logs(approvals):
    assert "no code waits" in str(ran(approvals).exception)
    first = approvals.keep(small_bundle())
    assert ran(approvals, input="n\n").exit_code == 1
    assert not approvals.allows(first)
    assert "compared with nothing: 3 files, all new" in ran(approvals, input="y\n").output
    assert approvals.allows(first)
    second = approvals.keep(small_bundle("secret = open('/data')"))
    done = ran(approvals, second[:10], input="y\n")
    assert "the last approved code: 1 changed" in done.output
    assert "+secret = open('/data')" in done.output
    assert [entry.details["code"] for entry in approvals.home.audit.entries() if entry.event == "code.approved"] == [
        first,
        second,
    ]


def test_a_summary_names_files_only(approvals):
    approvals.approve(approvals.keep(small_bundle()))
    approvals.keep(small_bundle("y = 2"))
    done = ran(approvals, "--summary", "--yes")
    assert "changed: client/app.py" in done.output
    assert "y = 2" not in done.output


def test_an_approval_can_be_withdrawn_by_command(approvals):
    code = approvals.keep(small_bundle())
    approvals.approve(code)
    assert "0 approved codes begin" in str(ran(approvals, "zz", "--withdraw").exception)
    assert ran(approvals, code[:12], "--withdraw").exit_code == 0
    assert not approvals.allows(code)
    assert [entry.event for entry in approvals.home.audit.entries()][-1] == "code.withdrawn"


def test_a_user_without_a_name_approves_by_number(approvals, monkeypatch):
    def nameless():
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr(approval.getpass, "getuser", nameless)
    assert approvals.approve(approvals.keep(small_bundle())).by.startswith("user ")


@pytest.mark.parametrize("sign", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r"])
def test_code_hidden_in_the_tail_of_a_comment_shows_as_a_difference(sign):
    old = {"client/app.py": b"# as always\ncheck()\n"}
    new = {"client/app.py": f"# as always{sign}check()\n".encode()}
    shown = [line for line in unified(old, new) if not line.startswith(("---", "+++", "@@"))]
    assert shown[0] == "-# as always"
    assert f"+# as always\\x{ord(sign):02x}check()" in shown


def test_other_ends_of_lines_show_as_a_difference():
    shown = list(unified({"a.py": b"x = 1\n"}, {"a.py": b"x = 1\r\n"}))
    assert "+x = 1\\x0d" in shown
    assert list(unified({"a.py": b"x = 1\n"}, {"a.py": b"x = 1"}))
