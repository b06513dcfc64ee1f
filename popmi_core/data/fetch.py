"""Download a public file: resumed where it broke off, used only if its checksum is right."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from popmi_core.data.checksums import file_digest
from popmi_core.data.medmnist_index import MEDMNIST, RECORD, file_name
from popmi_core.errors import DataError

Progress = Callable[[int, int], None]

_CHUNK = 1 << 20
_TIMEOUT = 30.0
_PARTIAL, _RANGE_REFUSED = 206, 416


def fetch_medmnist(
    name: str,
    folder: Path,
    *,
    size: int = 28,
    mirror: str = RECORD,
    attempts: int = 5,
    pause: float = 1.0,
    progress: Progress | None = None,
) -> Path:
    """Download an official MedMNIST file into ``folder`` and return its path.

    A broken transfer is kept as ``<file>.part`` and continued, in this call and the next; the file gets its name only
    when its MD5 is the published one. A file that is there already and right is left alone.

    Args:
        name: A set of ``MEDMNIST``, e.g. ``dermamnist``.
        folder: Where to put it; made if missing.
        size: Pixels per side: 28, 64, 128 or 224.
        mirror: Address of the folder that holds the files; the checksum makes any mirror safe.
        attempts: How often to connect without getting a byte further before giving up.
        pause: Seconds before the second of these; doubled each time.
        progress: Called with (bytes so far, bytes in all; 0 where unknown).

    Raises:
        DataError: If the set is unknown, the network or the disk fails, or the file is not the published one.
    """
    wanted = _checksum(name, size)
    target = folder / file_name(name, size)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists():
            return _accept(target, wanted)
        part = target.with_name(f"{target.name}.part")
        if not (part.exists() and file_digest(part, "md5") == wanted):
            _download(f"{mirror}/{target.name}", part, attempts=attempts, pause=pause, progress=progress)
        got = file_digest(part, "md5")
        if got != wanted:
            part.unlink()
            raise DataError(
                f"{target.name} from {mirror} has MD5 {got}, expected {wanted}; it was deleted. Try again, or fetch it "
                "from another place (--mirror)."
            )
        part.replace(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror}. Choose a folder with room.") from error
    return target


def _checksum(name: str, size: int) -> str:
    known = MEDMNIST.get(name)
    if known is None:
        raise DataError(f"there is no MedMNIST set {name!r} for POPMI. Choose one of {', '.join(MEDMNIST)}.")
    if size not in known.md5:
        raise DataError(f"{name} comes in {', '.join(map(str, known.md5))} pixels, not in {size}. Choose one of these.")
    return known.md5[size]


def _accept(target: Path, wanted: str) -> Path:
    got = file_digest(target, "md5")
    if got != wanted:
        raise DataError(
            f"{target} is there already with MD5 {got}, the official file has {wanted}. Name another folder, or move "
            "that file away."
        )
    return target


def _download(url: str, part: Path, *, attempts: int, pause: float, progress: Progress | None) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            if _continue(url, part, progress):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code == _RANGE_REFUSED and before:
                part.unlink()  # longer than the file it should be: start over
                reason = "the server has less than was downloaded"
            elif error.code in (429, 500, 502, 503, 504):
                reason = f"the server answered {error.code}"
            else:
                raise _unreachable(url, f"the server answered {error.code} ({error.reason})") from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 0 if _size(part) > before else failures + 1
        if failures >= attempts:
            raise _unreachable(url, reason)
        time.sleep(pause * 2 ** max(failures - 1, 0))


def _continue(url: str, part: Path, progress: Progress | None) -> bool:
    """Append what is missing to ``part``; return whether the file is complete."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:
        if reply.status != _PARTIAL:
            have = 0  # a server without ranges sends the whole file again
        length = reply.headers.get("Content-Length")
        total = have + int(length) if length else 0
        with part.open("ab" if have else "wb") as stream:
            while chunk := reply.read(_CHUNK):
                stream.write(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(have, total)
            stream.flush()
            os.fsync(stream.fileno())
    return total in (0, have)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unreachable(url: str, reason: str) -> DataError:
    return DataError(
        f"cannot download {url}: {reason}. What was downloaded so far is kept; try again when there is a network, or "
        "fetch the file elsewhere and put it into the folder under the same name."
    )
