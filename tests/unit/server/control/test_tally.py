"""Refused keys: counted by the gateway, which reaches no log, written down by the keeper, once a minute at most."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from fake_superlink import PULL, FakeSuperLink, ask_raw, behind

from server.control import tally
from server.control.tally import EVENT, LARGEST, RefusalWatch, Tally


@pytest.fixture
def file(home):
    return home.refused


@pytest.fixture
def watch(home, file, clock):
    return RefusalWatch(home, file, clock=clock)


def told(file, begun=5.0, **statuses):
    file.write_text(json.dumps({"begun": begun, "statuses": statuses}))


def lines(audited):
    return audited().count(EVENT)


def test_the_gateway_tells_the_status_of_every_refusal():
    seen = []
    for status in (401, 403, 200, 503):
        ask_raw(behind(FakeSuperLink(status), counted=seen.append), PULL.encode())
    ask_raw(behind(FakeSuperLink(), counted=seen.append), b"/v1/control/list-runs")
    assert seen == [401, 403, 404]


def test_refused_keys_are_gathered_into_one_file(file, monkeypatch):
    monkeypatch.setattr(tally, "WRITE_SECONDS", 0.0)

    async def refuse():
        counting = Tally(file)
        for status in (401, 404, 401, 403, 413):
            counting.add(status)
        assert not file.exists()
        await asyncio.sleep(0.05)
        first = json.loads(file.read_text())
        counting.add(401)
        await asyncio.sleep(0.05)
        return counting.begun, first, json.loads(file.read_text())

    begun, first, second = asyncio.run(refuse())
    assert first == {"begun": begun, "statuses": {"401": 2, "403": 1}}
    assert second["statuses"] == {"401": 3, "403": 1}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_file_that_cannot_be_written_is_told_and_ends_nothing(tmp_path, caplog):
    Tally(tmp_path / "nowhere" / "refused.json").write()
    assert "cannot be counted" in caplog.text


def test_what_was_refused_becomes_one_line_a_minute(watch, file, clock, audited):
    watch.look()
    told(file, **{"401": 3})
    watch.look()
    assert audited(EVENT)["statuses"] == {"401": 3}
    for count in (10, 20, 30):
        told(file, **{"401": count, "403": 1})
        watch.look()
        clock.now += 10
    assert lines(audited) == 1
    clock.now += 30
    watch.look()
    watch.look()
    assert (lines(audited), audited(EVENT)["statuses"]) == (2, {"401": 27, "403": 1})
    clock.now += 600
    watch.look()
    assert lines(audited) == 2


def test_a_gateway_that_was_started_anew_counts_from_nought(watch, file, clock, audited):
    told(file, **{"401": 30})
    watch.look()
    clock.now += 60
    told(file, begun=6.0, **{"401": 2})
    watch.look()
    assert audited(EVENT)["statuses"] == {"401": 2}


def test_a_keeper_that_was_started_anew_writes_nothing_twice_and_misses_nothing(watch, home, file, clock, audited):
    told(file, **{"401": 30})
    watch.look()
    told(file, **{"401": 31})
    again = RefusalWatch(home, file, clock=clock)
    again.look()
    assert (lines(audited), audited(EVENT)["statuses"]) == (2, {"401": 1})
    RefusalWatch(home, file, clock=clock).look()
    assert lines(audited) == 2


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"begun": 1}', '{"begun": 1, "statuses": {"401": -1}}', '{"begun": 1, "statuses": {"x\\u001b": 1}}',
     '{"begun": 1, "statuses": {}, "more": 1}', " " * LARGEST + '{"begun": 1, "statuses": {"401": 1}}'],
)  # fmt: skip
def test_whatever_else_the_gateway_writes_there_is_not_believed(watch, file, audited, text):
    file.write_text(text)
    watch.look()
    assert lines(audited) == 0


def test_neither_a_pipe_nor_a_link_holds_the_keeper_up(watch, file, audited, tmp_path):
    os.mkfifo(file)
    watch.look()
    file.unlink()
    told(tmp_path / "elsewhere", **{"401": 1})
    file.symlink_to(tmp_path / "elsewhere")
    watch.look()
    assert lines(audited) == 0


def test_a_damaged_log_does_not_keep_the_keeper_from_writing_on(watch, home, file, audited):
    home.note(EVENT, statuses={"401": 1})
    told(file, **{"401": 3})
    watch.look()
    assert audited(EVENT)["statuses"] == {"401": 3}
    whole = home.audit_file.read_text()
    home.audit_file.write_text("no entry\n" + whole)
    RefusalWatch(home, file).look()
    assert home.audit_file.read_text().count(f'"{EVENT}"') == 3


def test_the_keeper_looks_at_what_the_gateway_counted(keeper, home, audited):
    told(home.refused, **{"401": 1})
    keeper.look()
    assert lines(audited) == 1
