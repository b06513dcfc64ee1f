"""Keep a few processes going: start them, start them again whenever one ends, end them together.

A process that ended is started again whatever its exit code was: Flower's node ends with 0 when its clock is off or its
server refuses it, and must come back. What each does is written to a status file that others can read. What each says
goes into a log of bounded length.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from popmi_core.atomic import replace_atomically
from popmi_core.deployment.logs import LOG_BYTES, put_aside

log = logging.getLogger("popmi.supervise")
FIRST_PAUSE, LONGEST_PAUSE, CALM = 1.0, 60.0, 120.0
"""Seconds before the first restart, the longest wait between two, and how long a process must live to be forgiven."""
PATIENCE = 15.0
"""Seconds between asking a process to end and killing it."""
LOOK_AT_LOGS = 5.0
"""Seconds between two looks at how long the logs have become."""

# Loaded before any fork: between a fork and its program nothing may be loaded.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Process:
    """One process to keep going.

    Attributes:
        name: Short name, also of its log file.
        command: Program and arguments.
        env: Added to this process's own environment.
        after: Name of a process that must be ready first.
        ready: File whose existence says that this one is ready, removed before each start; None: once it is started.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    after: str | None = None
    ready: Path | None = None


@dataclass
class _State:
    running: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    starts: int = 0
    pause: float = FIRST_PAUSE
    due: float = 0.0
    exit_code: int | None = None


class Supervisor:
    """Keeps processes going from :meth:`run` until :meth:`stop`, SIGTERM or SIGINT.

    Args:
        processes: In the order of their start; they end in the other.
        folder: Gets one ``<name>.log`` each, the one before as ``<name>.log.1``, and ``processes.json``.
        log_bytes: Size at which a log is put aside.
    """

    def __init__(self, processes: Sequence[Process], folder: Path, *, log_bytes: int = LOG_BYTES) -> None:
        self.processes, self.folder, self.log_bytes = processes, folder, log_bytes
        self._states = {item.name: _State() for item in processes}
        self._ended = threading.Event()
        self._told = ""
        self._logs_due, self._log_trouble = 0.0, ""

    def stop(self) -> None:
        """End all processes; ``run`` returns soon after."""
        self._ended.set()

    def run(self, *, seconds: float | None = None) -> None:
        """Start everything and keep it going; ``seconds`` limits how long.

        Signals are only handled in a main thread.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self.stop())
        until = None if seconds is None else time.monotonic() + seconds
        try:
            while not self._ended.is_set() and (until is None or time.monotonic() < until):
                for item in self.processes:
                    self._tend(item)
                self._tell()
                self._keep_logs_short()
                self._ended.wait(0.2)
        finally:
            for item in reversed(self.processes):
                self._end(item)
            self._tell()

    def _tend(self, item: Process) -> None:
        state, now = self._states[item.name], time.monotonic()
        if state.running is not None:
            code = state.running.poll()
            if code is None:
                return
            lived = now - state.started
            state.pause = FIRST_PAUSE if lived > CALM else state.pause
            state.running, state.exit_code, state.due = None, code, now + state.pause
            log.warning("%s ended with %d after %.0f s; again in %.0f s", item.name, code, lived, state.pause)
            state.pause = min(2 * state.pause, LONGEST_PAUSE)
        if now >= state.due and self._may_start(item):
            self._start(item)

    def _may_start(self, item: Process) -> bool:
        if item.after is None:
            return True
        before = next(other for other in self.processes if other.name == item.after)
        return self._states[before.name].running is not None and (before.ready is None or before.ready.exists())

    def _start(self, item: Process) -> None:
        state = self._states[item.name]
        if item.ready is not None:
            item.ready.unlink(missing_ok=True)
        with _open_log(self.folder / f"{item.name}.log") as out:
            # A group of its own: a terminal's Ctrl-C reaches this process, which ends the others in order.
            state.running = subprocess.Popen(
                list(item.command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **item.env, "POPMI_PARENT": str(os.getpid())},
                start_new_session=True,
                preexec_fn=partial(_end_with, os.getpid()),
            )
        state.started, state.starts = time.monotonic(), state.starts + 1
        log.info("%s started (process %d)", item.name, state.running.pid)

    def _end(self, item: Process) -> None:
        state = self._states[item.name]
        if state.running is None:
            return
        _signal_group(state.running, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            state.running.wait(PATIENCE)
        # What it had started itself must not outlive it.
        _signal_group(state.running, signal.SIGKILL)
        state.exit_code = state.running.wait()
        state.running = None

    def _keep_logs_short(self) -> None:
        if time.monotonic() < self._logs_due:
            return
        self._logs_due, trouble = time.monotonic() + LOOK_AT_LOGS, ""
        for item in self.processes:
            try:
                if put_aside(self.folder / f"{item.name}.log", limit=self.log_bytes):
                    log.info("%s.log was put aside as %s.log.1", item.name, item.name)
            except OSError as error:
                trouble = f"{item.name}.log cannot be put aside: {error.strerror}. It grows on; make room."
        # Once, not every few seconds, for as long as the disk is full.
        if trouble and trouble != self._log_trouble:
            log.warning("%s", trouble)
        self._log_trouble = trouble

    def _tell(self) -> None:
        told = json.dumps(
            {
                item.name: {
                    "process": None if (now := self._states[item.name]).running is None else now.running.pid,
                    "starts": now.starts,
                    "exit_code": now.exit_code,
                }
                for item in self.processes
            },
            indent=1,
        )
        if told != self._told:
            try:
                replace_atomically(self.folder / "processes.json", told.encode())
                self._told = told
            except OSError as error:
                # A full disk must not end what is running.
                log.warning("the status of the processes cannot be written: %s", error.strerror)


def _open_log(path: Path) -> BinaryIO:
    """Open a log for its own user's eyes: the pages print the link that makes the first admin."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    # One that an older POPMI made may be open to others.
    os.fchmod(handle, 0o600)
    return os.fdopen(handle, "ab")


def _end_with(parent: int) -> None:
    """Have this process asked to end when ``parent`` does, however it does: no orphan keeps a port or a file."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def _signal_group(running: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, number)
