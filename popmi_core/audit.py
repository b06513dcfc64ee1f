"""A log that only grows: every line carries the hash of the line before, so a changed or missing line shows.

One JSON object a line: number, time (seconds since 1970 UTC), event, details, the previous line's hash, its own. What
the chain cannot show by itself is a log cut off at its end: keep the head that ``verify_log`` returns somewhere else
and give it to the next verification.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from popmi_core.errors import AuditError

START = "0" * 64
"""What the first line says the line before it was."""


class AuditEntry(BaseModel):
    """One line of the log; ``digest`` is the sha256 (hex) of the other fields as sorted JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=1)
    time: float
    event: str
    details: dict[str, Any] = Field(default_factory=dict)
    previous: str
    digest: str

    def __str__(self) -> str:
        """Return the line for a person; time in UTC. Others write some details: none of them steers the terminal."""
        when = datetime.fromtimestamp(self.time, UTC)
        details = " ".join(f"{name}={value}" for name, value in self.details.items())
        plain = "".join(letter if letter.isprintable() else " " for letter in f"{self.event}  {details}")
        return f"{self.number:>5}  {when:%F %T}  {plain}"


class AuditLog:
    """Appends to one log; several processes may, one after the other.

    Args:
        path: The log's file, made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **details: Any) -> AuditEntry:
        """Write one line, to the disk itself, and return it.

        A line torn by a power cut is cut off first, and the log says so in a line of its own.

        Raises:
            AuditError: If the log cannot be written; it is as it was then.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._held() as handle:
                lost = _cut_torn_line(handle)
                if lost:
                    _write(handle, _next(self._last(), "log.torn", {"bytes": lost}))
                entry = _next(self._last(), event, details)
                _write(handle, entry)
                return entry
        except OSError as error:
            raise AuditError(
                f"cannot write audit log {self.path}: {error.strerror}. Check the folder's owner and its room."
            ) from error

    def entries(self) -> Iterator[AuditEntry]:
        """Return the lines in order; none where there is no log yet.

        Raises:
            AuditError: If a line is no entry.
        """
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith("\n"):
                    yield _parsed(self.path, number, line)

    @contextmanager
    def _held(self) -> Iterator[int]:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)

    def _last(self) -> AuditEntry | None:
        line = _last_line(self.path)
        return None if line is None else _parsed(self.path, 0, line)


def verify_log(path: Path, *, head: str | None = None) -> AuditEntry | None:
    """Return the last line of a log whose chain is whole; None for an empty log.

    Args:
        path: The log.
        head: Digest of a line seen earlier, which must still be there.

    Raises:
        AuditError: If there is no log, or a line was changed, moved, added or taken out; the first is named.
    """
    if not path.exists():
        raise AuditError(f"audit log {path} is missing, expected a file. Ask who removed it; a backup may hold it.")
    return verify_entries(AuditLog(path).entries(), head=head, where=f"audit log {path}")


def verify_entries(
    entries: Iterable[AuditEntry], *, head: str | None = None, where: str, after: AuditEntry | None = None
) -> AuditEntry | None:
    """Return the last of entries whose chain is whole, wherever they are kept; ``after`` if there are none.

    Args:
        entries: In their order.
        head: Digest of a line seen earlier, which must be among them.
        where: What they are called in an error, e.g. "audit log FILE".
        after: The entry before the first of them; None: they begin the log.

    Raises:
        AuditError: If one was changed, moved, added or taken out; the first is named.
    """
    last, seen = after, head is None or head == START
    for entry in entries:
        number, previous = (1, START) if last is None else (last.number + 1, last.digest)
        if (entry.number, entry.previous) != (number, previous):
            raise AuditError(
                f"{where}, line {number}: follows entry {entry.number - 1} with hash {entry.previous[:12]}, "
                f"expected entry {number - 1} with hash {previous[:12]}. Lines were taken out or put in before it."
            )
        if entry.digest != _digest(entry):
            raise AuditError(f"{where}, line {number}: was changed after it was written. Ask who did.")
        last, seen = entry, seen or entry.digest == head
    if not seen:
        raise AuditError(f"{where}: no line has the hash {head}, which one had before. It was cut off or written anew.")
    return last


def parse_entry(line: str, *, where: str, number: int) -> AuditEntry:
    """Return the entry in a line.

    Raises:
        AuditError: If it is none; ``where`` it stands and its ``number`` are told.
    """
    try:
        return AuditEntry.model_validate_json(line)
    except ValidationError as error:
        told = f"line {number}" if number else "last line"
        raise AuditError(
            f"{where}, {told}: is no entry, expected JSON with number, event and hashes. It was changed."
        ) from error


def torn_bytes(path: Path) -> int:
    """Return how many bytes of a line that was not finished lie at the log's end; the next line written tells of them.

    Raises:
        AuditError: If there is no log.
    """
    try:
        with path.open("rb") as file:
            return file.seek(0, os.SEEK_END) - _end_of_lines(file.fileno())
    except OSError as error:
        raise AuditError(f"audit log {path} cannot be read: {error.strerror}. Check the folder's owner.") from error


def _next(last: AuditEntry | None, event: str, details: Mapping[str, Any]) -> AuditEntry:
    number, previous = (1, START) if last is None else (last.number + 1, last.digest)
    # Through JSON once, so that what is hashed now is what is read back later; half a character, as a file name in
    # another encoding brings it, could be written but never be read again.
    told = json.loads(json.dumps(dict(details), default=str, ensure_ascii=False).encode("utf-8", "replace"))
    bare = AuditEntry(number=number, time=time.time(), event=event, details=told, previous=previous, digest="")
    return bare.model_copy(update={"digest": _digest(bare)})


def _digest(entry: AuditEntry) -> str:
    told = entry.model_dump(mode="json", exclude={"digest"})
    return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _write(handle: int, entry: AuditEntry) -> None:
    line = json.dumps(entry.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode() + b"\n"
    before = os.fstat(handle).st_size
    try:
        if os.write(handle, line) != len(line):
            raise OSError(28, "No space left on device")
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, before)
        raise


def _cut_torn_line(handle: int) -> int:
    size, end = os.fstat(handle).st_size, _end_of_lines(handle)
    if end != size:
        os.ftruncate(handle, end)
    return size - end


def _end_of_lines(handle: int) -> int:
    """Return where the last whole line ends."""
    end = os.fstat(handle).st_size
    while end:
        begin = max(0, end - 65536)
        if (found := os.pread(handle, end - begin, begin).rfind(b"\n")) >= 0:
            return begin + found + 1
        end = begin
    return 0


def _last_line(path: Path) -> str | None:
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        tail = b""
        while end:
            begin = max(0, end - 65536)
            file.seek(begin)
            tail = file.read(end - begin) + tail
            end = begin
            if tail.count(b"\n") > 1:
                break
    lines = tail.splitlines()
    return lines[-1].decode("utf-8", "replace") if lines else None


def _parsed(path: Path, number: int, line: str) -> AuditEntry:
    return parse_entry(line, where=f"audit log {path}", number=number)
