"""A real node and gate against a real SuperLink: code waits, is approved, runs; what is killed comes back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hospital_proxy import HospitalProxy
from site_parts import Authority, make_home, make_kit, small_bundle
from typer.testing import CliRunner

from client.site.approval import Approvals
from client.site.commands import app as site_command
from client.site.home import SiteHome
from client.site.network import check_network
from client.site.run import free_port
from popmi_core.deployment import code_hash

BIN = Path(sys.executable).parent
SITE_RUN = "import sys; from popmi_core.cli.main import app; sys.argv[1:1] = ['site', 'run']; app()"
ON_IMPORT = """
import os, pathlib, time
pathlib.Path(os.environ["SITE_TEST_MARK"]).write_text("imported")
"""
ROUNDS = """
import json, os, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    number = 0
    while True:
        while not list(grid.get_node_ids()):
            time.sleep(0.2)
        number += 1
        asked = json.dumps({"run": "r", "server_round": number})
        content = RecordDict({"instruction": ConfigRecord({"json": asked})})
        sent = [Message(content, dst_node_id=node, message_type="train") for node in grid.get_node_ids()]
        for reply in grid.send_and_receive(sent, timeout=90):
            told = {"error": reply.error.reason} if reply.has_error() else {
                name: record["json"] for name, record in reply.content.config_records.items()}
            with open(os.environ["SITE_TEST_REPLIES"], "a") as file:
                file.write(json.dumps({"round": number, **told}) + "\\n")
