"""The whole topology in containers, once for all tests, under a project name of its own; always taken down."""

from __future__ import annotations

import contextlib
import http.cookiejar
import json
import os
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LOGS = ROOT / "runs" / "compose-test"
PROJECT = "popmi-test"
SITES = {"site-1": "phantom_contact", "site-2": "phantom_polarised", "site-3": "phantom_ruler"}
SERVICES = ("dashboard", "runner", "keeper", *SITES)
ADMIN, PASSWORD = "ada", "a long sentence nobody says"
PATIENCE = 1200.0
"""Seconds until the run must have finished; on two free cores it takes two minutes."""


class Stage:
    """One federation in containers."""

    project, services = PROJECT, SERVICES
    hospital = f"{PROJECT}-hospital"
    """Project of the site that stands alone; it hangs on one of this one's networks."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        self.signed_in = False
        self.environment = os.environ | {
            "DASHBOARD_PORT": str(self.port),
            "RUN_FILE": "./tests/compose/two-rounds.toml",
            "SITES": " ".join(f"{name}:{service[-1]}" for service, name in SITES.items()),
            "COMPOSE_ENV_FILES": "/dev/null",
        }

    def compose(self, *words: str, check: bool = True, profile: str = "*", said: str = "") -> str:
        """Run `docker compose`, by default with every profile in sight; a failure shows what it said."""
        done = subprocess.run(
            ["docker", "compose", "--ansi", "never", "--project-name", PROJECT, "--profile", profile, *words],
            cwd=ROOT,
            env=self.environment,
            input=said,
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            pytest.fail(f"docker compose {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return done.stdout

    def python(self, service: str, code: str) -> str:
        """Run Python in a running container; return what it printed."""
        return self.compose("exec", "-T", service, "python", "-c", code).strip()

    def ask(self, path: str, **form: str) -> bytes:
        """Ask the pages, as a browser on this machine does that is signed in; with a form, send it."""
        if not self.signed_in:
            self.sign_in()
        return self.browse(path, **form)

    def browse(self, path: str, **form: str) -> bytes:
        """Ask the pages with the cookies there are."""
        sent = urllib.parse.urlencode(form).encode() if form else None
        with self.browser.open(f"{self.url}{path}", data=sent, timeout=10) as answer:
            return bytes(answer.read())

    def sign_in(self) -> None:
        """Become the first admin by the link in the log of the pages.

        Raises:
            OSError: If there is none yet.
        """
        links = re.findall(r"/first\?key=([\w-]+)", self.compose("logs", "--no-color", "dashboard"))
        if not links:
            raise OSError("the pages have not told a link yet")
        page = self.browse(f"/first?key={links[-1]}").decode()
        said = {"csrf": hidden(page, "csrf"), "key": links[-1]}
        self.browse("/first", **said, name=ADMIN, password=PASSWORD, again=PASSWORD)
        self.signed_in = True

    def api(self, path: str) -> Any:
        """Ask ``/api/v1``."""
        return json.loads(self.ask(f"/api/v1{path}"))

    def until(self, what: str, seen: Callable[[], Any]) -> Any:
        """Ask again and again until ``seen`` returns something, and return that; the pages may be away meanwhile."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if found := seen():
                    return found
            time.sleep(2)
        pytest.fail(f"not within {PATIENCE:.0f} s: {what}. Logs: {LOGS}")

    def run(self, name: str) -> dict[str, Any]:
        """Return a run's head, empty before it has begun."""
        return next((dict(run) for run in self.api("/runs") if run.get("name") == name), {})

    def finished(self, name: str = "compose") -> dict[str, Any]:
        """Wait until the run has ended and return its head."""

        def ended() -> dict[str, Any] | None:
            run = self.run(name)
            return run if run.get("status") in ("finished", "failed", "stopped") else None

        return dict(self.until(f"run {name} ends", ended))

    def containers(self) -> list[dict[str, Any]]:
        """Return what `docker compose ps` says of every container, also of those that have ended."""
        return [json.loads(line) for line in self.compose("ps", "--all", "--format", "json").splitlines()]

    def keep_logs(self) -> None:
        """Write what every container said into files: after the end nobody could ask any more."""
        LOGS.mkdir(parents=True, exist_ok=True)
        (LOGS / "containers.txt").write_text(self.compose("ps", "--all", check=False))
        for service in ("certificates", "database", "superlink", "gateway", "prometheus", "site-6", *SERVICES):
            (LOGS / f"{service}.log").write_text(self.compose("logs", "--no-color", service, check=False))
        for site in SITES:
            told = self.compose("exec", "-T", site, "sh", "-c", "cat /home/popmi/site/processes/*.log", check=False)
            (LOGS / f"{site}-processes.log").write_text(told)
        told = self.compose("exec", "-T", "keeper", "cat", "/home/popmi/server/audit.jsonl", check=False)
        (LOGS / "audit.jsonl").write_text(told)

    def down(self) -> None:
        """Take everything down, the volumes too."""
        alone = ["--project-name", self.hospital, "--file", "deploy/site/compose.yaml"]
        words = ["docker", "compose", *alone, "down", "--volumes", "--timeout", "5"]
        subprocess.run(words, cwd=ROOT, env=self.environment, capture_output=True)
        self.compose("down", "--volumes", "--timeout", "5", "--remove-orphans", check=False)


def hidden(page: str, name: str) -> str:
    """Return what a form's hidden field holds."""
    found = re.search(rf'<input[^>]* name="{name}"[^>]* value="([^"]*)"', page)
    assert found is not None, page[:2000]
    return found.group(1)


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    """A federation of three sites that has begun its run."""
    made = Stage()
    # What an earlier test left when it was killed.
    made.down()
    try:
        # With the others' profiles, the sixth site would be invited before the first run.
        made.compose("up", "--detach", "--build", *SERVICES, profile="none")
        yield made
    finally:
        made.keep_logs()
        made.down()
