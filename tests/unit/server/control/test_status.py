"""The status: honest about what answers, what is wanted and what is."""

from __future__ import annotations

import json
import os
import shutil
import time

import httpx
import pytest
from rich.console import Console

from server.control.operate import start, stop
from server.control.plans import write_code_hash
from server.control.showing import print_sites, print_status, sites_as_json
from server.control.sites import SiteView, add_site, view_sites
from server.control.status import gateway_answers, read_processes, server_status

CODE = "d" * 64
BEFORE = "e" * 64
"""The code that a run was started with, before the server was upgraded."""


@pytest.fixture
def home(invited):
    return invited


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Have the gateway answer, without a network."""
    asked = []

    def get(url, **_):
        asked.append(url)
        return httpx.Response(200, text="ok")

    monkeypatch.setattr(httpx, "get", get)
    return asked


@pytest.fixture
def recorded(home, believable):
    """Return a function that puts a run into the home, as far as it is told."""

    def put(name="first", *, wanted="going", **described):
        start(home, None, name)
        believable.write_run(home.run_folder(name) / "record.sqlite", name=name, **described)
        if wanted == "stopped":
            stop(home)

    return put


def test_a_server_without_a_run(home, control):
    status = server_status(home, control, CODE)
    assert (status.project, status.superlink, status.gateway, status.runs) == ("Melanoma", True, True, ())
    assert (status.certificate_days, status.authority_days) == (364, 3649)
    assert status.trouble == ()
    assert json.loads(status.as_json())["code_hash"] == CODE


def test_what_does_not_answer_is_trouble(home, control, monkeypatch):
    def away(url, **_):
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx, "get", away)
    control.away = True
    status = server_status(home, control, CODE)
    assert (status.superlink, status.gateway) == (False, False)
    assert "the SuperLink does not answer" in status.trouble[0]
    assert "no site can reach this server" in status.trouble[1]


def test_the_gateway_is_asked_here_where_its_address_does_not_lead_back(home, monkeypatch):
    asked = []

    def get(url, **_):
        asked.append(url)
        if "127.0.0.1" not in url:
            raise httpx.ConnectError("no way")
        return httpx.Response(200, text="ok")

    monkeypatch.setattr(httpx, "get", get)
    assert gateway_answers(home, "popmi.example.org:8443")
    assert asked == ["https://popmi.example.org:8443/health", "https://127.0.0.1:8443/health"]


def test_something_else_at_the_gateways_port_is_no_gateway(home, monkeypatch):
    monkeypatch.setattr(httpx, "get", lambda *_, **__: httpx.Response(200, text="<html>"))
    assert not gateway_answers(home, "popmi.example.org:8443")


def test_a_wanted_run_waits_with_the_reason(home, control):
    start(home, None, "first")
    (run,) = server_status(home, control, CODE).runs
    assert (run.wanted, run.state, run.detail) == ("going", "waiting", "the keeper has not started it yet")
    control.start_run("first", b"")
    control.end(1, "finished:failed", "no server app")
    (run,) = server_status(home, control, CODE).runs
    assert run.detail == "finished:failed no server app"
    control.away = True
    (run,) = server_status(home, control, CODE).runs
    assert run.detail == "the SuperLink is away"
    stop(home)
    (run,) = server_status(home, control, CODE).runs
    assert (run.wanted, run.state) == ("stopped", "not begun")


def test_a_finished_run_tells_its_rounds_and_its_sites(home, control, recorded):
    recorded(rounds=3)
    status = server_status(home, control, CODE)
    (run,) = status.runs
    assert (run.rounds_done, run.rounds_planned) == (3, 3)
    assert run.state.startswith("finished")
    assert run.sites
    assert {site.server_round for site in run.sites} <= {2, 3}


def test_a_run_that_was_killed_is_interrupted_and_not_running(home, control, recorded, believable):
    start(home, None, "first")
    from server.store import RunWriter

    writer = RunWriter(home.run_folder("first") / "record.sqlite", heartbeat=0)
    writer.start_run(
        "first", config={}, environment={}, strategy="opm", seed=0, rounds_planned=3, data_name="d", phantom=False,
        classes=["mel", "nv"], sites=["charite"],
    )  # fmt: skip
    status = server_status(home, control, CODE, now=time.time() + 100)
    assert status.runs[0].state == "interrupted"
    assert "the keeper starts it again" in status.trouble[0]
    writer.finish_run("stopped", "interrupted by the operator")
    assert server_status(home, control, CODE).runs[0].state == "interrupted"
    stop(home)
    assert server_status(home, control, CODE).runs[0].state == "stopped"


def test_a_site_that_waits_for_approval_is_seen(home, control):
    start(home, None, "first")
    from server.store import RunWriter

    writer = RunWriter(home.run_folder("first") / "record.sqlite", heartbeat=0)
    writer.start_run(
        "first", config={}, environment={}, strategy="opm", seed=0, rounds_planned=3, data_name="d", phantom=False,
        classes=["mel", "nv"], sites=["charite"],
    )  # fmt: skip
    writer.start_round(1)
    write_code_hash(home, "first", BEFORE)
    reason = f"waiting for approval of code {BEFORE[:12]}: at the site, `popmi site approve`"
    writer.record_site(1, "charite", phase="train", outcome="failed", reason=reason)
    status = server_status(home, control, CODE)
    assert status.waiting == ("charite",)
    # What the site compares, not what was installed since.
    assert f"site charite is waiting for approval of code {BEFORE[:12]}" in status.trouble
    assert CODE[:12] not in " ".join(status.trouble)
    told = json.loads(status.as_json())
    assert (told["code_hash"], told["runs"][0]["code_hash"]) == (CODE, BEFORE)


def test_the_time_of_the_first_start_with_a_code_is_told(home, control):
    start(home, None, "first")
    assert server_status(home, control, CODE).runs[0].code_since is None
    assert not write_code_hash(home, "first", BEFORE)
    since = server_status(home, control, CODE).runs[0].code_since
    # A start with the same code is no news, one with another is.
    assert not write_code_hash(home, "first", BEFORE)
    assert server_status(home, control, CODE).runs[0].code_since == since
    assert write_code_hash(home, "first", CODE)
    assert server_status(home, control, CODE).runs[0].code_since > since
    # An earlier version wrote no time: it is known from the next start on, and that start brings no other code.
    (home.run_folder("first") / "code.json").write_text(json.dumps({"code_hash": CODE}))
    assert server_status(home, control, CODE).runs[0].code_since is None
    assert not write_code_hash(home, "first", CODE)
    assert server_status(home, control, CODE).runs[0].code_since > since


def test_a_record_that_cannot_be_read_does_not_hide_the_rest(home, control):
    start(home, None, "first")
    (home.run_folder("first") / "record.sqlite").write_bytes(b"no database at all, however long it is")
    status = server_status(home, control, CODE)
    assert status.runs[0].state == "unknown"
    assert any("run first: unknown" in text for text in status.trouble)


def test_a_process_that_is_gone_is_not_shown_as_running(home, control):
    told = {
        "gateway": {"process": os.getpid(), "starts": 1, "exit_code": None},
        "keeper": {"process": 2**22 + 1, "starts": 4, "exit_code": 0},
    }
    (home.processes / "processes.json").write_text(json.dumps(told))
    found = read_processes(home)
    assert (found["gateway"]["process"], found["keeper"]["process"]) == (os.getpid(), None)
    assert "process keeper is not running" in server_status(home, control, CODE).trouble
    (home.processes / "processes.json").write_text("{")
    assert read_processes(home) == {}


def test_another_users_process_lives(home, monkeypatch):
    def forbidden(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)
    (home.processes / "processes.json").write_text('{"a": {"process": 7, "starts": 1, "exit_code": null}}')
    assert read_processes(home)["a"]["process"] == 7


def test_a_certificate_about_to_end_and_a_full_disk_are_trouble(home, control, monkeypatch):
    monkeypatch.setattr("server.control.status.days_left", lambda _: 12)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1_000_000_000))
    trouble = " ".join(server_status(home, control, CODE).trouble)
    assert "the certificate ends in 12 days" in trouble
    assert "the authority ends in 12 days" in trouble
    assert "the disk has 1.0 GB left" in trouble


def printed(what, *told):
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    what(*told, console=console)
    return console.export_text()


def test_the_status_is_read_at_a_terminal(home, control, recorded):
    recorded(rounds=3)
    control.away = True
    (home.processes / "processes.json").write_text('{"keeper": {"process": null, "starts": 2, "exit_code": 0}}')
    text = printed(print_status, server_status(home, control, CODE))
    assert f"Melanoma at popmi.example.org:8443, installed code {CODE[:12]}" in text
    assert "SuperLink does not answer, gateway answers" in text
    assert "keeper: not running, started 2 time(s)" in text
    assert "run first (wanted: going): finished" in text
    assert "round 3 of 3" in text


def test_sites_are_read_at_a_terminal_and_a_fingerprint_is_never_cut(home, control):
    add_site(home, "basel")
    views = [
        *view_sites(home, control),
        SiteView("charite", "enrolled", 0.0, "SHA256:" + "x" * 43, 2**63, True, time.time() - 5, "[red]note"),
    ]
    text = printed(print_sites, views, 300)
    assert "SHA256:" + "x" * 43 in text
    assert str(2**63) in text
    assert "5 s ago" in text
    assert "[red]note" in text
    assert "300 days" in text
    told = json.loads(sites_as_json(views, 300))
    assert (told["certificate_days"], told["sites"][0]["name"], told["sites"][-1]["online"]) == (300, "basel", True)


def test_a_run_is_shown_with_the_code_it_was_started_with(home, control):
    start(home, None, "first")
    assert "\n  code" not in printed(print_status, server_status(home, control, CODE))
    write_code_hash(home, "first", CODE)
    assert f"\n  code {CODE[:12]}\n" in printed(print_status, server_status(home, control, CODE))
    write_code_hash(home, "first", BEFORE)
    after_upgrade = f"\n  code {BEFORE[:12]}; its next start takes the installed {CODE[:12]}\n"
    assert after_upgrade in printed(print_status, server_status(home, control, CODE))
    stop(home)
    assert f"\n  code {BEFORE[:12]}\n" in printed(print_status, server_status(home, control, CODE))


def test_a_run_that_ended_takes_no_other_code(home, control, recorded):
    recorded(rounds=3)
    write_code_hash(home, "first", BEFORE)
    assert "its next start" not in printed(print_status, server_status(home, control, CODE))
