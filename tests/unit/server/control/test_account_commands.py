"""`popmi server account` as the operator types it."""

from __future__ import annotations

import getpass
import json
import re
import sys

import pytest
import signing_in
from typer.testing import CliRunner

from popmi_core.errors import AccessError, PopmiError, SetupError
from server.centre import accounts, open_centre, throttle, tokens
from server.centre.remarks import unwritten
from server.control.commands import app

GOOD, BETTER = signing_in.PASSWORD, "seven quiet green hills"


@pytest.fixture
def popmi(invited, monkeypatch):
    signing_in.make_cheap(monkeypatch)

    def run(*words, said=None, place=invited.folder, **environment):
        env = {"POPMI_SERVER_HOME": str(place), "POPMI_DATABASE": None} | environment
        done = CliRunner().invoke(app, ["account", *map(str, words)], input=said, env=env)
        if isinstance(done.exception, PopmiError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return run


@pytest.fixture
def centre(invited):
    engine = open_centre(invited.folder / "centre.sqlite")
    yield engine
    engine.dispose()


def test_an_account_is_added_with_a_password_from_standard_input(popmi, centre):
    assert "no account yet" in popmi("list")
    assert popmi("add", "Lin", "--role", "admin", "--password-file", "-", said=f"{GOOD}\nmore\n") == (
        "lin may sign in as admin\n"
    )
    assert accounts.sign_in(centre, "lin", GOOD) is not None
    assert re.search(r"lin +admin +may sign in", popmi("list"))
    assert json.loads(popmi("list", "--json"))[0]["name"] == "lin"
    assert GOOD not in popmi("list", "--json")


def test_a_password_comes_from_a_file_or_is_asked_twice(popmi, centre, tmp_path, monkeypatch):
    (tmp_path / "secret").write_text(f"{GOOD}\n")
    popmi("add", "lin", "--password-file", tmp_path / "secret")
    assert accounts.sign_in(centre, "lin", GOOD) is not None
    asked = iter([BETTER, BETTER, BETTER, "other"])
    monkeypatch.setattr(getpass, "getpass", lambda _: next(asked))
    monkeypatch.setattr(CliRunner, "isolation", _with_a_terminal(CliRunner.isolation))
    popmi("password", "lin")
    assert accounts.sign_in(centre, "lin", BETTER) is not None
    with pytest.raises(AccessError, match="the two passwords are not the same"):
        popmi("password", "lin")


def _with_a_terminal(isolation):
    from contextlib import contextmanager

    @contextmanager
    def isolated(*arguments, **more):
        with isolation(*arguments, **more) as streams:
            sys.stdin.isatty = lambda: True
            yield streams

    return isolated


def test_without_a_terminal_a_password_must_be_given(popmi, tmp_path):
    with pytest.raises(AccessError, match="there is no terminal to ask for the password at"):
        popmi("add", "lin")
    with pytest.raises(AccessError, match="cannot be read"):
        popmi("add", "lin", "--password-file", tmp_path / "missing")
    with pytest.raises(AccessError, match="0 letters"):
        popmi("add", "lin", "--password-file", "-", said="")
    # What is wrong with the role is said before anything is asked.
    with pytest.raises(AccessError, match="expected one of viewer, operator, admin"):
        popmi("add", "lin", "--role", "root")


def test_an_account_is_changed_disabled_and_removed(popmi, centre):
    for name in ("anna", "lin"):
        popmi("add", name, "--role", "admin", "--password-file", "-", said=GOOD)
    assert popmi("role", "lin", "viewer") == "lin is viewer now\n"
    assert popmi("disable", "lin") == "lin may sign in no more\n"
    assert re.search(r"lin +viewer +disabled", popmi("list"))
    popmi("enable", "lin")
    assert accounts.find(centre, "lin").disabled is False
    popmi("remove", "lin")
    assert [item.name for item in accounts.listed(centre)] == ["anna"]
    with pytest.raises(AccessError, match="this is the last admin"):
        popmi("remove", "anna")
    told = [(item.event, item.by.via) for item in unwritten(centre)]
    assert ("account.removed", "terminal") in told


@pytest.mark.parametrize("act", [("enable", "lin"), ("password", "lin", "--password-file", "-")])
def test_who_was_kept_waiting_by_strangers_is_let_in_by_the_terminal(popmi, centre, act):
    popmi("add", "lin", "--role", "admin", "--password-file", "-", said=GOOD)
    key = throttle.name_key("lin")
    for _ in range(throttle.FREE_BY_NAME):
        throttle.begin(centre, [key])
    assert throttle.begin(centre, [key]).wait > 0
    popmi(*act, said=BETTER)
    assert throttle.begin(centre, [key]).wait == 0


def test_a_token_is_printed_once_and_revoked_by_number(popmi, centre):
    popmi("add", "lin", "--role", "operator", "--password-file", "-", said=GOOD)
    secret = popmi("token", "lin", "--name", "ci", "--days", "1", "--role", "operator").strip()
    assert tokens.known(centre, secret) is not None
    listed = popmi("tokens")
    assert secret not in listed
    assert re.search(r"1 lin +operator +good +until \d{4}-\d\d-\d\d  ci", listed)
    assert json.loads(popmi("tokens", "--json"))[0]["account"] == "lin"
    assert popmi("revoke-token", "1") == "token 1 of lin is revoked\n"
    assert tokens.known(centre, secret) is None
    assert "revoked" in popmi("tokens")
    with pytest.raises(AccessError, match="is more than account lin may do"):
        popmi("token", "lin", "--name", "ci", "--role", "admin")


def test_the_accounts_of_a_database_need_no_home(popmi, database, tmp_path):
    popmi("add", "lin", "--password-file", "-", said=GOOD, place=tmp_path / "none", POPMI_DATABASE=database)
    assert "lin" in popmi("list", "--database", database, place=tmp_path / "none")
    with pytest.raises(SetupError, match="is no server's home"):
        popmi("list", place=tmp_path / "none")
