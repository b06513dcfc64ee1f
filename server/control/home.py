"""The server's home: one folder with everything a federation's server must keep."""

from __future__ import annotations

import fcntl
import getpass
import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from popmi_core.atomic import replace_atomically
from popmi_core.config import RunConfig
from popmi_core.deployment import AuditLog
from popmi_core.deployment.enrolment import SiteName
from popmi_core.errors import SetupError
from popmi_core.protocol import AUDIT_FILE, HOME_VARIABLE

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Address = Annotated[
    str,
    StringConstraints(pattern=r"^[^\s:/]+:\d{1,5}$|^\[[0-9a-fA-F:]+\]:\d{1,5}$"),
    AfterValidator(lambda address: _with_a_port(address)),
]
RunName = Annotated[str, StringConstraints(pattern=RUN_NAME)]
State = Literal["invited", "enrolled", "revoked"]
LONGEST_REASON = 500
"""Letters of a reason that registry and audit log keep."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(_Frozen):
    """``server.toml``: what this server is for.

    Attributes:
        project: Name of the study, as sites see it.
        endpoint: ``host:port`` at which sites reach the gateway.
        superlink: ``host:port`` at which the server's own processes reach the SuperLink; never public.
        names: Further DNS names and IP addresses of the server's certificate.
        classes: The study's classes, in the order of the model's outputs.
        data_name: Short name of the data, for the record.
        phantom: Whether no image of the study shows a patient.
        external: Folder on this machine with a test set no site trains on.
        connections_per_address: Connections the gateway takes of one address; hospitals may share one.
        config: The run that is planned; kits carry it, ``popmi server start`` takes it without a file.
    """

    project: str = Field(min_length=1, max_length=120)
    endpoint: Address
    superlink: Address = "127.0.0.1:18000"
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = Field(min_length=2)
    data_name: str
    phantom: bool = False
    external: str | None = None
    connections_per_address: int = Field(default=500, ge=4)
    config: RunConfig = RunConfig()


@dataclass(frozen=True)
class Asker:
    """Who asks for an act that the keeper carries out: an account of the pages, through what, in which order."""

    name: str
    via: str
    order: int | None = None


class Unlogged(_Frozen):
    """What the audit log does not say of a revocation yet: why, and who asked for it, through what."""

    reason: str
    by: str
    via: str | None = None


class Excluded(_Frozen):
    """Why a site is left out of rounds for now, who asked for it, and since when (seconds since 1970 UTC)."""

    reason: str = Field(min_length=1, max_length=LONGEST_REASON)
    by: str
    since: float


class SiteEntry(_Frozen):
    """One site in the registry; ``since`` is when its state began, in seconds since 1970 UTC.

    A revoked site keeps its node id until the SuperLink has cut it off and the audit log says so, and ``unlogged``
    until the audit log holds its revocation. One that is ``excluded`` keeps its key and is not asked.
    """

    public_key: str | None = None
    node_id: int | None = None
    state: State = "invited"
    since: float = 0.0
    unlogged: Unlogged | None = None
    excluded: Excluded | None = None


class Wanted(_Frozen):
    """The run the keeper shall keep going, or have stopped, since a time in seconds since 1970 UTC."""

    run: RunName
    state: Literal["going", "stopped"]
    since: float = 0.0


_SITES: TypeAdapter[dict[SiteName, SiteEntry]] = TypeAdapter(dict[SiteName, SiteEntry])


class ServerHome:
    """Paths and small files of one server.

    Args:
        folder: The home; made by ``popmi server init``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.settings_file = self.folder / "server.toml"
        self.pki = self.folder / "pki"
        self.ca = self.pki / "ca.pem"
        self.certificate, self.key = self.pki / "server.pem", self.pki / "server.key"
        self.secret = self.folder / "secrets" / "superexec"
        self.state = self.folder / "state.db"
        self.sites_file = self.folder / "sites.json"
        self.wanted_file = self.folder / "wanted.json"
        self.pins_file = self.folder / "pins.json"
        self.kits, self.runs = self.folder / "kits", self.folder / "runs"
        self.processes = self.folder / "processes"
        # Touched by the keeper whenever a look of its went well.
        self.looked = self.processes / "keeper-looked"
        self.audit_file = self.folder / AUDIT_FILE
        # Bytes kept back for the day the disk is full: see `server.control.reserve`.
        self.reserve = self.folder / "reserve"
        # What the gateway counts and the keeper writes down: see `server.control.tally`.
        self.refused = self.processes / "refused.json"

    def settings(self) -> ServerSettings:
        """Return the settings.

        Raises:
            SetupError: If the home was never made, or its settings are unusable.
        """
        try:
            return ServerSettings.model_validate(tomllib.loads(self.settings_file.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise SetupError(
                f"{self.folder} is no server's home: it has no {self.settings_file.name}. Make one with "
                f"`popmi server init`, or name another with --home or {HOME_VARIABLE}."
            ) from error
        except OSError as error:
            raise SetupError(f"cannot read {self.settings_file}: {error.strerror}. Check its owner.") from error
        except (ValueError, ValidationError) as error:
            raise SetupError(f"{self.settings_file} is unusable: {said(error)}. Correct it.") from error

    def write_settings(self, settings: ServerSettings) -> None:
        """Write the settings; an existing file is replaced in one step."""
        told = settings.model_dump(mode="json", exclude_none=True)
        self._write(self.settings_file, tomli_w.dumps(told))

    def sites(self) -> dict[str, SiteEntry]:
        """Return the registry, sites by name; empty before the first.

        Raises:
            SetupError: If the file is damaged.
        """
        try:
            return dict(sorted(_SITES.validate_json(self.sites_file.read_bytes()).items()))
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            raise SetupError(
                f"{self.sites_file} is unusable: {said(error)}. Put it back from a backup; the audit log tells "
                "which sites there were."
            ) from error

    @contextmanager
    def changing_sites(self) -> Iterator[dict[str, SiteEntry]]:
        """Hold the registry, hand it out to be changed, and write it in one step when the block ends well."""
        with self.held("sites"):
            sites = self.sites()
            yield sites
            self._write(self.sites_file, _SITES.dump_json(sites, indent=1).decode())

    def wanted(self) -> Wanted | None:
        """Return which run is wanted, None before the first.

        Raises:
            SetupError: If the file is damaged.
        """
        try:
            return Wanted.model_validate_json(self.wanted_file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise SetupError(
                f"{self.wanted_file} is unusable: {said(error)}. Say again what is wanted: `popmi server resume NAME`."
            ) from error

    def want(self, run: str, state: Literal["going", "stopped"]) -> Wanted:
        """Say which run is wanted and how, from now on."""
        wanted = Wanted(run=run, state=state, since=time.time())
        self._write(self.wanted_file, wanted.model_dump_json(indent=1))
        return wanted

    def run_folder(self, name: str) -> Path:
        """Return the folder of a run.

        Raises:
            SetupError: If the name could lead elsewhere.
        """
        try:
            return self.runs / TypeAdapter(RunName).validate_python(name)
        except ValidationError as error:
            raise SetupError(
                f"run name {name!r}: expected letters, digits, dot, dash and underline, at most 100, beginning with a "
                "letter or digit. Choose another --name."
            ) from error

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Be the only process of its kind at this home while the block lasts.

        Raises:
            SetupError: If there is another.
        """
        with self.held(what, wait=False):
            yield

    def note(self, event: str, asker: Asker | None = None, **details: Any) -> None:
        """Write one line into the audit log, with who did it: ``asker``, or the user of the operating system.

        Raises:
            AuditError: If it cannot be written; then what was to be done must not be.
        """
        who: dict[str, Any] = {"who": operator()} if asker is None else {"who": asker.name, "via": asker.via}
        if asker is not None and asker.order is not None:
            who["order"] = asker.order
        AuditLog(self.audit_file).append(event, **who, **details)

    def _write(self, path: Path, text: str) -> None:
        try:
            replace_atomically(path, text.encode())
        except OSError as error:
            raise SetupError(f"cannot write {path}: {error.strerror}. Check the folder's owner and room.") from error

    @contextmanager
    def held(self, what: str, *, wait: bool = True) -> Iterator[None]:
        """Hold one of the home's locks while the block lasts; with ``wait``, after whoever holds it.

        Raises:
            SetupError: If the folder cannot be written, or, without ``wait``, another process holds it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / f".{what}.lock").open("a")
        except OSError as error:
            raise SetupError(f"cannot write in {self.folder}: {error.strerror}. Check the folder's owner.") from error
        with lock:
            try:
                # The system lets go of it when the process ends, however it ends.
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SetupError(f"{self.folder}: another {what} is running here. End it first.") from error
            yield


def operator() -> str:
    """Return the name of the user of the operating system who is at it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user often has a number only.
        return f"uid {os.getuid()}"


def _with_a_port(address: str) -> str:
    if not 0 < int(address.rpartition(":")[2]) <= 65535:
        raise ValueError("the port must be 1 to 65535")
    return address


def said(error: Exception) -> str:
    """Return what is wrong in one line."""
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'the whole'}: {item['msg']}" for item in error.errors()
        )
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
