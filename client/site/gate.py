"""The gate: between the server's wish and the site's images. It runs approved code only, one task at a time.

``python -m client.site.gate --home FOLDER --node HOST:PORT`` under `popmi site run`. It imports torch, timm and Flower
once and forks; of the bundle and of the client it imports nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import time
from pathlib import Path

import httpx
from flwr.app import Context, Message

from client.site.answers import answer, reported, waits_for_approval
from client.site.approval import Approvals
from client.site.contact import Contact
from client.site.home import SiteConfig, SiteHome
from client.site.leash import die_with_supervisor
from client.site.nodelink import Input, NodeLink, Task
from client.site.stamp import data_stamp
from client.site.worker import AppFailed, TaskGone, Worker, WorkerLost, lay_out, redacted
from popmi_core.deployment.bundle import code_hash, unpack
from popmi_core.errors import AuditError, PopmiError
from popmi_core.records import array_records

log = logging.getLogger("popmi.gate")
PAUSE, NODE_AWAY = 0.3, 2.0
IDLE = 900.0
"""Seconds without a task after which the worker is ended, to give its memory back."""


class Gate:
    """Takes tasks from the node and answers each of them.

    Args:
        home: The site.
        link: To its node.
    """

    def __init__(self, home: SiteHome, link: NodeLink) -> None:
        self.home, self.link, self.approvals = home, link, Approvals(home)
        self.site = home.config().site
        self.worker: Worker | None = None
        self.contact = Contact(home)
        self._stamp = ""
        self._told_waiting: set[str] = set()

    def serve(self) -> None:
        """Go on for ever; a node that is away is waited for."""
        away = False
        while True:
            self._say_alive()
            self._end_idle_worker()
            self.contact.look()
            try:
                task = self.link.claim()
                away = False
            except (httpx.HTTPError, ValueError) as error:
                if not away:
                    log.warning("the node does not answer yet (%s)", type(error).__name__)
                away = True
                time.sleep(NODE_AWAY)
                continue
            if task is None:
                time.sleep(PAUSE)
                continue
            try:
                self.handle(task)
            finally:
                task.close()

    def handle(self, task: Task) -> None:
        """Take one task's message and answer it; a task that is gone is let go."""
        try:
            given = task.take()
            if given is None:
                return
            task.answer(*self._logged_reply(given, task))
        except TaskGone:
            self.home.note("task.gone")
        except httpx.HTTPError as error:
            # The node is away, or has given the task up. Half a reply inside it would keep it waiting for ever.
            log.warning("a task could not be finished (%s)", type(error).__name__)
            end_stuck_node(self.home)

    def close(self) -> None:
        """End the worker."""
        if self.worker is not None:
            self.worker.end()
            self.worker = None

    def _logged_reply(self, given: Input, task: Task) -> tuple[Message, Context]:
        try:
            return self._reply(given, task)
        except AuditError:
            log.exception("a task was not answered")
            return self._unwritten(given)
        except (OSError, UnicodeError, PopmiError) as error:
            # site.toml or the pause cannot be read: a task that nobody answers would keep the server waiting.
            log.exception("a task was not answered")
            if not self.home.note("task.failed", why=str(error)):
                return self._unwritten(given)
            return answer(given.message, site=self.site, error=redacted(error)), given.context

    def _unwritten(self, given: Input) -> tuple[Message, Context]:
        # What cannot be written down does not leave the site.
        said = "AuditError: the site's audit log cannot be written, so nothing leaves it. The site's own log says why."
        return answer(given.message, site=self.site, error=said), given.context

    def _reply(self, given: Input, task: Task) -> tuple[Message, Context]:
        config = self.home.config()
        # This site's own description is what counts, whatever the node was started with.
        given.context.node_config = self.home.node_config(config)
        told = {"kind": given.message.metadata.message_type, "run_id": str(given.context.run_id)}
        if self.home.left.exists():
            # A leave that was cut short has not ended this process yet; it counts from its first step on.
            said = "the site has left the project"
            self.home.audit.append("task.refused", error=said, **told)
            return answer(given.message, site=config.site, error=said), given.context
        if (reason := self.home.pause_reason()) is not None:
            self.home.audit.append("task.paused", **told)
            said = f"the site has paused: {reason}"
            return answer(given.message, site=config.site, error=said, waiting=True), given.context
        try:
            content = unpack(given.bundle)
            code = code_hash(content)
            if not self.approvals.allows(code):
                self._keep_waiting(code, content)
                said = waits_for_approval(code)
                return answer(given.message, site=config.site, error=said, waiting=True), given.context
        except AuditError:
            raise
        except (OSError, PopmiError) as error:
            self.home.audit.append("bundle.refused", why=str(error), **told)
            said = f"{type(error).__name__}: the code could not be judged. The site's own log says why."
            log.exception("a bundle was refused")
            return answer(given.message, site=config.site, error=said), given.context
        return self._run(given, task, config, code, content, told)

    def _run(
        self, given: Input, task: Task, config: SiteConfig, code: str, content: dict[str, bytes], told: dict[str, str]
    ) -> tuple[Message, Context]:
        begun = time.monotonic()
        self.home.audit.append("task.started", code=code, **told)

        def wanted() -> bool:
            self._say_alive()
            # The node asks for nothing else while it waits: a worker that hangs must not hang the site for ever.
            return task.alive() and not overdue(given.message)

        try:
            self._engage(code, content, str(given.context.node_config["data"]))
            assert self.worker is not None
            reply, context = self.worker.work(given.message, given.context, wanted, given.task_id)
        except TaskGone:
            self.worker = None
            if not overdue(given.message):
                raise
            return self._failed(given, config, "the question expired before it was answered", told)
        except WorkerLost as error:
            self.worker = None
            return self._failed(given, config, f"the site's worker was lost: {error} (9 is often memory)", told)
        except AppFailed as error:
            return self._failed(given, config, f"outside the app's own care: {error}", told)
        except (OSError, PopmiError) as error:
            log.exception("the worker could not be started")
            return self._failed(given, config, redacted(error), told)
        self._write_down(reply, code, round(time.monotonic() - begun, 1), told)
        return reply, context

    def _write_down(self, reply: Message, code: str, seconds: float, told: dict[str, str]) -> None:
        records = array_records(reply.content).values() if reply.has_content() else ()
        sent = sum(record.count_bytes() for record in records)
        # An answer may be a refusal: data that cannot be used, a budget that is spent.
        report = reported(reply)
        event = "task.refused" if "error" in report else "task.answered"
        self.home.audit.append(event, code=code, seconds=seconds, array_bytes=sent, **report, **told)

    def _failed(self, given: Input, config: SiteConfig, why: str, told: dict[str, str]) -> tuple[Message, Context]:
        self.home.audit.append("task.failed", why=why, **told)
        return answer(given.message, site=config.site, error=why), given.context

    def _engage(self, code: str, content: dict[str, bytes], data: str) -> None:
        stamp = data_stamp(data, apart=self.home.folder)
        lost = self.worker.ended() if self.worker is not None else None
        if lost is not None:
            # Killed while it had nothing to do, often for want of memory: no reason to fail this task.
            self.home.audit.append("worker.lost", why=lost)
            log.warning("the worker was lost between two tasks (%s): a new one reads the images anew", lost)
        elif self.worker is not None and self.worker.code == code and self._stamp == stamp:
            return
        if self._stamp not in ("", stamp):
            # A worker keeps images in memory: those of a patient who withdrew must not be trained on any longer.
            self.home.audit.append("data.changed")
            log.warning("the data set changed on the disk: it is read anew; a split that is not given is cut anew, too")
        self.close()
        self._stamp = stamp
        folder = self.home.bundles / code
        lay_out(content, folder)
        self.worker = Worker(code, folder)

    def _keep_waiting(self, code: str, content: dict[str, bytes]) -> None:
        self.approvals.keep(content)
        # The server asks again and again; once in the log is enough.
        if code not in self._told_waiting:
            self.home.audit.append("code.waiting", code=code)
            self._told_waiting.add(code)
            log.warning("code %s waits: `popmi site approve` shows it and asks", code[:12])

    def _end_idle_worker(self) -> None:
        if self.worker is not None and time.monotonic() - self.worker.used > IDLE:
            self.close()

    def _say_alive(self) -> None:
        try:
            (self.home.processes / "alive").touch()
        except OSError as error:
            log.debug("no sign of life could be given: %s", error.strerror)


