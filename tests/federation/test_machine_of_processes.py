"""The benchmarks' federation of processes, its light sites, and what a broken site sends to a real server app."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import pytest

from client.app import app as client_app

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch):
    """Import a module of the fault drill or of the load study."""

    def load(folder, module):
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "federation"))
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / folder))
        monkeypatch.delitem(sys.modules, module, raising=False)
        return importlib.import_module(module)

    return load


def test_a_broken_site_s_faults_are_all_quarantined_and_the_rounds_go_on(federation, study):
    broken, payloads = study("faults", "broken_site"), study("faults", "payloads")
    plan = federation.plan("payloads", rounds=1 + -(-len(broken.FAULTS) // 2), strategy="fedavg")
    federation.run(plan, broken.Broken(client_app))
    with federation.read(plan) as reader:
        rows = [row for row in reader.sites(1) if row.phase == "train"]
        assert {row.outcome for row in reader.rounds(1)} == {"ok"}
    sent = {broken.place_of(row.site, row.server_round): row for row in rows}
    for place, (case, what, _) in enumerate(broken.FAULTS):
        reason = sent[place].reason or ""
        assert sent[place].outcome == "quarantined", f"{what}: {sent[place].outcome}"
        assert any(word in reason for word in payloads.SAID[case].split("|")), reason
    assert not payloads.PICKLE_OPENED.exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_federation_of_processes_goes_on_after_kills_and_leaves_nothing_behind(tmp_path, study):
    machine_of, stage_of = study("federation", "machine"), study("faults", "stage")
    with machine_of.Machine(tmp_path, {"phantom_slide": "phantom:phantom_slide"}, stage_of.LIGHT) as machine:
        machine.set_up()
        machine.all_up()
        machine.begin("run", {"rounds": 3})
        machine.until(lambda: machine.done("run") >= 1, "the first round", 600)
        for part in ("gateway", "phantom_slide gate"):
            assert machine.kill(part) is not None
        machine.until(lambda: machine.ended("run"), "the end", 900)
        assert machine.ended("run") == "finished"
        assert sorted(machine.hashes("run")) == [1, 2, 3]
        assert machine.status()["runs"][0]["state"] == "finished"
    assert list(machine.everything()) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_light_sites_bear_a_real_server_s_rounds(study):
    row = study("federation", "load").loaded("popmi_vit_micro", 3, 1, 600.0)
    assert row["status"] == "finished"
    assert row["outcomes"] == {"ok": 3}
    assert all(row["peaks"][part] > 10 for part in ("superlink", "server app", "gateway"))


@pytest.mark.slow
def test_a_slow_line_delays_what_passes(study, tmp_path):
    import asyncio

    slowline = study("federation", "slowline")
    there, here = study("federation", "machine").free_ports(2)

    async def echo(reader, writer):
        writer.write(await reader.read(100))
        await writer.drain()
        writer.close()

    async def asked():
        server = await asyncio.start_server(echo, "127.0.0.1", there)
        line = asyncio.create_task(slowline.serve(here, there, bytes_per_second=1e6, delay=0.2, loss=0.0))
        await asyncio.sleep(0.2)
        reader, writer = await asyncio.open_connection("127.0.0.1", here)
        begun = time.monotonic()
        writer.write(b"hello")
        answer, seconds = await reader.read(100), time.monotonic() - begun
        line.cancel()
        server.close()
        return answer, seconds

    answer, seconds = asyncio.run(asked())
    assert answer == b"hello"
    assert seconds >= 0.4
