"""The audit log's copy: filters, pages, and the chain verified over it (server/centre/trail.py)."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text

from popmi_core.audit import AuditLog
from popmi_core.errors import RunError
from server.centre import open_centre
from server.centre import trail as found_trail
from server.centre.trail import (
    FULL_SECONDS,
    UNREADABLE,
    Filter,
    Verifier,
    count_trail,
    events_of,
    forget_copy,
    mirror,
    mirrored,
    trail,
    whole_trail,
)


@pytest.fixture
def centre(database):
    engine = open_centre(database)
    yield engine
    engine.dispose()


@pytest.fixture
def log(tmp_path):
    return AuditLog(tmp_path / "audit.jsonl")


def copied(centre, log, first=1):
    lines = log.path.read_text().splitlines()
    return mirror(centre, list(enumerate(lines, start=1))[first - 1 :])


@pytest.fixture
def told(centre, log):
    log.append("server.made", who="root")
    log.append("site.excluded", who="anna", via="page", site="basel", reason="50% of its scanners are broken")
    log.append("run.wanted", who="anna", run="first")
    log.append("site.failed", who="server app", run="first", site="basel", reason="out of memory")
    copied(centre, log)
    return centre


def numbers(centre, **wanted):
    found = trail(centre, Filter(**wanted))
    assert count_trail(centre, Filter(**wanted)) == len(found)
    return [line.number for line in found]


def test_lines_are_copied_once_and_shown_newest_first(told, log):
    assert copied(told, log) == 0
    assert mirror(told, []) == 0
    assert numbers(told) == [4, 3, 2, 1]
    line = trail(told)[2]
    assert (line.event, line.who, line.site, line.run) == ("site.excluded", "anna", "basel", None)
    assert line.details == {"via": "page", "reason": "50% of its scanners are broken"}
    assert json.loads(line.line)["digest"] == line.digest
    assert mirrored(told) == (4, trail(told)[0].digest)


def test_lines_are_found_by_event_who_run_site_time_and_text(told):
    assert numbers(told, event="run.wanted") == [3]
    assert numbers(told, event="site.") == [4, 2]
    assert numbers(told, who="anna") == [3, 2]
    assert numbers(told, run="first") == [4, 3]
    assert numbers(told, site="basel", who="anna") == [2]
    assert numbers(told, text="OUT OF") == [4]
    assert numbers(told, text="50%") == [2]
    assert numbers(told, text="_") == []
    times = [line.time for line in trail(told)]
    assert numbers(told, since=times[1]) == [4, 3]
    assert numbers(told, until=times[1]) == [3, 2, 1]
    assert events_of(told) == ("run.wanted", "server.made", "site.excluded", "site.failed")


def test_lines_come_in_pages(told):
    assert [line.number for line in trail(told, limit=2)] == [4, 3]
    assert [line.number for line in trail(told, before=3)] == [2, 1]
    assert len(trail(told, before=2**70, limit=None)) == 4


def test_a_whole_chain_is_verified_with_its_last_hash(told, log):
    verifier = Verifier(clock=lambda: 50.0)
    found = verifier.look(told)
    assert (found.lines, found.head, found.at, found.trouble) == (4, trail(told)[0].digest, 50.0, "")
    log.append("run.stop", who="ben", run="first")
    copied(told, log)
    assert verifier.look(told).lines == 5


def test_an_empty_copy_is_whole(centre):
    assert (Verifier().look(centre).lines, Verifier().look(centre).head) == (0, "")


def change(centre, statement):
    with centre.begin() as connection:
        connection.execute(text(statement))


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE audit_lines SET line = REPLACE(line, 'anna', 'mary') WHERE number = 3", "line 3: was changed after"),
        ("DELETE FROM audit_lines WHERE number = 2", "line 2: is missing here"),
        ("DELETE FROM audit_lines WHERE number = 1", "line 1: is missing here"),
        ("UPDATE audit_lines SET line = 'x' WHERE number = 4", "line 4: is no entry"),
    ],
)
def test_a_line_that_was_changed_or_taken_out_is_told_with_its_number(told, statement, said):
    change(told, statement)
    found = Verifier().look(told)
    assert said in found.trouble
    assert found.head == ""


def test_what_was_changed_after_it_was_verified_shows_in_the_next_full_look(told):
    now = [0.0]
    verifier = Verifier(clock=lambda: now[0])
    assert verifier.look(told).trouble == ""
    change(told, "DELETE FROM audit_lines WHERE number = 2")
    assert "3 lines are here, expected 4" in verifier.look(told).trouble
    assert "line 2: is missing" in verifier.look(told).trouble
    change(told, "UPDATE audit_lines SET number = 2 WHERE number = 99")
    now[0] = FULL_SECONDS
    assert "line 2" in verifier.look(told).trouble


def test_a_broken_chain_is_not_read_whole_at_every_look(told, monkeypatch):
    read, now = [], [0.0]
    entries = found_trail._entries
    monkeypatch.setattr(found_trail, "_entries", lambda *asked: read.append(asked) or entries(*asked))
    verifier = Verifier(clock=lambda: now[0])
    change(told, "DELETE FROM audit_lines WHERE number = 2")
    for _ in range(5):
        assert "line 2: is missing" in verifier.look(told).trouble
    assert len(read) == 1
    now[0] = found_trail.BROKEN_SECONDS
    verifier.look(told)
    assert len(read) == 2


def test_the_whole_log_comes_piece_by_piece_the_oldest_first(told, monkeypatch):
    whole = trail(told, limit=None)[::-1]
    for piece in (1, 2, 3, 4, 5):
        monkeypatch.setattr(found_trail, "_PIECE", piece)
        assert tuple(whole_trail(told)) == whole
        assert tuple(whole_trail(told, Filter(who="anna"))) == tuple(line for line in whole if line.who == "anna")


def test_a_line_of_the_log_that_is_no_entry_is_copied_as_it_is_and_told(told):
    assert mirror(told, [(5, "not\x00 json")]) == 1
    line = trail(told)[0]
    assert (line.event, line.details, line.who) == (UNREADABLE, {}, None)
    assert "line 5: is no entry" in Verifier().look(told).trouble


def test_a_detail_with_a_nul_is_kept_on_both_databases(centre, log):
    log.append("site.failed", who="a\x00b", site="c\x00", run="x" * 500)
    copied(centre, log)
    line = trail(centre)[0]
    assert (line.who, line.site, line.run) == ("a�b", "c�", "x" * 120)
    assert Verifier().look(centre).trouble == ""


def test_the_copy_can_be_taken_out_to_be_made_anew(told, log):
    assert forget_copy(told) == 4
    assert mirrored(told) == (0, "")
    assert copied(told, log) == 4


def test_a_copy_out_of_reach_is_told(told):
    change(told, "DROP TABLE audit_lines")
    acts = (mirrored, trail, count_trail, events_of, Verifier().look, forget_copy)
    for act in (*acts, lambda centre: mirror(centre, [(9, "x")])):
        with pytest.raises(RunError, match=r"centre: cannot .*audit log"):
            act(told)
