"""The real `popmi serve` in a process of its own, and what it takes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx

ROOT = Path(__file__).parents[2]
POPMI = "from popmi_core.cli.main import app; app()"
PATIENCE = 120.0
COLD_STARTS = 5


class Pages:
    """A page server over a folder of runs and a centre, or over a database of both.

    Args:
        folder: Holds ``runs`` and ``centre.sqlite``, and gets the server's log.
        database: SQLAlchemy URL of runs and centre, instead of the two.
    """

    def __init__(self, folder: Path, database: str | None) -> None:
        self.folder, self.cookie = folder, ""
        self._env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._env.pop("POPMI_DATABASE", None)
        self._words = ["--runs", str(folder / "runs")]
        if database is None:
            self._words += [str(folder / "runs"), "--centre", str(folder / "centre.sqlite")]
        else:
            self._env["POPMI_DATABASE"] = database
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self._port = taken.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def sign_in(self, secrets: list[str]) -> list[str]:
        """Return the cookies of sessions; the first becomes this client's own."""
        cookies = [f"popmi-{self._port}={secret}" for secret in secrets]
        self.cookie = cookies[0]
        return cookies

    def start(self) -> None:
        """Start it; it may not answer yet."""
        command = [sys.executable, "-c", POPMI, "serve", *self._words, "--port", str(self._port)]
        with (self.folder / "serve.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def wait_for(self, path: str) -> float:
        """Wait until a path is answered with 200; return when, by the monotonic clock.

        Raises:
            RuntimeError: If it ends, or takes too long; its log is told.
        """
        headers = {"Cookie": self.cookie} if self.cookie else {}
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._process is not None and self._process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}{path}", headers=headers, timeout=PATIENCE).status_code == 200:
                    return time.monotonic()
            time.sleep(0.005)
        raise RuntimeError(f"the pages did not answer {path}: {(self.folder / 'serve.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have it run while the block lasts."""
        self.start()
        try:
            self.wait_for("/healthz")
            yield
        finally:
            self.stop()

    def peak_megabytes(self) -> float:
        """Return its highest resident size so far (VmHWM), MB."""
        lines = Path(f"/proc/{self._pid()}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6

    def cpu_seconds(self) -> float:
        """Return the processor seconds it took so far."""
        fields = Path(f"/proc/{self._pid()}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid


def cold_start(pages: Pages, path: str) -> dict[str, float]:
    """Return median seconds from the start of the process to its first answer, and to the first page of a run."""
    alive, shown = [], []
    for _ in range(COLD_STARTS):
        begun = time.monotonic()
        pages.start()
        try:
            alive.append(pages.wait_for("/healthz") - begun)
            shown.append(pages.wait_for(path) - begun)
        finally:
            pages.stop()
    return {"healthz": round(median(alive), 2), "run": round(median(shown), 2)}
