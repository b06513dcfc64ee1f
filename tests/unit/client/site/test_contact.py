"""A server that does not answer: written down once with its reason, and again once it answers."""

from __future__ import annotations

import os
import time

import pytest
from site_parts import Authority, make_home, make_kit

from client.site.contact import AGAIN, REFUSED, UNHEARD, Contact, heard_seconds_ago, noting
from client.site.findings import failed, ok


@pytest.fixture
def home(tmp_path):
    made = make_home(tmp_path / "site", make_kit(ca_pem=Authority().pem))
    made.processes.mkdir()
    return made


@pytest.fixture
def watch(home):
    """A contact whose checks find what a test says, by a clock that a test moves."""

    class Watch:
        def __init__(self) -> None:
            self.now, self.found, self.looks = time.time(), [], 0
            self.contact = Contact(home, self.check, lambda: self.now)

        def check(self, *_):
            self.looks += 1
            return self.found

        def after(self, seconds: float) -> None:
            self.now += seconds
            self.contact.look()

    return Watch()


def told(home):
    return [(entry.event, entry.details) for entry in home.audit.entries()][1:]


def test_a_server_that_answers_is_never_looked_at(home, watch):
    (home.processes / "heard").touch()
    watch.after(UNHEARD + 1)
    assert (watch.looks, told(home)) == (0, [])


def test_a_clock_or_certificate_that_is_wrong_is_written_down_once_with_its_figures(home, watch):
    watch.found = [ok("port", "open"), failed("clock", "10 s ahead of the server", "timedatectl")]
    watch.after(UNHEARD - 1)
    assert told(home) == []
    for _ in range(3):
        watch.after(AGAIN + 1)
    assert watch.looks == 3
    assert told(home) == [("server.unreachable", {"why": {"clock": "10 s ahead of the server -> timedatectl"}})]
    watch.found = [failed("certificate dates", "expired 1 days ago", "renew")]
    watch.after(AGAIN + 1)
    assert told(home)[-1] == ("server.unreachable", {"why": {"certificate dates": "expired 1 days ago -> renew"}})
    (home.processes / "heard").touch()
    watch.after(1)
    watch.after(1)
    assert [event for event, _ in told(home)] == ["server.unreachable", "server.unreachable", "server.reached"]


def test_a_way_that_is_open_points_at_the_key(home, watch):
    watch.after(UNHEARD + 1)
    assert told(home) == [("server.unreachable", {"why": {"node": REFUSED}})]
    for reason in ("not confirmed yet", "was revoked", "in use on another machine", "enrol with --new-key"):
        assert reason in REFUSED


def test_a_log_that_cannot_be_written_ends_nothing_and_is_made_up_for_once_it_can(home, watch, caplog):
    log = home.audit.path.read_bytes()
    home.audit.path.unlink()
    home.audit.path.mkdir()
    watch.found = [failed("clock", "10 s ahead of the server", "timedatectl")]
    watch.after(UNHEARD + 1)
    assert "the server is not reached: clock: 10 s ahead of the server -> timedatectl" in caplog.text
    assert "not in the audit log: server.unreachable" in caplog.text
    home.audit.path.rmdir()
    home.audit.path.write_bytes(log)
    watch.after(AGAIN + 1)
    assert told(home) == [("server.unreachable", {"why": {"clock": "10 s ahead of the server -> timedatectl"}})]
    (home.processes / "heard").touch()
    home.audit.path.unlink()
    home.audit.path.mkdir()
    watch.after(1)
    assert "not in the audit log: server.reached" in caplog.text


def test_between_two_looks_nothing_is_asked(home, watch):
    watch.after(UNHEARD + 1)
    watch.after(AGAIN - 10)
    assert watch.looks == 1


def test_the_doctors_own_checks_are_asked_by_default(home):
    now = [time.time()]
    contact = Contact(home, clock=lambda: now[0])
    now[0] += UNHEARD + 1
    contact.look()
    assert "port" in told(home)[0][1]["why"]


@pytest.mark.parametrize("damage", ["ca", "config_file"])
def test_a_damaged_folder_is_a_reason(home, watch, damage):
    getattr(home, damage).write_text("ü = [")
    watch.after(UNHEARD + 1)
    assert "popmi site doctor" in told(home)[0][1]["why"]["site folder"]


def test_an_answer_is_noted_and_a_refusal_is_not(home):
    mark = home.processes / "heard"
    with pytest.raises(ZeroDivisionError):
        noting(lambda: 1 / 0, mark)()
    assert heard_seconds_ago(home) is None
    assert noting(lambda one, *, two: one + two, mark)(1, two=2) == 3
    assert heard_seconds_ago(home) < 60
    os.utime(mark, (0, 0))
    assert heard_seconds_ago(home) > UNHEARD


def test_an_answer_counts_though_it_cannot_be_noted(tmp_path):
    assert noting(lambda: 3, tmp_path / "no" / "heard")() == 3
