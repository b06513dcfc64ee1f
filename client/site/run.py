"""Take part: keep this site's node and gate going; pause, resume and leave."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.site.approval import Approvals, describe
from client.site.connection import proxy_environment
from client.site.contact import HEARD, MARK_VARIABLE, UNHEARD, heard_seconds_ago
from client.site.home import SiteConfig, SiteHome
from popmi_core.atomic import replace_atomically
from popmi_core.deployment import Process, Supervisor
from popmi_core.errors import LeftError, SetupError

log = logging.getLogger("popmi.site")
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
STALE = 60.0
"""Seconds without a sign of life after which the gate counts as stuck."""


def take_part(home: SiteHome, *, seconds: float | None = None) -> None:
    """Keep node and gate going until the process is told to end.

    Raises:
        LeftError: If the site has left.
        SetupError: If the site is not enrolled, or takes part already in another process.
    """
    config = home.config()
    check_ready(home)
    with _only_one(home):
        home.audit.append("site.started", site=config.site, process=os.getpid())
        for line in notices(home):
            log.warning("%s", line)
        try:
            Supervisor(processes(home, config, free_port()), home.processes).run(seconds=seconds)
        finally:
            home.audit.append("site.stopped", site=config.site)


def check_ready(home: SiteHome) -> None:
    """Raise what must be put right first.

    Raises:
        LeftError: If the site has left.
        SetupError: If its key, certificate or secret is missing or open to others.
    """
    if home.left.exists():
        raise LeftError(
            "this site has left the project. Run `popmi site enrol KIT` to come back; the operator confirms it anew."
        )
    for path in (home.key, home.ca, home.secret):
        if not path.exists():
            raise SetupError(f"{path} is missing. Run `popmi site enrol KIT`; a key that is there stays.")
    for path in (home.key, home.secret):
        if not os.access(path, os.R_OK):
            raise SetupError(f"{path} cannot be read by this user. Run as its owner, or give the site's folder to it.")
        if path.stat().st_mode & 0o077:
            raise SetupError(f"{path} can be read by others, expected mode 0600. Run chmod 600 {path}.")


def notices(home: SiteHome) -> Iterator[str]:
    """Return what the person who starts the site should know: no code approved yet, or a pause that goes on."""
    try:
        nothing = not Approvals(home).approved()
    except SetupError as error:
        # The gate answers every task so; a site that does not run at all answers none.
        yield str(error)
        nothing = False
    if nothing:
        yield "no code is approved yet: the site waits, and tells the server so. `popmi site approve` shows what came."
    try:
        reason = home.pause_reason()
    except SetupError as error:
        yield str(error)
        return
    if reason is not None:
        yield f"the site has paused ({reason}) and answers so; `popmi site resume` ends the pause."


def processes(home: SiteHome, config: SiteConfig, port: int) -> list[Process]:
    """Return the node and the gate, which talk over ``port`` of this machine only."""
    env = {**QUIET, **proxy_environment(config.proxy), "FLWR_HOME": str(home.processes / "flower")}
    node = [sys.executable, "-m", "client.site.node", "--superlink", config.endpoint]
    node += ["--root-certificates", str(home.ca), "--auth-supernode-private-key", str(home.key)]
    node += ["--isolation", "process", "--host", "127.0.0.1", "--port", str(port)]
    node += ["--superexec-auth-secret-file", str(home.secret)]
    gate = [sys.executable, "-m", "client.site.gate", "--home", str(home.folder), "--node", f"127.0.0.1:{port}"]
    heard = {**env, MARK_VARIABLE: str(home.processes / HEARD)}
    return [Process("node", node, heard), Process("gate", gate, env, after="node")]


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pause(home: SiteHome, reason: str) -> None:
    """Answer every question with the reason from now on, also after a restart; a task in hand is finished.

    Raises:
        SetupError: If the site was never enrolled, or the pause cannot be written.
        AuditError: If the audit log cannot be written; the site has paused then.
    """
    home.config()
    # A terminal of another encoding brings half characters.
    told = reason.encode("utf-8", "replace").decode().strip() or "no reason given"
    try:
        replace_atomically(home.paused, told.encode())
    except OSError as error:
        if isinstance(error, IsADirectoryError):
            step = "Remove it: a folder of that name is in the way."
        else:
            step = "Check its folder's owner and room."
        raise SetupError(
            f"the site has not paused: {home.paused} cannot be written ({error.strerror}). {step} Then run "
            "`popmi site pause` again."
        ) from error
    home.audit.append("site.paused", reason=told)


def resume(home: SiteHome) -> bool:
    """End a pause; return whether there was one.

    Raises:
        SetupError: If the site was never enrolled, or its pause cannot be read or removed.
        AuditError: If the audit log cannot be written; the pause has ended then.
    """
    home.config()
    if home.pause_reason() is None:
        return False
    try:
        home.paused.unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(
            f"the pause goes on: {home.paused} cannot be removed ({error.strerror}). Run `popmi site resume` as the "
            "owner of its folder, on a disk that can be written to."
        ) from error
    home.audit.append("site.resumed")
    return True


def leave(home: SiteHome, *, forget: bool) -> None:
    """Sign off for good; with ``forget`` the private key goes, too. A leave that was cut short is finished by another.

    The process that takes part still runs, and begins no task any more. End it after this, and after all that a
    person shall read: in a container it is the main process, and takes along the command that ends it.

    Raises:
        SetupError: If the site was never enrolled, or its folder cannot be written.
        AuditError: If the audit log cannot be written.
    """
    config = home.config()
    try:
        if not home.left.exists():
            replace_atomically(home.left, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()).encode())
        if forget:
            # Other copies (backups) are the hospital's; revoking at the server is what makes the key worthless.
            home.key.unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(
            f"leaving is not finished: {home.folder} cannot be written ({error.strerror}). Check its owner and its "
            "room, and run `popmi site leave` again."
        ) from error
    home.audit.append("site.left", site=config.site, key_removed=forget)


def end_running(home: SiteHome) -> bool:
    """End the process that takes part for this site; return whether there was one.

    Raises:
        SetupError: If it does not end, or cannot be ended from here.
    """
    process = running_process(home)
    if process is None:
        return False
    # The number of a process in another container means nothing here; it may be this very command's.
    asked = process != os.getpid() and _ask_to_end(process)
    until = time.monotonic() + (60 if asked else 1)
    while running_process(home) is not None:
        if time.monotonic() > until:
            raise SetupError(
                f"process {process} {'does not end' if asked else 'cannot be ended from here'}. End the service: "
                "systemctl stop popmi-site, or docker compose down."
            )
        time.sleep(0.2)
    return True


def status(home: SiteHome) -> dict[str, Any]:
    """Return what the site is doing, for people and for health checks; ``well`` says whether it takes part.

    ``paused`` is the reason of a pause. Where it cannot be read, ``paused`` says why, and the site is not well: the
    gate then fails every task.

    Raises:
        SetupError: If the site was never enrolled, or ``site.toml`` or the list of approved code is damaged.
    """
    config = home.config()
    running = running_process(home)
    told = _read_json(home.processes / "processes.json") if running else {}
    quiet, heard = _quiet_seconds(home), heard_seconds_ago(home)
    alive = running is not None and quiet is not None and quiet < STALE and all(p["process"] for p in told.values())
    paused, known = _paused(home)
    well = known and alive and heard is not None and heard < UNHEARD
    return {
        "site": config.site,
        "project": config.project,
        "endpoint": config.endpoint,
        "well": well,
        "process": running,
        "processes": told,
        "gate_seen_seconds_ago": None if quiet is None else round(quiet, 1),
        "server_heard_seconds_ago": None if heard is None else round(heard, 1),
        "paused": paused,
        "left": home.left.exists(),
        **describe(Approvals(home)),
    }


def running_process(home: SiteHome) -> int | None:
    """Return the number of the process that takes part for this site; None where none does."""
    lock = home.processes / "running.lock"
    if not lock.exists():
        return None
    with lock.open("r+") as file:
        try:
            # Shared: two who ask at once must not take each other for the process, whose number is then an old one.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            told = file.read().strip()
            return int(told) if told.isdigit() else None
    return None


@contextmanager
def _only_one(home: SiteHome) -> Iterator[None]:
    home.processes.mkdir(parents=True, exist_ok=True)
    with (home.processes / "running.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(
                f"this site takes part already (process {running_process(home)}): two with one key would disturb each "
                "other. `popmi site status` shows it."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _ask_to_end(process: int) -> bool:
    try:
        os.kill(process, signal.SIGTERM)
    except OSError:
        # It ended this moment, is another user's, or lives where its number is another one.
        return False
    return True


def _paused(home: SiteHome) -> tuple[str | None, bool]:
    """Return the reason of a pause, or why it cannot be read, and whether it could be."""
    try:
        return home.pause_reason(), True
    except SetupError as error:
        return str(error), False


def _quiet_seconds(home: SiteHome) -> float | None:
    try:
        return max(0.0, time.time() - (home.processes / "alive").stat().st_mtime)
    except OSError:
        return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
