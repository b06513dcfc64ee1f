"""A real server on this machine, and what one who stands outside gets from it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sqlite3
import ssl
import subprocess
import time
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, GetNodesRequest
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from signed_requests import signed

from popmi_core.deployment import Enrolment
from popmi_core.deployment.enrolment import read_enrolment
from server.control.gateway import PASSED
from server.control.home import ServerHome
from server.control.superlink import programs

ROOT = Path(__file__).parents[4]
FOREVER = 300.0


def wait_for(what, said):
    """Return what a function tells as soon as it is true."""
    until = time.monotonic() + FOREVER
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.3)
    raise AssertionError(f"never: {said}")


def free_ports(count):
    taken = [socket.socket() for _ in range(count)]
    for item in taken:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in taken]
    for item in taken:
        item.close()
    return ports


class RealServer:
    """`popmi server up` in a folder, asked as its operator asks it."""

    def __init__(self, folder: Path) -> None:
        self.home = ServerHome(folder / "home")
        self.internal, self.public, self.pages = free_ports(3)
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), "POPMI_SERVER_HOME": str(self.home.folder)}
        self.env.pop("POPMI_DATABASE", None)

    def popmi(self, *words):
        command = [str(programs() / "popmi"), "server", *words]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=FOREVER, check=False)

    @contextmanager
    def up(self):
        self.popmi(
            "init", "--project", "P", "--endpoint", f"localhost:{self.public}", "--classes", "mel,nv",
            "--superlink", f"127.0.0.1:{self.internal}",
        )  # fmt: skip
        command = [
            str(programs() / "popmi"),
            "server",
            "up",
            "--host",
            "127.0.0.1",
            "--dashboard-port",
            str(self.pages),
        ]
        running = subprocess.Popen(command, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(self.superlink_answers, "the SuperLink answers")
            wait_for(lambda: self.outside("GET", "/health") == 200, "the gateway answers")
            yield self
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(FOREVER)

    def superlink_answers(self):
        return json.loads(self.popmi("status", "--json").stdout)["superlink"]

    def trusting(self):
        return ssl.create_default_context(cafile=str(self.home.ca))

    def outside(self, method, path, content=b"", also=None):
        """Return the status that one gets who has the authority's certificate and the headers `also`; 0: no answer."""
        address = f"https://localhost:{self.public}{path}"
        headers = {**({"content-type": PROTOBUF_MEDIA_TYPE} if method == "POST" else {}), **(also or {})}
        try:
            return httpx.request(
                method, address, content=content, headers=headers, verify=self.trusting(), trust_env=False, timeout=20
            ).status_code
        except httpx.TransportError:
            return 0

    def raw(self, target: bytes, more: bytes = b""):
        """Return the first line of the answer to a request whose target is sent byte by byte."""
        with (
            socket.create_connection(("localhost", self.public), timeout=20) as plain,
            self.trusting().wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            secured.sendall(
                b"POST " + target + b" HTTP/1.1\r\nHost: localhost\r\n" + more + b"Content-Length: 0\r\n\r\n"
            )
            return secured.recv(4096).split(b"\r\n")[0]

    def fleet(self, key):
        return FleetHttpClient.from_server_address(
            f"localhost:{self.public}",
            False,
            self.home.ca.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(key, key.public_key())],
        )

    def enrol(self, site, key, folder):
        assert self.popmi("add-site", site).returncode == 0
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        enrolment = Enrolment(project="P", site=site, public_key=public.decode())
        file = folder / f"{site}.json"
        file.write_text(enrolment.model_dump_json())
        done = self.popmi("confirm", str(file), "--fingerprint", enrolment.fingerprint)
        assert done.returncode == 0, done.stderr
        return self.home.sites()[site].node_id

    def task_token(self):
        """Return the token with which a server app that is at work shows its task, from the SuperLink's own file."""
        with closing(sqlite3.connect(f"file:{self.home.state}?mode=ro", uri=True)) as state:
            found = state.execute(
                "SELECT token FROM task WHERE token IS NOT NULL AND running_at IS NOT NULL"
            ).fetchone()
        return found and found[0]

    def inside(self, token):
        """Return a task's client at the SuperLink itself, which only the server's own processes reach."""
        interceptors = [RuntimeVersionHttpInterceptor("flwr-serverapp"), RuntimeTokenHttpInterceptor(token)]
        return RuntimeHttpClient.from_server_address(
            f"127.0.0.1:{self.internal}", False, self.home.ca.read_bytes(), interceptors=interceptors
        )

    def site_is_online(self, site):
        told = json.loads(self.popmi("sites", "--json").stdout)["sites"]
        return next(item["online"] for item in told if item["name"] == site)


