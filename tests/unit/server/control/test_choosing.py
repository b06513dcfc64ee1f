"""`popmi server exclude|include|pin|unpin` and `audit recopy` as the operator types them."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import server.control.choosing
import server.control.flower
from popmi_core.errors import PopmiError
from server.centre import centre_database, open_centre
from server.centre.trail import mirror, mirrored
from server.control.commands import app
from server.control.pins import Pin


@pytest.fixture
def popmi(invited, control, monkeypatch):
    """Return a function that runs a command at the home, with a SuperLink that only remembers."""
    monkeypatch.setattr(server.control.flower, "FlowerControl", lambda *_: control)
    monkeypatch.delenv("POPMI_DATABASE", raising=False)

    def run(*words):
        done = CliRunner().invoke(app, list(words), env={"POPMI_SERVER_HOME": str(invited.folder)})
        if isinstance(done.exception, PopmiError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_a_site_is_left_out_shown_with_the_reason_and_taken_in_again(popmi, invited):
    assert "charite is left out from the next round on" in popmi("exclude", "charite", "--reason", "moves house")
    assert "excluded: moves house" in popmi("sites")
    assert "charite takes part again" in popmi("include", "charite")
    assert invited.sites()["charite"].excluded is None


def test_a_model_is_pinned_and_let_go(popmi, monkeypatch):
    made = Pin(round=2, sha256="a" * 64, by="root", time=1.0)
    monkeypatch.setattr("server.control.pins.pin", lambda home, run, number, **told: made)
    monkeypatch.setattr("server.control.pins.unpin", lambda home, run: None)
    assert f"run first, round 2 is pinned; sha256 {'a' * 64}" in popmi("pin", "first", "2", "--note", "best")
    assert "run first has no pinned model" in popmi("unpin", "first")


def test_the_audit_log_s_copy_is_taken_out_and_the_log_says_so(popmi, invited, audited):
    centre = open_centre(centre_database(invited.folder))
    mirror(centre, list(enumerate(invited.audit_file.read_text().splitlines(), start=1)))
    lines = mirrored(centre)[0]
    assert f"{lines} copied lines are taken out" in popmi("audit", "recopy")
    assert mirrored(centre)[0] == 0
    assert audited("log.recopied")["lines"] == lines