def overdue(message: Message) -> bool:
    """Return whether the server does not wait for an answer to ``message`` any more."""
    return time.time() > message.metadata.created_at + message.metadata.ttl


def end_stuck_node(home: SiteHome) -> bool:
    """End the node if a reply may lie half in it; the supervisor starts it anew. Return whether it was told to end."""
    file = home.processes / "half-sent"
    if not file.exists():
        return False
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed (%s): the next gate ends the node without need", file, error.strerror)
    try:
        told = json.loads((home.processes / "processes.json").read_text(encoding="utf-8"))
        node = told["node"]["process"]
        os.kill(int(node), signal.SIGTERM)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the node could not be told to end (%s)", type(error).__name__)
        return False
    home.note("node.ended", why="a reply may lie half in it")
    return True


def warm_up() -> None:
    """Import what every task needs; nothing of the client, and nothing that starts threads or a GPU."""
    import flwr.clientapp
    import safetensors.torch
    import scipy.optimize
    import timm
    import torch

    warm = (flwr.clientapp, safetensors.torch, scipy.optimize, timm, torch)
    log.info("warm: %s", ", ".join(module.__name__ for module in warm))


def main() -> None:
    """Be the gate until the supervisor ends it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--node", required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    die_with_supervisor()
    home = SiteHome(given.home)
    end_stuck_node(home)
    warm_up()
    gate = Gate(home, NodeLink(given.node, home.secret.read_bytes(), home.processes))
    gate.serve()


if __name__ == "__main__":
    main()