def activate(fleet, key):
    return fleet.ActivateNode(
        ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=30.0)
    ).node_id


def refused(call):
    with pytest.raises(httpx.HTTPStatusError) as error:
        call()
    return error.value.response.status_code


def start_node(server, key, folder, port):
    """Start Flower's own node, as a site does."""
    (folder / "node.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    (folder / "secret").write_bytes(secrets.token_bytes(32))
    command = [
        str(programs() / "flower-supernode"), "--superlink", f"localhost:{server.public}",
        "--root-certificates", str(server.home.ca), "--auth-supernode-private-key", str(folder / "node.key"),
        "--isolation", "process", "--host", "127.0.0.1", "--port", str(port),
        "--superexec-auth-secret-file", str(folder / "secret"),
    ]  # fmt: skip
    env = {**server.env, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(folder)}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_who_stands_outside_gets_nothing_but_fleet_and_health(tmp_path):
    known, stranger, node_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(3))
    with RealServer(tmp_path).up() as server:
        # With the authority's certificate only.
        for path in ("/v1/control/list-runs", "/v1/control/register-node", "/v1/control/start-run", "/docs", "/"):
            assert server.outside("POST", path) == 404
            assert server.outside("GET", path) == 404
        for path in ("/v1/runtime/acquire-task", "/v1/runtime/pull-task-input", "/v1/fleet/register-node"):
            assert server.outside("POST", path) == 404
        for path in ("/v1/fleet/pull-messages", "/v1/fleet/get-fab", "/v1/fleet/activate-node"):
            assert server.outside("POST", path) == 401
        for target in (
            b"/v1/fleet/../control/list-runs",
            b"/v1/fleet/%2e%2e/control/list-runs",
            b"//v1/control/list-runs",
        ):
            assert server.raw(target) == b"HTTP/1.1 404 Not Found"
        assert server.raw(b"https://127.0.0.1/v1/control/list-runs") == b"HTTP/1.1 404 Not Found"

        # On the server itself, without the runner's secret.
        for secret in (secrets.token_bytes(32), None):
            protected = frozenset({"/flwr.proto.Runtime/AcquireTask"})
            signing = (
                []
                if secret is None
                else [SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=protected)]
            )
            with RuntimeHttpClient.from_server_address(
                f"127.0.0.1:{server.internal}", False, server.home.ca.read_bytes(), interceptors=signing
            ) as runtime:
                assert refused(lambda client=runtime: client.AcquireTask(AcquireTaskRequest())) == 401

        # Keys: a known one comes in, a stranger does not, nor one that speaks for another's node.
        node_id = server.enrol("charite", known, tmp_path)
        with server.fleet(known) as fleet, server.fleet(stranger) as strange:
            assert activate(fleet, known) == node_id
            pull = PullMessagesRequest(node=Node(node_id=node_id))
            assert not fleet.PullMessages(pull).messages_list
            assert refused(lambda: activate(strange, stranger)) == 412
            assert refused(lambda: activate(strange, known)) == 401
            assert refused(lambda: strange.PullMessages(pull)) == 401

            # The SuperLink is killed: sites are told to wait, it comes back, and the key is still good.
            told = json.loads((server.home.processes / "processes.json").read_text())
            os.kill(told["superlink"]["process"], signal.SIGKILL)
            wait_for(lambda: server.outside("POST", "/v1/fleet/get-run") == 503, "503 while the SuperLink is away")
            wait_for(server.superlink_answers, "the SuperLink is back")
            assert not fleet.PullMessages(pull).messages_list

            # Revoked: cut off at the next question.
            assert server.popmi("revoke", "charite", "--reason", "stolen").returncode == 0
            assert refused(lambda: fleet.PullMessages(pull)) == 401
        assert server.popmi("add-site", "charite").returncode == 0
        file = tmp_path / "charite.json"
        again = server.popmi("confirm", str(file), "--fingerprint", read_enrolment(file).fingerprint)
        assert again.returncode == 8
        assert "A key is never let in twice" in again.stderr

        # Flower's own node through the gateway, until its key is revoked.
        folder = tmp_path / "node"
        folder.mkdir()
        server.enrol("basel", node_key, tmp_path)
        node = start_node(server, node_key, folder, free_ports(1)[0])
        try:
            wait_for(lambda: server.site_is_online("basel"), "the node is online")
            server.popmi("revoke", "basel", "--reason", "test")
            node.wait(FOREVER)
        finally:
            node.kill()

        # A wanted run is started by the keeper; its code is what a site will be asked to approve.
        assert server.popmi("start", "--name", "first").returncode == 0
        wait_for(lambda: "run.started" in server.home.audit_file.read_text(), "the keeper starts the run")
        told = json.loads(server.popmi("status", "--json").stdout)
        assert told["runs"][0]["code_hash"] == told["code_hash"]
        server.popmi("stop")
        assert server.popmi("audit", "verify").returncode == 0


