"""The process that runs approved code: forked from a gate that has imported torch already, so it starts at once.

It stays for the next task of the same code, and so reads the site's images once. The bundle's own ``client`` and
``popmi_core`` take the place of the installed ones in it; what the bundle does not hold of them cannot be imported.
"""

from __future__ import annotations

import importlib
import logging
import os
import posixpath
import select
import signal
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

from client.site.frames import receive, send
from client.site.leash import die_with
from popmi_core.atomic import replace_atomically
from popmi_core.deployment.bundle import CONFIG_FILE
from popmi_core.errors import SetupError

log = logging.getLogger("popmi.worker")
OURS = ("client", "popmi_core", "server")
PREFERRED_VICTIM = b"500"
"""Out of memory, the kernel shall take the worker, not the gate or what else runs here (/proc/self/oom_score_adj)."""


class WorkerLost(Exception):
    """The worker ended before it had answered; the text says how, and quotes nothing of a patient."""


class TaskGone(Exception):
    """The node does not want the task any more."""


class AppFailed(Exception):
    """The bundle's code could not be loaded or raised past its own handlers; the text is safe to tell the server."""


class Worker:
    """One forked process for code that lies in ``folder``.

    Args:
        code: Its hash.
        folder: Where its files lie, as ``lay_out`` put them.
    """

    def __init__(self, code: str, folder: Path) -> None:
        self.code, self.folder, self.used = code, folder, time.monotonic()
        self._status: int | None = None
        # A lock that another thread holds at this moment would stay locked in the child for ever.
        if (threads := threading.active_count()) != 1:
            raise SetupError(f"the gate has {threads} threads, expected one: it cannot fork. Tell the POPMI authors.")
        self._channel, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        gate = os.getpid()
        self.process = os.fork()
        if self.process == 0:
            self._channel.close()
            _live(theirs, folder, gate)
        theirs.close()

    def work(
        self, message: Message, context: Context, wanted: Callable[[], bool], task_id: int = 1
    ) -> tuple[Message, Context]:
        """Return the app's reply and the context it leaves.

        Args:
            message: The server's.
            context: The node's, with this site's configuration.
            wanted: Asked every second; the worker is ended where it returns False.
            task_id: The node's number for the task.

        Raises:
            AppFailed: If the app raised, or cannot be loaded.
            WorkerLost: If the worker ended.
            TaskGone: If ``wanted`` said so.
        """
        self.used = time.monotonic()
        try:
            send(
                self._channel,
                str(task_id).encode(),
                message.metadata.message_id.encode(),
                message_to_proto(message).SerializeToString(),
                context_to_proto(context).SerializeToString(),
            )
        except OSError:
            raise WorkerLost(self.end()) from None
        while not select.select([self._channel], [], [], 1.0)[0]:
            if not wanted():
                self.end()
                raise TaskGone("the node gave the task up")
        told = receive(self._channel, 3)
        if told is None:
            raise WorkerLost(self.end())
        self.used = time.monotonic()
        outcome, first, second = told
        if outcome != b"done":
            raise AppFailed(first.decode("utf-8", "replace"))
        reply = message_from_proto(ProtoMessage.FromString(first))
        return reply, context_from_proto(ProtoContext.FromString(second))

    def ended(self) -> str | None:
        """Return how the worker ended; None while it lives."""
        if self._status is None:
            found, status = os.waitpid(self.process, os.WNOHANG)
            # The system tells it once only.
            self._status = status if found else None
        if self._status is None:
            return None
        if os.WIFSIGNALED(self._status):
            return f"killed by signal {os.WTERMSIG(self._status)}"
        return f"ended with status {os.WEXITSTATUS(self._status)}"

    def end(self) -> str:
        """End the worker, whatever it is at; return how it ended."""
        self._channel.close()
        # Closed, it ends by itself; a worker in the middle of something is killed.
        until, killed = time.monotonic() + 0.5, False
        while (how := self.ended()) is None:
            if not killed and time.monotonic() > until:
                os.kill(self.process, signal.SIGKILL)
                killed = True
            time.sleep(0.02)
        return how


def lay_out(content: Mapping[str, bytes], folder: Path) -> None:
    """Make ``folder`` hold exactly these files, beside Python's caches.

    Raises:
        SetupError: If a path is not plain.
    """
    for path in content:
        if posixpath.normpath(path) != path or path.startswith(("/", "..")):
            raise SetupError(f"the bundle holds the path {path!r}, which is not plain. Refuse it and ask the operator.")
    for there in folder.rglob("*"):
        if there.is_file() and there.suffix != ".pyc" and str(there.relative_to(folder)) not in content:
            there.unlink()
    for path, expected in content.items():
        file = folder / path
        if not file.is_file() or file.read_bytes() != expected:
            replace_atomically(file, expected)


def load_app(folder: Path) -> ClientApp:
    """Import the client app that the bundle in ``folder`` names, with nothing of the installed POPMI in its place.

    Raises:
        SetupError: If what it names is no client app.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    for package in OURS:
        if not (folder / package / "__init__.py").exists():
            # Importing it fails now, instead of finding the installed one, which nobody approved for this run.
            sys.modules[package] = None  # type: ignore[assignment]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    described: Any = tomllib.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    module, _, attribute = str(described["tool"]["flwr"]["app"]["components"]["clientapp"]).partition(":")
    app = getattr(importlib.import_module(module), attribute)
    if not isinstance(app, ClientApp):
        raise SetupError(f"{module}:{attribute} of the bundle is a {type(app).__name__}, expected a ClientApp.")
    return app


def redacted(error: BaseException) -> str:
    """Return an exception's type and place, never its text, which could quote a file name and so a patient."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = "an unknown place"
    if frame is not None:
        code = frame.tb_frame.f_code
        place = f"{code.co_filename.rsplit('/', 1)[-1]}:{frame.tb_lineno} in {code.co_name}"
    return f"{type(error).__name__} at {place}. The full text is in this site's own log only."


def _live(channel: socket.socket, folder: Path, gate: int) -> NoReturn:
    """Be the worker: answer until the gate closes the channel; never return into the gate's code."""
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        die_with(gate)
        _volunteer()
        app: ClientApp | None = None
        while (told := receive(channel, 4)) is not None:
            try:
                app = app or load_app(folder)
                send(channel, b"done", *_run(app, told))
            except Exception as error:
                log.exception("the bundle's code failed")
                send(channel, b"failed", redacted(error).encode(), b"")
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(app: ClientApp, told: list[bytes]) -> tuple[bytes, bytes]:
    message = message_from_proto(ProtoMessage.FromString(told[2]))
    message.metadata.__dict__["_message_id"] = told[1].decode()
    context = context_from_proto(ProtoContext.FromString(told[3]))
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = int(told[0]), context.run_id, context.node_id
    reply = app(message, context)
    return message_to_proto(reply).SerializeToString(), context_to_proto(context).SerializeToString()


def _volunteer() -> None:
    try:
        Path("/proc/self/oom_score_adj").write_bytes(PREFERRED_VICTIM)
    except OSError as error:
        # Not Linux, or not allowed: the kernel chooses as it always did.
        log.debug("the kernel's choice when memory runs out stays as it is: %s", error.strerror)