"""


def bundle() -> dict[str, bytes]:
    content = small_bundle(ON_IMPORT)
    slow = content["client/app.py"].replace(b"    return Message", b"    time.sleep(1.0)\n    return Message")
    return {**content, "client/app.py": slow, "rounds/__init__.py": b"", "rounds/app.py": ROUNDS.encode()}


class Stage:
    """A server with one run going, and one site; everything it starts ends with it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, list[subprocess.Popen]()
        self.replies, self.mark = folder / "replies.jsonl", folder / "imported"
        self.env = {
            **os.environ,
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "SITE_TEST_REPLIES": str(self.replies),
            "SITE_TEST_MARK": str(self.mark),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }

    def start(self, name: str, *command: str) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("ab") as out:
            self.running.append(
                subprocess.Popen(command, env=self.env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
            )
        return self.running[-1]

    def flwr(self, *command: str) -> str:
        done = subprocess.run([str(BIN / "flwr"), *command], env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def serve(self, host: str = "localhost") -> SiteHome:
        """Start the server, enrol and register a site that knows it as ``host``; return the site's folder."""
        port, authority = free_port(), Authority()
        certificate, key = authority.sign(self.folder / "pki", host=host, also=("localhost",))
        ca = self.folder / "pki" / "ca.pem"
        ca.write_text(authority.pem)
        home = make_home(self.folder / "site", make_kit(endpoint=f"{host}:{port}", ca_pem=authority.pem))
        self.start(
            "superlink",
            *(str(BIN / "flower-superlink"), "--port", str(port), "--enable-supernode-auth"),
            *("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key), "--ssl-ca-certfile", str(ca)),
            "--disable-runtime-dependency-installation",
        )
        (self.folder / "flower").mkdir(exist_ok=True)
        (self.folder / "flower" / "config.toml").write_text(
            f'[superlink]\ndefault = "local"\n[superlink.local]\naddress = "localhost:{port}"\n'
            f'root-certificates = "{ca}"\n'
        )
        until(lambda: "Uvicorn running" in (self.folder / "superlink.log").read_text(), "the server")
        self.flwr("supernode", "register", str(home.public_key), "local")
        code = self.folder / "app"
        for path, content in bundle().items():
            (code / path).parent.mkdir(parents=True, exist_ok=True)
            (code / path).write_bytes(content)
        self.flwr("run", str(code), "local")
        return home

    def told(self) -> list[dict]:
        return [json.loads(line) for line in self.replies.read_text().splitlines()] if self.replies.exists() else []

    def end(self) -> None:
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            try:
                process.wait(60)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.end()


def until(true: Callable[[], object], what: str, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what} did not come in {seconds} s"
        time.sleep(0.2)


def process_of(home: SiteHome, name: str) -> int | None:
    told = json.loads((home.processes / "processes.json").read_text())
    return told[name]["process"]


def children(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def good(told: dict) -> bool:
    return "instruction" in told


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_code_waits_runs_once_approved_and_goes_on_after_kills(stage):
    home = stage.serve()
    code = code_hash(bundle())
    running = stage.start("site", sys.executable, "-c", SITE_RUN, "--home", str(home.folder))

    # Unapproved: the server is told, nothing was imported, the bundle lies there to be looked at.
    until(stage.told, "an answer")
    report = json.loads(stage.told()[0]["report"])
    assert report["waiting"]
    assert report["error"] == f"waiting for approval of code {code[:12]}: at the site, `popmi site approve`"
    assert (report["run"], report["site"]) == ("r", "north")
    assert not stage.mark.exists()
    assert Approvals(home).waiting() == [code]

    # Approved: it runs, without a restart of anything.
    done = CliRunner().invoke(site_command, ["approve", "--yes", "--home", str(home.folder)])
    assert done.exit_code == 0, done.output
    until(lambda: any(map(good, stage.told())), "a trained answer")
    assert stage.mark.exists()

    # The worker is killed in the middle: the server hears of it at once, the next round works.
    gate = process_of(home, "gate")
    before = len(stage.told())
    until(lambda: busy(home, gate), "a task in hand")
    # The log tells of the task a moment before the worker has it; one killed before that would be replaced at once.
    time.sleep(0.3)
    os.kill(children(gate)[0], signal.SIGKILL)
    until(lambda: any("worker was lost" in str(told) for told in stage.told()[before:]), "the worker's loss")
    before = len(stage.told())
    until(lambda: any(map(good, stage.told()[before:])), "an answer after the worker's loss")
    assert process_of(home, "gate") == gate

    # The gate itself is killed in the middle: the node gives the task up, the next gate goes on.
    before = len(stage.told())
    until(lambda: busy(home, gate), "a task in hand")
    worker = children(gate)[0]
    os.kill(gate, signal.SIGKILL)
    until(lambda: any(map(good, stage.told()[before + 1 :])), "an answer after the gate's end")
    assert not Path(f"/proc/{worker}").exists()

    # The whole site is killed: nothing is left over, and it comes back.
    node = process_of(home, "node")
    os.kill(running.pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{node}").exists(), "the node's end")
    assert CliRunner().invoke(site_command, ["status", "--home", str(home.folder)]).exit_code == 1
    stage.start("site", sys.executable, "-c", SITE_RUN, "--home", str(home.folder))
    before = len(stage.told())
    until(lambda: any(map(good, stage.told()[before:])), "an answer after the whole site's end")
    assert CliRunner().invoke(site_command, ["status", "--home", str(home.folder)]).exit_code == 0
    assert CliRunner().invoke(site_command, ["audit", "verify", "--home", str(home.folder)]).exit_code == 0


def busy(home: SiteHome, gate: int) -> bool:
    last = list(home.audit.entries())[-1]
    return last.event == "task.started" and bool(children(gate))


FAR = "centre.popmi.test"
"""A host that no name server knows (RFC 6761)."""


def way_out(home: SiteHome) -> dict[str, str]:
    """Return what the doctor finds on the way to the server: state by name."""
    endpoint, ca = home.config().endpoint, home.ca.read_text()
    return {finding.name: finding.state for finding in check_network(endpoint, ca, None, time.time)}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_site_works_through_a_proxy_and_a_device_that_opens_tls_once_it_trusts_that_too(stage, monkeypatch):
    home, hospital = stage.serve(FAR), Authority("hospital")
    port = int(home.config().endpoint.rpartition(":")[2])
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(*hospital.sign(stage.folder / "device", host=FAR))
    trusting = ssl.create_default_context(cafile=str(stage.folder / "pki" / "ca.pem"))
    with HospitalProxy(FAR, ("127.0.0.1", port), shown, trusting) as proxy:
        for name, value in {
            "HTTPS_PROXY": proxy.address,
            "https_proxy": proxy.address,
            "NO_PROXY": "",
            "no_proxy": "",
        }.items():
            monkeypatch.setenv(name, value)
            stage.env[name] = value

        # The device opens TLS and nobody told the site whose it is: said, and nothing is sent.
        proxy.open_tls(True)
        assert way_out(home)["certificate chain"] == "failed"
        assert proxy.read == []

        # Two authorities; the server's own is the second.
        home.ca.write_text(hospital.pem + home.ca.read_text())
        proxy.open_tls(False)
        assert {way_out(home)[step] for step in ("proxy", "DNS", "port", "certificate chain")} == {"ok"}
        stage.start("site", sys.executable, "-c", SITE_RUN, "--home", str(home.folder))
        until(stage.told, "an answer through the proxy")
        assert set(proxy.connected) == {f"{FAR}:{port}"}
        assert proxy.read == []

        # From now on the device opens TLS: the node goes on by itself.
        proxy.open_tls(True)
        assert way_out(home)["certificate chain"] == "ok"
        before = len(stage.told())
        until(lambda: len(stage.told()) > before + 1, "answers through the device")
        assert "POST /v1/fleet/push-messages HTTP/1.1" in proxy.read
