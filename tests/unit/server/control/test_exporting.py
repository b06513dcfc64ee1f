"""ONNX files that were ordered are made in processes of their own (server/control/exporting.py)."""

from __future__ import annotations

import sys
import time

import pytest

from popmi_core.errors import SetupError
from server.control import exporting
from server.control.exporting import MOST_SECONDS, Exports
from server.control.home import Asker

ANNA = Asker("anna", "page", 3)


@pytest.fixture(autouse=True)
def _any_model(monkeypatch):
    monkeypatch.setattr(exporting, "model_digest", lambda *_: "a" * 64)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def exports(home, code, clock=None):
    return Exports(home, command=lambda run, number: [sys.executable, "-c", code], clock=clock or Clock())


def outcome(made):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if found := list(made.ended()):
            return found
        time.sleep(0.02)
    raise AssertionError("it never ended")


def test_an_export_that_went_well_is_told_and_its_order_in_the_log(home, audited):
    made = exports(home, "print('done')")
    made.begin(3, "first", 2, by=ANNA)
    assert list(made.numbers) == [3]
    assert outcome(made) == [(3, "run first, round 2: the ONNX file is made", True)]
    assert list(made.numbers) == []
    told = audited("model.onnx_ordered")
    assert (told["who"], told["order"], told["run"], told["round"]) == ("anna", 3, "first", 2)
    assert not (home.processes / "onnx-3.log").exists()


def test_one_that_failed_is_told_with_its_words(home):
    made = exports(home, "import sys; sys.exit('the model\\nis damaged')")
    made.begin(3, "first", 2, by=ANNA)
    assert outcome(made) == [(3, "run first, round 2: the model is damaged", False)]
    made = exports(home, "raise SystemExit(7)")
    made.begin(3, "first", 2, by=ANNA)
    assert outcome(made)[0][1:] == ("run first, round 2: ended with 7", False)


def test_one_that_takes_too_long_is_ended(home):
    clock = Clock()
    made = exports(home, "import time; time.sleep(600)", clock)
    made.begin(3, "first", 2, by=ANNA)
    assert list(made.ended()) == []
    clock.now = MOST_SECONDS
    ((_, said, well),) = made.ended()
    assert (well, "no ONNX file after 30 minutes" in said) == (False, True)


def test_two_are_made_at_once_and_end_with_the_keeper(home):
    made = exports(home, "import time; time.sleep(600)")
    for number in (3, 4):
        made.begin(number, "first", number, by=ANNA)
    with pytest.raises(SetupError, match="2 exports are being made already"):
        made.begin(5, "first", 5, by=ANNA)
    made.close()
    assert list(made.numbers) == []


def test_one_that_cannot_be_begun_is_told(home):
    made = Exports(home, command=lambda *_: [str(home.folder / "nothing")])
    with pytest.raises(SetupError, match="the export cannot be begun: No such file"):
        made.begin(3, "first", 2, by=ANNA)


def test_the_command_is_the_operator_s_own(home):
    assert Exports(home)._onnx("first", 2)[1:] == ["server", "onnx", "first", "2", "--home", str(home.folder)]
