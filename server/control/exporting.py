"""ONNX files that were ordered: each is made in a process of its own, so that the keeper goes on looking."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from popmi_core.errors import SetupError
from server.control.home import Asker, ServerHome
from server.control.pins import model_digest
from server.control.superlink import environment, programs

log = logging.getLogger("popmi.keeper")
MOST_SECONDS = 1800.0
"""Seconds an export may take before it is ended."""
MOST_AT_ONCE = 2
_LAST_WORDS = 1000


@dataclass
class _Export:
    process: subprocess.Popen[bytes]
    words: Path
    about: str
    begun: float


class Exports:
    """The exports that are being made, by the number of their order.

    Args:
        home: The server's home.
        command: Returns the command for a run and a round.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        home: ServerHome,
        *,
        command: Callable[[str, int], list[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.home, self._clock = home, clock
        self._command = command or self._onnx
        self._made: dict[int, _Export] = {}

    @property
    def numbers(self) -> Collection[int]:
        """The orders that are being seen to."""
        return tuple(self._made)

    def begin(self, number: int, run: str, server_round: int, *, by: Asker) -> None:
        """Begin one.

        Raises:
            RunError: If the run has no such model, or the file is not the one its record tells of.
            SetupError: If others are being made, or it cannot be begun.
        """
        if len(self._made) >= MOST_AT_ONCE:
            raise SetupError(f"{len(self._made)} exports are being made already. Give the order again in a minute.")
        model_digest(self.home, run, server_round)
        self.home.note("model.onnx_ordered", by, run=run, round=server_round)
        env = {**os.environ, **environment(self.home)}
        words = self.home.processes / f"onnx-{number}.log"
        try:
            with words.open("wb") as said:
                process = subprocess.Popen(
                    self._command(run, server_round), env=env, stdin=subprocess.DEVNULL, stdout=said,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            words.unlink(missing_ok=True)
            raise SetupError(
                f"the export cannot be begun: {error.strerror}. Look at the disk's room and at the installation."
            ) from error
        self._made[number] = _Export(process, words, f"run {run}, round {server_round}", self._clock())

    def ended(self) -> Iterator[tuple[int, str, bool]]:
        """Hand out order, answer, and whether it went well, of each that has ended since."""
        for number, export in list(self._made.items()):
            code = export.process.poll()
            if code is None and self._clock() - export.begun < MOST_SECONDS:
                continue
            del self._made[number]
            if code is None:
                _end(export.process)
                yield number, f"{export.about}: no ONNX file after {MOST_SECONDS / 60:.0f} minutes; it was ended", False
            elif code == 0:
                yield number, f"{export.about}: the ONNX file is made", True
            else:
                yield number, f"{export.about}: {_last_words(export.words) or f'ended with {code}'}", False
            export.words.unlink(missing_ok=True)

    def close(self) -> None:
        """End all; what is half-made is under no final name."""
        for export in self._made.values():
            _end(export.process)
            export.words.unlink(missing_ok=True)
        self._made.clear()

    def _onnx(self, run: str, server_round: int) -> list[str]:
        return [
            *(str(programs() / "popmi"), "server", "onnx", run, str(server_round)),
            *("--home", str(self.home.folder)),
        ]


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(words: Path) -> str:
    """Return the end of what was said in one line: an error of POPMI is all of it."""
    try:
        said = words.read_bytes()[-_LAST_WORDS:].decode("utf-8", "replace")
    except OSError:
        return ""
    return " ".join(said.split())
