"""Everything this side asks of Flower's own code, in one place.

Flower offers its control plane as a command line (`flwr run`, `flwr supernode register`) that prints, exits the process
and keeps connections in a user's home folder. A server that acts by itself needs answers and errors instead, so this
module talks to the classes beneath: private, and therefore Flower is pinned to one version (1.41.0) and this is the
only file to change with it.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.build import build_fab_from_files
from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
from flwr.common.constant import HEARTBEAT_PATIENCE
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (  # type: ignore[attr-defined, unused-ignore]
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, uses_nist_ec_curve

from popmi_core.deployment.bundle import bundle_files, code_hash, unpack
from popmi_core.errors import SetupError
from popmi_core.protocol import PLAN_KEY
from server.control.contract import FlowerNode, FlowerRun, KeyTaken, RefusedForNow, SuperLinkAway

AWAY = frozenset({502, 503, 504})
PASSES = frozenset({408, 425, 429, 500})
"""HTTP statuses of a refusal that may pass: too slow, too early, too often, an error of its own such as a full disk."""
LISTED_RUNS = 100
Answer = TypeVar("Answer")


class Refused(SetupError):
    """The SuperLink answered no; ``code`` is Flower's number for the reason, where it gave one."""

    code: int | None = None


def pack_bundle() -> tuple[bytes, str]:
    """Return the bundle that sites will run, packed as Flower packs it, and the hash they approve.

    Raises:
        SetupError: If Flower left out or changed a file: the approved hash would not be that of what runs.
    """
    wanted = bundle_files()
    packed, _ = build_fab_from_files(wanted)
    approved, travels = code_hash(wanted), code_hash(unpack(packed))
    if approved != travels:
        raise SetupError(
            f"the packed bundle has the hash {travels[:12]}, expected {approved[:12]}: Flower changed a file of it. "
            "Check that flwr is the version POPMI asks for."
        )
    return packed, approved


class FlowerControl:
    """The SuperLink's control plane over TLS (``Control``).

    Args:
        address: ``host:port`` of the SuperLink.
        ca: Certificate of the study's authority.
    """

    def __init__(self, address: str, ca: Path) -> None:
        self.address = address
        try:
            trusted = ca.read_bytes()
        except OSError as error:
            raise SetupError(f"cannot read {ca}: {error.strerror}. Run `popmi server init` first.") from error
        self._client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=False,
            root_certificates=trusted,
            interceptors=[CliClientHttpInterceptor(), RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def start_run(self, name: str, bundle: bytes) -> int:
        """Start a run by name and return its number."""
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})),
            override_config=user_config_to_proto({PLAN_KEY: name}),
        )
        answer = self._ask(f"start run {name}", lambda: self._client.StartRun(request))
        if not answer.HasField("run_id"):
            raise SetupError(f"the SuperLink did not start run {name} and gave no reason. Read its log.")
        return int(answer.run_id)

    def stop_run(self, run_id: int) -> None:
        """End a run at once."""
        with _unless(ApiErrorCode.RUN_ALREADY_FINISHED):
            self._ask(f"stop run {run_id}", lambda: self._client.StopRun(StopRunRequest(run_id=run_id)))

    def runs(self) -> tuple[FlowerRun, ...]:
        """Return the newest starts, newest first."""
        answer = self._ask("list the runs", lambda: self._client.ListRuns(ListRunsRequest(limit=LISTED_RUNS)))
        found = sorted(answer.run_dict.values(), key=lambda run: run.pending_at, reverse=True)
        return tuple(
            FlowerRun(
                run_id=run.run_id,
                name=run.override_config[PLAN_KEY].string if PLAN_KEY in run.override_config else "",
                active=run.status.status != "finished",
                status=":".join(part for part in (run.status.status, run.status.sub_status) if part),
                details=run.status.details,
            )
            for run in found
        )

    def nodes(self) -> tuple[FlowerNode, ...]:
        """Return the registered sites."""
        answer = self._ask("list the sites", lambda: self._client.ListNodes(ListNodesRequest()))
        return tuple(
            FlowerNode(
                node_id=node.node_id,
                name=node.name,
                public_key=_to_openssh(node.public_key),
                online=node.status == "online",
                last_seen=_last_seen(
                    node.status == "online", node.online_until, node.heartbeat_interval, node.last_deactivated_at
                ),
            )
            for node in answer.nodes_info
            if node.status != "unregistered"
        )

    def register(self, site: str, public_key: str) -> int:
        """Let a key in."""
        request = RegisterNodeRequest(public_key=_to_pem(site, public_key), name=site)
        answer = self._ask(f"register site {site}", lambda: self._client.RegisterNode(request))
        return int(answer.node_id)

    def unregister(self, node_id: int) -> None:
        """Cut a site off."""
        request = UnregisterNodeRequest(node_id=node_id)
        with _unless(ApiErrorCode.NODE_NOT_FOUND):
            self._ask(f"cut off node {node_id}", lambda: self._client.UnregisterNode(request))

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, what: str, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except httpx.TransportError as error:
            raise SuperLinkAway(
                f"cannot {what}: the SuperLink at {self.address} does not answer ({error}). Is `popmi server up` "
                "running?"
            ) from error
        except httpx.HTTPStatusError as error:
            raise _refused(what, error.response) from error


def _refused(what: str, response: httpx.Response) -> SetupError:
    told = FlowerError.from_json(response.text)
    if told is not None and told.code == ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
        return KeyTaken(f"cannot {what}: the SuperLink knows this key already. Make a new one: `popmi site enrol`.")
    reason = told.message if told is not None else f"HTTP status {response.status_code}"
    if response.status_code in AWAY:
        return SuperLinkAway(f"cannot {what}: the SuperLink is not ready ({reason}). Try again in a moment.")
    said = f"cannot {what}: the SuperLink refused ({reason}). Read its log in the home's processes/."
    if response.status_code in PASSES:
        return RefusedForNow(said)
    refused = Refused(said)
    refused.code = None if told is None else told.code
    return refused


@contextmanager
def _unless(code: int) -> Iterator[None]:
    """Take a refusal with this code as done."""
    try:
        yield
    except Refused as error:
        if error.code != code:
            raise


def _to_pem(site: str, public_key: str) -> bytes:
    try:
        key = serialization.load_ssh_public_key(public_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SetupError(
            f"site {site}: its public key cannot be read ({error}). Take the file `popmi site enrol` wrote."
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not uses_nist_ec_curve(key):
        raise SetupError(
            f"site {site}: its public key is {public_key.split()[0]}, expected an EC key on a NIST curve. Make it with "
            "`popmi site enrol`."
        )
    return public_key_to_bytes(key)


def _to_openssh(pem: bytes) -> str:
    key = serialization.load_pem_public_key(pem)
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _last_seen(online: bool, online_until: float, interval: float, deactivated: str) -> float | None:
    if online:
        # A heartbeat makes a node online until so many intervals later.
        return online_until - HEARTBEAT_PATIENCE * interval
    return datetime.datetime.fromisoformat(deactivated).timestamp() if deactivated else None
