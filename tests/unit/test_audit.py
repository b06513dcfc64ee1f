"""The log that only grows: what a crash, a cut and a forger leave behind, and what verification says of it."""

from __future__ import annotations

import json
import os

import pytest

from popmi_core import audit
from popmi_core.audit import START, AuditLog, torn_bytes, verify_log
from popmi_core.errors import AuditError


@pytest.fixture
def log(tmp_path):
    made = AuditLog(tmp_path / "audit.jsonl")
    for number in range(3):
        made.append("event", number=number)
    return made


def lines_of(log):
    return log.path.read_text().splitlines(keepends=True)


def test_lines_are_chained_and_the_file_is_its_owners(log):
    first, second, third = log.entries()
    assert (first.previous, second.previous, third.previous) == (START, first.digest, second.digest)
    assert verify_log(log.path) == third
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_a_line_torn_by_a_crash_is_told_cut_off_and_written_down(log):
    with log.path.open("a") as file:
        file.write('{"number":4,"eve')
    assert verify_log(log.path).number == 3
    assert torn_bytes(log.path) == 16
    log.append("after")
    assert torn_bytes(log.path) == 0
    *_, torn, after = log.entries()
    assert (torn.event, torn.details, after.event) == ("log.torn", {"bytes": 16}, "after")
    assert verify_log(log.path) == after


def test_a_log_that_is_one_torn_line_starts_anew_and_says_so(tmp_path):
    path = tmp_path / "audit.jsonl"
    path.write_text('{"number":1')
    assert AuditLog(path).append("first").number == 2
    assert [entry.event for entry in AuditLog(path).entries()] == ["log.torn", "first"]


def test_a_tail_that_was_cut_off_shows_against_a_head_kept_elsewhere_only(log):
    head = verify_log(log.path).digest
    log.path.write_text("".join(lines_of(log)[:-1]))
    assert verify_log(log.path).number == 2
    with pytest.raises(AuditError, match=r"no line has the hash .* It was cut off or written anew"):
        verify_log(log.path, head=head)


def test_a_changed_line_is_told_by_its_number(log):
    first, second, third = lines_of(log)
    log.path.write_text(first + second.replace('"number":1', '"number":7', 1) + third)
    with pytest.raises(AuditError, match="line 2: was changed after it was written"):
        verify_log(log.path)


def test_a_line_taken_out_or_moved_is_told_by_its_number(log):
    first, second, third = lines_of(log)
    for forged in (first + third, second + first + third, first + first + second + third):
        log.path.write_text(forged)
        with pytest.raises(AuditError, match="Lines were taken out or put in before it"):
            verify_log(log.path)


def test_a_line_that_is_no_entry_is_told_by_its_number(log):
    log.path.write_text("".join([*lines_of(log), "\n"]))
    with pytest.raises(AuditError, match="line 4: is no entry"):
        verify_log(log.path)
    with pytest.raises(AuditError, match="last line: is no entry"):
        log.append("more")


def test_a_log_that_is_gone_or_no_file_is_told(tmp_path):
    with pytest.raises(AuditError, match="is missing, expected a file"):
        verify_log(tmp_path / "audit.jsonl")
    with pytest.raises(AuditError, match="cannot be read: No such file"):
        torn_bytes(tmp_path / "audit.jsonl")
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(AuditError, match="cannot write audit log"):
        AuditLog(tmp_path / "audit.jsonl").append("x")


@pytest.mark.parametrize("odd", ["caf\udce9", "\u2028line\x1b[2K", float("nan"), 10**40, {"deep": ["\ud800"]}, os])
def test_whatever_is_written_down_can_be_read_again(log, odd):
    log.append("odd", value=odd)
    log.append("next")
    assert verify_log(log.path).number == 5


def test_a_full_disk_leaves_the_log_as_it_was(log, monkeypatch):
    before = log.path.read_bytes()
    write = os.write
    monkeypatch.setattr(audit.os, "write", lambda handle, line: write(handle, line[:10]))
    with pytest.raises(AuditError, match="No space left on device"):
        log.append("lost")
    monkeypatch.undo()
    assert log.path.read_bytes() == before
    assert json.loads(lines_of(log)[-1])["number"] == 3
