"""A server's home in a temporary folder, a SuperLink that only remembers, and sites with keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from popmi_core.config import RunConfig
from popmi_core.deployment import AuditLog
from popmi_core.deployment.enrolment import Enrolment, fingerprint
from server.control.contract import FlowerNode, FlowerRun, KeyTaken, SuperLinkAway
from server.control.home import ServerHome, ServerSettings, SiteEntry
from server.control.keeper import Keeper
from server.control.operate import init_home
from server.control.plans import make_plan
from server.control.sites import add_site
from server.store import RunReader, RunWriter
from server.store.schema import RECORD_NAME


class RememberingControl:
    """Stands in for the SuperLink: remembers runs and keys, and is away when told so."""

    def __init__(self):
        self.known_runs, self.known_nodes, self.keys_ever, self.bundles = [], [], set(), []
        self.away, self.asked = False, []

    def start_run(self, name, bundle):
        self._ask("start_run", name)
        self.bundles.append(bundle)
        self.known_runs.insert(0, FlowerRun(len(self.known_runs) + 1, name, True, "running"))
        return self.known_runs[0].run_id

    def stop_run(self, run_id):
        self._ask("stop_run", run_id)
        self.end(run_id, "finished:stopped")

    def runs(self):
        self._ask("runs")
        return tuple(self.known_runs)

    def nodes(self):
        self._ask("nodes")
        return tuple(self.known_nodes)

    def register(self, site, public_key):
        self._ask("register", site)
        if fingerprint(public_key) in self.keys_ever:
            raise KeyTaken(f"cannot register site {site}: the SuperLink knows this key already.")
        self.keys_ever.add(fingerprint(public_key))
        self.known_nodes.append(FlowerNode(1000 + len(self.keys_ever), site, public_key, False, None))
        return self.known_nodes[-1].node_id

    def unregister(self, node_id):
        self._ask("unregister", node_id)
        self.known_nodes = [node for node in self.known_nodes if node.node_id != node_id]

    def end(self, run_id, status="finished:failed", details=""):
        self.known_runs = [
            replace(run, active=False, status=status, details=details) if run.run_id == run_id else run
            for run in self.known_runs
        ]

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _ask(self, what, *about):
        if self.away:
            raise SuperLinkAway(f"cannot {what}: the SuperLink does not answer.")
        self.asked.append((what, *about))


SETTINGS = ServerSettings(
    project="Melanoma",
    endpoint="popmi.example.org:8443",
    classes=("mel", "nv"),
    data_name="dermoscopy",
    config=RunConfig(rounds=3),
)


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    made = ServerHome(tmp_path / "home")
    init_home(made, SETTINGS)
    return made


@pytest.fixture
def invited(home: ServerHome) -> ServerHome:
    """A home with one site that was invited: enough to begin a run."""
    with home.changing_sites() as sites:
        sites["charite"] = SiteEntry(since=1.0)
    return home


@pytest.fixture
def control() -> RememberingControl:
    return RememberingControl()


@pytest.fixture
def enrolment_of(tmp_path):
    """Return a function that writes a site's enrolment; the same ``key`` word gives the same key."""
    keys: dict[str, str] = {}

    def write(site: str, *, key: str | None = None, project: str = "Melanoma") -> Path:
        name = key or site
        if name not in keys:
            made = ec.generate_private_key(ec.SECP384R1()).public_key()
            keys[name] = made.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
        path = tmp_path / "enrolments" / f"{site}-{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(Enrolment(project=project, site=site, public_key=f"{keys[name]} it@{site}").model_dump_json())
        return path

    return write


@pytest.fixture
def audited(home):
    """Return a function that tells the audit log's events, or the details of one event's last line."""

    def tell(event: str | None = None):
        lines = list(AuditLog(home.audit_file).entries())
        if event is None:
            return [line.event for line in lines]
        return [line.details for line in lines if line.event == event][-1]

    return tell


class Clock:
    def __init__(self):
        self.now = 4_000_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def keeper(home, control, clock):
    return Keeper(home, control, pack=lambda: (b"packed", "c" * 64), clock=clock)


@pytest.fixture
def wanted(home):
    add_site(home, "zurich")
    make_plan(home, RunConfig(rounds=3), "first")
    return home.want("first", "going")


@pytest.fixture
def write(home):
    """Return a function that writes the run's record: so many rounds, and how it ended, or that it was killed."""

    def write(*, rounds=0, opened=False, status=None, reason=None, name="first"):
        path = home.run_folder(name) / RECORD_NAME
        writer = RunWriter(path, heartbeat=0)
        if path.stat().st_size and writer_has_run(path):
            writer.resume_run()
        else:
            writer.start_run(
                name, config={}, environment={}, strategy="opm", seed=0, rounds_planned=3, data_name="d", phantom=False,
                classes=["mel", "nv"], sites=["charite"],
            )  # fmt: skip
        for number in range(1, rounds + 1):
            writer.start_round(number)
            writer.finish_round(
                number, outcome="ok", seconds_total=1.0, seconds_train=1.0, seconds_fuse=1.0, seconds_evaluate=1.0,
                notes={}, model_sha256=None,
            )  # fmt: skip
        if opened:
            writer.start_round(rounds + 1)
        if status is not None:
            writer.finish_run(status, reason)

    return write


def writer_has_run(path):
    with RunReader(path) as reader:
        return bool(reader.runs())
