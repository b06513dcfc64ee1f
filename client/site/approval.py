"""Which code a site lets run: what was approved, what waits, and how the two differ."""

from __future__ import annotations

import difflib
import getpass
import os
import re
import time
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from client.site.home import SiteHome
from popmi_core.atomic import replace_atomically
from popmi_core.deployment.bundle import bundle_files, code_hash, unpack
from popmi_core.errors import SetupError

MOST_WAITING = 5
_HASH = re.compile(r"[0-9a-f]{64}")


class Approval(BaseModel):
    """One approved bundle: the hash of its code, when (seconds since 1970), by which user of this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str = Field(pattern=r"^[0-9a-f]{64}$")
    time: float
    by: str


_LIST = TypeAdapter(tuple[Approval, ...])


class Approvals:
    """What one site has approved, on its disk; read anew at every question, so that a running gate sees changes."""

    def __init__(self, home: SiteHome) -> None:
        self.home = home

    def approved(self) -> tuple[Approval, ...]:
        """Return all approvals, oldest first.

        Raises:
            SetupError: If the file is damaged: then nothing is approved.
        """
        try:
            return _LIST.validate_json(self.home.approved.read_bytes())
        except FileNotFoundError:
            return ()
        except (OSError, ValidationError) as error:
            raise SetupError(
                f"{self.home.approved} cannot be read: nothing is approved. Move it away and run `popmi site approve`."
            ) from error

    def allows(self, code: str) -> bool:
        """Return whether code of this hash may run here.

        Raises:
            SetupError: If the file is damaged.
        """
        return any(item.code == code for item in self.approved())

    def waiting(self) -> list[str]:
        """Return hashes of bundles that came and are not approved, newest first."""
        known = {item.code for item in self.approved()}
        files = sorted(self.home.bundles.glob("*.zip"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.stem for path in files if _HASH.fullmatch(path.stem) and path.stem not in known]

    def keep(self, content: Mapping[str, bytes]) -> str:
        """Keep a bundle's files, for people to look at; return their hash. Nothing in it is run or imported."""
        code = code_hash(content)
        path = self.home.bundles / f"{code}.zip"
        if not path.exists():
            replace_atomically(path, _packed(content))
        # A server that sends ever new code must not fill the disk.
        for old in self.waiting()[MOST_WAITING:]:
            (self.home.bundles / f"{old}.zip").unlink(missing_ok=True)
        return code

    def content(self, code: str) -> dict[str, bytes]:
        """Return a kept bundle's files by path.

        Raises:
            SetupError: If it is not here, or not what its name says.
        """
        path = self.home.bundles / f"{code}.zip"
        if not path.exists():
            raise SetupError(f"no bundle {code[:12]} is kept here. `popmi site approve` without a hash lists them.")
        content = unpack(path.read_bytes())
        if (found := code_hash(content)) != code:
            raise SetupError(f"{path} holds code {found[:12]}, expected {code[:12]}: it was changed. Remove it.")
        return content

    def find(self, start: str) -> str:
        """Return the one hash of a kept bundle that begins with ``start``.

        Raises:
            SetupError: If there is none, or more than one.
        """
        kept = sorted(path.stem for path in self.home.bundles.glob("*.zip") if path.stem.startswith(start))
        if len(kept) != 1:
            raise SetupError(
                f"{len(kept)} bundles kept here begin with '{start}', expected one. Waiting: "
                f"{', '.join(item[:12] for item in self.waiting()) or 'none'}."
            )
        return kept[0]

    def approve(self, code: str) -> Approval:
        """Let a kept bundle run, from now on.

        Raises:
            SetupError: If it is not kept here: nothing is approved unseen.
        """
        self.content(code)
        made = Approval(code=code, time=time.time(), by=_user())
        kept = [item for item in self.approved() if item.code != code]
        replace_atomically(self.home.approved, _LIST.dump_json((*kept, made), indent=1))
        self.home.audit.append("code.approved", code=code, by=made.by)
        return made

    def withdraw(self, code: str) -> None:
        """Let a bundle run no more; a task it is at is finished.

        Raises:
            SetupError: If it was not approved.
        """
        if not self.allows(code):
            raise SetupError(f"code {code[:12]} is not approved here; there is nothing to withdraw.")
        kept = tuple(item for item in self.approved() if item.code != code)
        replace_atomically(self.home.approved, _LIST.dump_json(kept, indent=1))
        self.home.audit.append("code.withdrawn", code=code, by=_user())

    def before(self, code: str) -> dict[str, bytes]:
        """Return the files of the bundle approved last, other than ``code``; none where there is no other."""
        for item in reversed(self.approved()):
            if item.code != code and (self.home.bundles / f"{item.code}.zip").exists():
                return self.content(item.code)
        return {}


def installed_code() -> dict[str, bytes]:
    """Return the files of the bundle that this installation of POPMI itself would send out."""
    return bundle_files()


def changed(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Return which paths were added, changed and removed, sorted."""
    return {
        "added": sorted(new.keys() - old.keys()),
        "changed": sorted(path for path in new.keys() & old.keys() if new[path] != old[path]),
        "removed": sorted(old.keys() - new.keys()),
    }


def unified(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> Iterator[str]:
    """Return the difference between two bundles, line by line, as ``diff -u`` writes it; control characters shown."""
    for path in sorted(old.keys() | new.keys()):
        before, after = old.get(path, b""), new.get(path, b"")
        if before != after:
            lines = difflib.unified_diff(
                _lines(before),
                _lines(after),
                f"approved/{path}",
                f"new/{path}",
                lineterm="",
            )
            # What a terminal would obey could hide a line from the eyes that approve it.
            yield from (_visible(line) for line in lines)


def summary(difference: Mapping[str, list[str]]) -> str:
    """Return the difference in one line for people."""
    return ", ".join(f"{len(paths)} {what}" for what, paths in difference.items() if paths) or "no difference"


def describe(approvals: Approvals) -> dict[str, list[str]]:
    """Return what is approved and what waits, for ``popmi site status``."""
    return {"approved": [item.code for item in approvals.approved()], "waiting": approvals.waiting()}


def _lines(content: bytes) -> list[str]:
    # Not splitlines: it ends lines at signs where Python does not, so that a line of code turned into the tail of a
    # comment would show no difference.
    return content.decode("utf-8", "backslashreplace").split("\n")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user may have a number and no name.
        return f"user {os.getuid()}"


def _visible(line: str) -> str:
    return "".join(sign if sign.isprintable() or sign == "\t" else f"\\x{ord(sign):02x}" for sign in line)


def _packed(content: Mapping[str, bytes]) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(content):
            file.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), content[path], zipfile.ZIP_DEFLATED)
    return packed.getvalue()
