"""Where the drill takes place: a federation whose code has a broken site in it, and the rows of the drill's table."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "federation"))

from machine import ROOT, Machine, NotInTime  # noqa: E402

from client.site.home import SiteHome  # noqa: E402
from popmi_core.audit import AuditLog  # noqa: E402

GOOD, BAD, THIRD = "phantom_slide", "phantom_ruler", "phantom_polarised"
LIGHT = {"strategy": "lowrank", "model": {
    "backbone": "popmi_vit_micro", "image_size": 32, "lora": {"rank": 2, "train": "adapter"}}}  # fmt: skip
"""Ten small tensors travel: rounds are short."""
SHOWN = 420
"""Letters of what a person saw that the table shows."""
NO_EVENT, NO_FAULT = "none", "-"
"""What the table shows where no audit log tells of a fault, and where there was no fault to tell of."""


@dataclass(frozen=True)
class Row:
    """One line of the table; ``good``: it ended as it should, ``audit``: which events of the audit logs tell of it."""

    case: str
    what: str
    done: str
    seen: str
    went_on: str
    good: bool
    audit: str
    seconds: float = 0.0


class Stage:
    """A federation to be broken, and what became of it."""

    def __init__(self, machine: Machine, tell: Callable[[list[dict[str, Any]]], None] = lambda rows: None) -> None:
        self.machine, self.rows, self._tell = machine, list[Row](), tell
        self._marks: dict[Path, int] = {}
        self.mark()

    def note(
        self,
        case: str,
        what: str,
        done: str,
        seen: str,
        went_on: str,
        *,
        good: bool,
        audit: Sequence[str] | None,
        seconds: float = 0.0,
    ) -> None:
        """Add a line of the table; ``audit``: what :meth:`event` found, None where there is no fault to tell of."""
        text = " ".join(seen.split()).replace(str(self.machine.folder), "")
        told = NO_FAULT if audit is None else ", ".join(dict.fromkeys(filter(None, audit))) or NO_EVENT
        self.rows.append(Row(case, what, done, text[:SHOWN], went_on, good, told, round(seconds, 1)))
        print(f"{'ok   ' if good else 'WRONG'} case {case}: {what}: {text[:160]} | {went_on} | {told}", flush=True)
        self._tell([asdict(row) for row in self.rows])

    def attempt(self, case: str, what: str, play: Callable[[], None]) -> None:
        """Play a scene; one that breaks off is a line of the table, too, and the next is played all the same."""
        try:
            play()
        except (NotInTime, OSError, AssertionError, subprocess.SubprocessError, RuntimeError) as error:
            seen = f"{type(error).__name__}: {error}"
            self.note(case, what, "the scene broke off", seen, "unknown", good=False, audit=None)

    # What the audit logs tell.

    def mark(self) -> None:
        """Have :meth:`event` look only at what is written from now on."""
        homes = [self.machine.site(path.name) for path in (self.machine.folder / "sites").glob("*")]
        logs = (self.machine.home.audit_file, *(home.audit.path for home in homes))
        self._marks = {log: sum(1 for _ in AuditLog(log).entries()) for log in logs}

    def event(
        self, name: str, *, at: SiteHome | None = None, says: str = "", wait: float = 5.0, **details: object
    ) -> str:
        """Return ``server: NAME`` or ``site: NAME`` if that event was written since the mark, else nothing.

        Args:
            name: The event's.
            at: The site in whose log it is looked for; None: the server's.
            says: Words that the event must hold.
            wait: Seconds it may still take to be written.
            details: Details that it must have, with these values.
        """
        log, end = self.machine.home.audit_file if at is None else at.audit.path, time.monotonic() + wait
        while True:
            for entry in AuditLog(log).entries():
                fits = entry.event == name and all(entry.details.get(key) == item for key, item in details.items())
                if fits and says in str(entry) and entry.number > self._marks.get(log, 0):
                    return f"{'server' if at is None else 'site'}: {name}"
            if time.monotonic() >= end:
                return ""
            time.sleep(0.5)

    # What people see.

    def site_rows(self, run: str) -> list[Any]:
        """Return what the record says of the sites' training."""
        with self.machine.record(run) as reader:
            return [row for row in reader.sites(reader.run().id) if row.phase == "train"]

    def reason(self, run: str) -> str:
        """Return why a run ended."""
        found = self.machine.summary(run)
        return "" if found is None else found.reason or ""

    def diary(self, run: str) -> str:
        """Return all lines of a run's diary."""
        with self.machine.record(run) as reader:
            return "\n".join(row.text for row in reader.events(reader.run().id))

    def server_log(self, part: str) -> str:
        """Return the log of one of the server's processes."""
        return (self.machine.home.processes / f"{part}.log").read_text(errors="replace")

    def wait_rounds(self, run: str, more: int, seconds: float = 300.0) -> float:
        """Wait until so many more rounds are finished; return the seconds it took."""
        begun, goal = time.monotonic(), self.machine.done(run) + more
        self.machine.until(
            lambda: self.machine.done(run) >= goal or self.machine.ended(run), f"round {goal} of run {run}", seconds
        )
        return time.monotonic() - begun

    def finish(self, run: str, seconds: float = 900.0) -> str:
        """Wait for the end of a run; return its status."""
        return self.machine.until(lambda: self.machine.ended(run), f"the end of run {run}", seconds)


def broken_tree(folder: Path) -> Path:
    """Copy the product into a folder, with a client app that is broken at one site; return the folder."""
    for package in ("server", "client", "popmi_core"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE / "broken_site.py", folder / "client" / "broken_site.py")
    app = folder / "client" / "app.py"
    app.write_text(f"{app.read_text()}\n\nfrom client.broken_site import Broken\n\napp = Broken(app)\n")
    return folder


@contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[None]:
    """Lay a disk of this size over a folder (tmpfs; needs root); what is in the folder goes with it, there and back.

    Raises:
        OSError: If it cannot be mounted.
    """
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as aside:
        shutil.copytree(place, aside, dirs_exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "popmi-drill", str(place))
        try:
            shutil.copytree(aside, place, dirs_exist_ok=True)
            yield
        finally:
            shutil.copytree(place, aside, dirs_exist_ok=True)
            subprocess.run(["umount", "-l", str(place)], check=False)
            shutil.copytree(aside, place, dirs_exist_ok=True)


def make_room(place: Path, kilobytes: int) -> None:
    """Give a small disk another size."""
    _mount("-o", f"remount,size={kilobytes}k", str(place))


def fill(place: Path) -> Path:
    """Fill a disk to its last byte; return the file that does."""
    filler = place / ".filler"
    # Pages first, then single bytes: an unbuffered file fails where the disk does, not when it is closed.
    with filler.open("wb", buffering=0) as file:
        for piece in (b"x" * 4096, b"x"):
            with contextlib.suppress(OSError):
                while True:
                    file.write(piece)
    return filler


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"mount {' '.join(words)}: {done.stderr.strip()} (the drill needs root)")
