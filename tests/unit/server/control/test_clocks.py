"""How far sites' clocks are off: measured at the gateway, read by the keeper."""

from __future__ import annotations

import asyncio
import datetime
import json
import os

import pytest
from fake_superlink import PULL, FakeSuperLink, ask_raw, behind
from signed_requests import new_key, raw, signed

from popmi_core.deployment.enrolment import fingerprint
from server.control import clocks
from server.control.clocks import Clocks, read_clocks

KEY = "SHA256:" + "a" * 43


def at(seconds):
    return datetime.datetime.fromtimestamp(1000.0 + seconds, datetime.UTC).isoformat()


def written(path, *heard):
    """Have the gateway hear of keys and times, and write its file."""

    async def hear():
        watch = Clocks(path, clock=lambda: 1000.0)
        for key, signed_at in heard:
            watch.heard(key, signed_at)
        watch.write()

    asyncio.run(hear())
    return read_clocks(path)


def test_a_clock_that_is_ahead_or_behind_is_measured_by_key(tmp_path):
    other = "SHA256:" + "b" * 43
    found = written(tmp_path / "clocks.json", (KEY, at(4.25)), (other, at(-90)))
    assert {key: item.skew for key, item in found.items()} == {KEY: 4.25, other: -90.0}
    assert found[KEY].time == 1000.0


@pytest.mark.parametrize("told", ["", "yesterday", "2026-01-01T00:00:00"])
def test_what_is_no_time_with_a_zone_is_left_out(tmp_path, told):
    assert written(tmp_path / "clocks.json", (KEY, told)) == {}


def test_only_what_the_superlink_took_is_believed():
    key, told = new_key(), []
    for status in (401, 403, 503, 200):
        ask_raw(
            behind(FakeSuperLink(status), heard=lambda *one: told.append(one)), PULL.encode(), headers=raw(signed(key))
        )
    ask_raw(behind(FakeSuperLink(), heard=lambda *one: told.append(one)), PULL.encode())
    ((print_, signed_at),) = told
    assert print_.startswith("SHA256:")
    assert datetime.datetime.fromisoformat(signed_at).tzinfo is not None


def test_the_fingerprint_is_the_one_of_the_registry():
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key, told = new_key(), []
    ask_raw(behind(FakeSuperLink(), heard=lambda *one: told.append(one[0])), PULL.encode(), headers=raw(signed(key)))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    assert told == [fingerprint(public)]


def test_the_file_is_written_after_a_while_and_forgets_the_oldest(tmp_path, monkeypatch):
    monkeypatch.setattr(clocks, "WRITE_SECONDS", 0.0)
    monkeypatch.setattr(clocks, "MOST_KEYS", 2)

    async def hear():
        watch = Clocks(tmp_path / "clocks.json", clock=lambda: 1000.0)
        for letter in "abc":
            watch.heard("SHA256:" + letter * 43, at(0))
        await asyncio.sleep(0.05)

    asyncio.run(hear())
    assert [key[7] for key in read_clocks(tmp_path / "clocks.json")] == ["b", "c"]


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path, caplog):
    Clocks(tmp_path / "nowhere" / "clocks.json").write()
    assert "clocks cannot be told" in caplog.text


def test_what_cannot_be_believed_is_no_clock(tmp_path):
    path = tmp_path / "clocks.json"
    assert read_clocks(path) == {}
    for text in (
        "",
        "[]",
        json.dumps({"clocks": {"me": {"skew": 1, "time": 1}}}),
        '{"clocks": {"' + KEY + '": {"skew": NaN}}}',
    ):
        path.write_text(text)
        assert read_clocks(path) == {}
    path.unlink()
    os.mkfifo(path)
    assert read_clocks(path) == {}
    path.unlink()
    (tmp_path / "elsewhere").write_text('{"clocks": {}}')
    path.symlink_to(tmp_path / "elsewhere")
    assert read_clocks(path) == {}
