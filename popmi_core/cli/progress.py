"""Show a run while it goes on: bars on a terminal, plain lines where output is piped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from popmi_core.errors import RunError
from popmi_core.protocol import Progress

LOGGER = "popmi"
LOG_FILE = "log.txt"
PHASES = {
    "query": "joining",
    "query.norms": "measuring norms",
    "train": "training",
    "evaluate": "evaluating",
    "evaluate.judge": "judging candidates",
}


def _for_people(record: logging.LogRecord) -> bool:
    # A site's own log stays at the site; here it is the run folder's file.
    return record.name != "popmi.site"


class _Lines(logging.Handler):
    """Plain lines for pipes and files: one a round, and whatever warns."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)


class _LogFile(logging.FileHandler):
    """A log that a full disk leaves shorter; the run itself says what it could not write."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line instead of printing a traceback between the progress lines."""

    def close(self) -> None:
        """Close the file, whether or not its last lines still fit."""
        with suppress(OSError):
            super().close()


class _Terminal(logging.Handler):
    """A bar for the rounds, one for the sites inside a phase; finished rounds scroll above."""

    def __init__(self, bars: Bars) -> None:
        super().__init__(logging.DEBUG)
        self.bars = bars
        self.rounds: TaskID = bars.add_task("rounds", total=None)
        self.sites: TaskID = bars.add_task("sites joining", total=None)
        self.phase, self.count, self.joined = "", 0, 0

    def emit(self, record: logging.LogRecord) -> None:
        told = getattr(record, "progress", None)
        if not isinstance(told, Progress):
            if record.levelno >= logging.INFO:
                self.bars.console.print(record.getMessage(), markup=False, highlight=False)
            return
        if told.kind == "site":
            self._site(told)
            return
        self.bars.console.print(record.getMessage(), markup=False, highlight=False)
        if told.kind == "joined":
            self.joined = len(told.notes)
        self.bars.update(self.rounds, total=told.rounds, completed=told.server_round)

    def _site(self, told: Progress) -> None:
        if told.phase != self.phase:
            self.phase, self.count = told.phase, 0
        self.count += 1
        self.bars.update(
            self.sites,
            description=f"{PHASES.get(told.phase, told.phase)}: {told.site}",
            total=max(self.joined, self.count) if self.joined else None,
            completed=self.count,
        )


@contextmanager
def shown(folder: Path, *, quiet: bool) -> Iterator[None]:
    """Show progress on standard error and keep everything, tracebacks too, in the run folder's log.

    Raises:
        RunError: If the log cannot be written.
    """
    logger = logging.getLogger(LOGGER)
    console = Console(stderr=True)
    try:
        kept = _LogFile(folder / LOG_FILE, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write {folder / LOG_FILE}: {error.strerror}. Check the folder's rights.") from error
    kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [kept]
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    bars = None
    if not quiet:
        if console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
            bars = Bars(*columns, MofNCompleteColumn(), TimeElapsedColumn(), console=console)
            bars.start()
            handlers.append(_Terminal(bars))
        else:
            handlers.append(_Lines(console))
    for handler in handlers[1:]:
        handler.addFilter(_for_people)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        if bars is not None:
            bars.stop()
