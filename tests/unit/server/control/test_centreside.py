"""The keeper's threads at the centre: a centre that is away never holds the keeper up."""

from __future__ import annotations

import threading
import time

import pytest

from server.centre import accounts, open_centre
from server.centre.board import read_board
from server.centre.orders import find, place
from server.centre.people import Doer
from server.control import centreside
from server.control.centreside import at_the_centre


@pytest.fixture(autouse=True)
def _on_this_machine(monkeypatch):
    monkeypatch.delenv("POPMI_DATABASE", raising=False)
    monkeypatch.setattr("server.control.status.gateway_answers", lambda *_: True)


def until(found):
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_orders_are_carried_out_and_the_board_is_written_while_the_keeper_runs(invited, control):
    engine, ended = open_centre(invited.folder / "centre.sqlite"), threading.Event()
    accounts.add(engine, "anna", "operator", None, Doer("root", "terminal"))
    number = place(engine, "exclude", {"site": "charite", "reason": "x"}, who="anna", via="page")
    with at_the_centre(invited, ended, control=lambda: control, code=lambda: "c", every=0.02):
        until(lambda: find(engine, number).state == "done" and read_board(engine, "audit") is not None)
    assert ended.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name in ("orders", "board")]


def test_a_centre_that_comes_late_is_told_once_and_found(invited, control, caplog, monkeypatch):
    (invited.folder / "centre.sqlite").mkdir()
    with at_the_centre(invited, threading.Event(), control=lambda: control, code=lambda: "c", every=0.02):
        until(lambda: "centre.sqlite cannot be opened" in caplog.text)
        time.sleep(0.2)
        (invited.folder / "centre.sqlite").rmdir()
        until(lambda: "orders: well again" in caplog.text and "board: well again" in caplog.text)
    assert caplog.text.count("orders: centre") == 1


def test_an_unforeseen_error_ends_no_thread(invited, control, caplog, monkeypatch):
    class Falls(centreside.Carrier):
        fell = 0

        def look(self):
            Falls.fell += 1
            raise ZeroDivisionError

    monkeypatch.setattr(centreside, "Carrier", Falls)
    with at_the_centre(invited, threading.Event(), control=lambda: control, code=lambda: "c", every=0.02):
        until(lambda: Falls.fell > 3)
    assert caplog.text.count("Traceback") == 1
