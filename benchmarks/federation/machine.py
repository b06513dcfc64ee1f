"""A whole federation of processes on this machine, as its people start it: `popmi server up` and one `popmi site run` a
site. Used by the drills, by the load study and by tests; everything it starts ends with it, whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import tomli_w

from client.site.home import SiteHome
from server.control.home import ServerHome
from server.control.superlink import programs
from server.store import RunReader, RunSummary

ROOT = Path(__file__).parents[2]
MARK = "POPMI_MACHINE"
"""Every process of a machine carries it in its environment, also those that Flower starts."""
PATIENCE = 240.0
POPMI = "from popmi_core.cli.main import app; app()"
"""The command `popmi`; not under its own name, for on a shared machine others end their sites by that."""
Found = TypeVar("Found")
TINY: dict[str, Any] = {
    "strategy": "opm",
    "rounds": 3,
    "timeout": 120.0,
    "limits": {"join": 120.0},
    "data": {"source": "phantom", "phantom_images": 60},
    "model": {"backbone": "popmi_vit_micro", "image_size": 32},
    "local": {"batch_size": 32},
}
"""Rounds of a second or two, in which nothing is left out: a ViT of 29 k parameters, 42 training images a site."""


class NotInTime(Exception):
    """What was waited for did not come; the text says what."""


class Machine:
    """A federation in a folder.

    Args:
        folder: Made; gets ``server/``, ``sites/NAME/``, ``confirm/`` and a log for each process.
        sites: Data by site, such as ``phantom:phantom_slide``.
        config: Changes of ``TINY`` for the run that is planned; whole parts are replaced.
        tree: Where the code lies: this repository, or a changed copy of it.
        endpoint: Where sites reach the gateway; None: this machine, at the free port it listens on.
        env: Added to the environment of every process.
    """

    def __init__(
        self,
        folder: Path,
        sites: Mapping[str, str],
        config: Mapping[str, Any] | None = None,
        *,
        tree: Path = ROOT,
        endpoint: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.data, self.tree = folder.absolute(), dict(sites), tree
        self.config = {**TINY, **(config or {})}
        self.internal, self.public, self.pages = free_ports(3)
        self.endpoint = endpoint or f"localhost:{self.public}"
        self.home = ServerHome(self.folder / "server")
        self.mark = secrets.token_hex(8)
        self.env = {
            # Without the second, `python -m` takes the code of the folder it is started in before a changed copy.
            **os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1",
            "POPMI_SERVER_HOME": str(self.home.folder), "FLWR_TELEMETRY_ENABLED": "0", MARK: self.mark, **(env or {}),
        }  # fmt: skip
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _leave)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    # What people type.

    def popmi(
        self, *words: str, expect: int | None = 0, env: Mapping[str, str] | None = None, seconds: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end.

        Raises:
            NotInTime: If it ended with another code than ``expect`` (None: any).
        """
        command = [str(programs() / "popmi"), *words]
        done = subprocess.run(
            command, env={**self.env, **(env or {})}, capture_output=True, text=True, timeout=seconds, check=False
        )
        if expect is not None and done.returncode != expect:
            raise NotInTime(f"popmi {' '.join(words)} ended with {done.returncode}: {done.stderr or done.stdout}")
        return done

    def set_up(self) -> None:
        """Make the server's home, invite and enrol every site, and have it approve the code."""
        self.folder.mkdir(parents=True, exist_ok=True)
        described = self.write_config("run.toml", {})
        self.popmi(
            "server", "init", "--project", "Drill", "--endpoint", self.endpoint, "--data", "phantom",
            "--superlink", f"127.0.0.1:{self.internal}", str(described),
        )  # fmt: skip
        for site, data in self.data.items():
            self.enrol(site, data)

    def write_config(self, name: str, changes: Mapping[str, Any]) -> Path:
        """Write a run's description and return its path."""
        path = self.folder / name
        path.write_text(tomli_w.dumps({**self.config, **changes}), encoding="utf-8")
        return path

    def enrol(self, site: str, data: str, *, approve: bool = True, confirm: bool = True) -> SiteHome:
        """Invite a site and let it enrol; with ``confirm`` the keeper lets its key in (``up --confirm-from``)."""
        home = self.site(site)
        self.popmi("server", "add-site", site)
        kit = self.home.kits / f"{site}.zip"
        self.popmi("site", "enrol", str(kit), "--data", data, "--home", str(home.folder))
        if approve:
            self.popmi("site", "approve", "--installed", "--yes", "--home", str(home.folder))
        (self.folder / "confirm").mkdir(exist_ok=True)
        if confirm:
            told = (home.folder / f"{site}.enrolment.json").read_bytes()
            (self.folder / "confirm" / f"{site}.json").write_bytes(told)
        self.data[site] = data
        return home

    def up(self) -> None:
        """Start the server, without waiting for it."""
        self.start(
            "server", "server", "up", "--host", "127.0.0.1", "--port", str(self.public), "--dashboard-port",
            str(self.pages), "--confirm-from", str(self.folder / "confirm"),
        )  # fmt: skip

    def run_site(self, site: str, env: Mapping[str, str] | None = None) -> None:
        """Start a site, without waiting for it."""
        self.start(site, "site", "run", "--home", str(self.site(site).folder), env=env)

    def all_up(self) -> None:
        """Start server and sites, and wait until every site is on line."""
        self.up()
        for site in self.data:
            self.run_site(site)
        self.until(lambda: self.online() >= set(self.data), f"{', '.join(self.data)} on line", every=4.0)

    def begin(self, name: str, changes: Mapping[str, Any] | None = None) -> None:
        """Want a run."""
        self.popmi("server", "start", str(self.write_config(f"{name}.toml", changes or {})), "--name", name)

    # What is seen.

    def site(self, name: str) -> SiteHome:
        """Return a site's folder."""
        return SiteHome(self.folder / "sites" / name)

    def status(self) -> dict[str, Any]:
        """Return what `popmi server status --json` says."""
        told: dict[str, Any] = json.loads(self.popmi("server", "status", "--json").stdout)
        return told

    def online(self) -> set[str]:
        """Return the sites that the SuperLink sees; none while it is away."""
        done = self.popmi("server", "sites", "--json", expect=None)
        told = json.loads(done.stdout)["sites"] if done.returncode == 0 else []
        return {item["name"] for item in told if item["online"]}

    def record(self, run: str) -> RunReader:
        """Open the record of a run."""
        return RunReader(self.env.get("POPMI_DATABASE") or self.home.run_folder(run) / "record.sqlite")

    def summary(self, run: str) -> RunSummary | None:
        """Return the head of a run's record, None before it was begun or while it cannot be read."""
        if not self.env.get("POPMI_DATABASE") and not (self.home.run_folder(run) / "record.sqlite").exists():
            return None
        with contextlib.suppress(Exception), self.record(run) as reader:
            return reader.run(name=run)
        return None

    def done(self, run: str) -> int:
        """Return the last finished round."""
        found = self.summary(run)
        return 0 if found is None else found.rounds_done

    def ended(self, run: str) -> str:
        """Return *finished* or *failed*, or nothing while the run goes on."""
        found = self.summary(run)
        return found.status if found is not None and found.status in ("finished", "failed") else ""

    def hashes(self, run: str) -> dict[int, str]:
        """Return the hash of every round's model file."""
        with self.record(run) as reader:
            rows = reader.rounds(reader.run().id)
        return {row.server_round: row.model_sha256 or "" for row in rows if row.finished is not None}

    def until(self, true: Callable[[], Found], what: str, seconds: float = PATIENCE, *, every: float = 0.2) -> Found:
        """Return what a function tells as soon as it is true.

        Raises:
            NotInTime: If it does not become true.
        """
        end = time.monotonic() + seconds
        while not (found := true()):
            if time.monotonic() > end:
                raise NotInTime(f"not in {seconds:.0f} s: {what}")
            time.sleep(every)
        return found

    # Processes.

    def start(self, name: str, *words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a command that stays."""
        with (self.folder / f"{name}.log").open("ab") as out:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-c", POPMI, *words],
                env={**self.env, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.running[name]

    def process(self, name: str) -> int | None:
        """Return the number of a process: ``server``, ``superlink``, ``server app``, ``SITE``, ``SITE gate``, ..."""
        if name in self.running:
            return self.running[name].pid
        if name == "server app":
            return next((pid for pid in self.everything() if "flwr-serverapp" in command_line(pid)), None)
        site, _, part = name.rpartition(" ")
        if part == "worker":
            gate = self.process(f"{site} gate")
            return next(iter(children(gate)), None) if gate else None
        folder = self.site(site).processes if site else self.home.processes
        with contextlib.suppress(OSError, ValueError):
            told = json.loads((folder / "processes.json").read_text())
            return told[part]["process"] if part in told else None
        return None

    def kill(self, name: str) -> int | None:
        """Kill a process without warning (SIGKILL); return its number, None where there is none now."""
        pid = self.process(name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if name in self.running:
                self.running.pop(name).wait()
        return pid

    def stop(self, name: str) -> None:
        """End a process that ``start`` began, in peace, and wait for its end."""
        process = self.running.pop(name)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)

    def everything(self) -> Iterable[int]:
        """Return all processes of this machine, also those whose parents are gone."""
        wanted = f"{MARK}={self.mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                    yield int(folder.name)

    def end(self) -> None:
        """End all, in peace if they let themselves be ended, and for certain."""
        for name in reversed(list(self.running)):
            self.running[name].terminate()
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(40)
        until = time.monotonic() + 20
        while (left := list(self.everything())) and time.monotonic() < until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self.running.values():
                process.poll()
            time.sleep(0.1)
        self.running.clear()


def _leave(*_: object) -> None:
    raise SystemExit(143)


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on now."""
    taken = [socket.socket() for _ in range(count)]
    for item in taken:
        item.bind(("127.0.0.1", 0))
    ports = [int(item.getsockname()[1]) for item in taken]
    for item in taken:
        item.close()
    return ports


def children(process: int) -> list[int]:
    """Return the numbers of a process's own children."""
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def command_line(process: int) -> str:
    """Return what a process was started with; empty once it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def peak_megabytes(process: int) -> float:
    """Return the highest resident size of a process so far, in units of 1e6 bytes; 0 once it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def cpu_seconds(process: int) -> float:
    """Return the processor time a process has used so far; 0 once it is gone."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