# What a server app asks with its token (flwr 1.41), and what would be worth most to a thief.
TASK_PATHS = (
    "pull-task-input",
    "push-task-output",
    "get-nodes",
    "push-messages",
    "pull-messages",
    "send-task-heartbeat",
)


def assert_worth_nothing_outside(server, token):
    shown = {TASK_TOKEN_HEADER: token}
    for path in TASK_PATHS:
        for method in ("POST", "GET"):
            assert server.outside(method, f"/v1/runtime/{path}", also=shown) == 404
    for path in PASSED.values():
        assert server.outside("POST", path, also=shown) == 401
    for target in (b"/v1/fleet/../runtime/get-nodes", b"/v1/fleet/%2e%2e/runtime/get-nodes", b"//v1/runtime/get-nodes"):
        assert server.raw(target, f"{TASK_TOKEN_HEADER}: {token}\r\n".encode()) == b"HTTP/1.1 404 Not Found"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_stolen_token_of_a_task_is_worth_nothing_outside_and_nothing_anywhere_after_its_run(tmp_path):
    key = ec.generate_private_key(ec.SECP384R1())
    with RealServer(tmp_path).up() as server:
        server.enrol("charite", key, tmp_path)
        assert server.popmi("start", "--name", "first").returncode == 0
        token = wait_for(server.task_token, "the server app is at work and waits for its sites")

        # It is the real one: inside, it speaks for the run.
        with server.inside(token) as runtime:
            runtime.GetNodes(GetNodesRequest())
            assert_worth_nothing_outside(server, token)
            assert server.task_token() == token

            assert server.popmi("stop").returncode == 0
            wait_for(lambda: server.task_token() is None, "the run has ended")
            assert refused(lambda: runtime.GetNodes(GetNodesRequest())) == 401
        assert_worth_nothing_outside(server, token)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_stolen_signature_is_of_no_use_and_its_owner_goes_on(tmp_path):
    key = ec.generate_private_key(ec.SECP384R1())
    with RealServer(tmp_path).up() as server:
        node_id = server.enrol("charite", key, tmp_path)
        with server.fleet(key) as fleet:
            activate(fleet, key)
            ask = PullMessagesRequest(node=Node(node_id=node_id))
            leave = DeactivateNodeRequest(node_id=node_id)
            headers = signed(key)
            assert server.outside("POST", "/v1/fleet/pull-messages", ask.SerializeToString(), headers) == 200
            for path, stolen in (("pull-messages", ask), ("deactivate-node", leave), ("get-run", GetRunRequest())):
                assert server.outside("POST", f"/v1/fleet/{path}", stolen.SerializeToString(), headers) == 503
            assert server.site_is_online("charite")
            assert not fleet.PullMessages(ask).messages_list
            # Without the gateway Flower takes it a second time: the memory of what was used is still needed.
            again = httpx.post(
                f"https://127.0.0.1:{server.internal}/v1/fleet/deactivate-node", content=leave.SerializeToString(),
                headers={"content-type": PROTOBUF_MEDIA_TYPE, **headers}, verify=server.trusting(), trust_env=False,
            )  # fmt: skip
            assert again.status_code == 200
