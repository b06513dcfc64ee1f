"""The server's processes: which there are, with what arguments and in what environment each runs."""

from __future__ import annotations

import os
import secrets
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from popmi_core.atomic import replace_atomically
from popmi_core.deployment.supervise import Process
from popmi_core.errors import SetupError
from popmi_core.protocol import HOME_VARIABLE
from server.control.home import ServerHome, ServerSettings

SECRET_BYTES = 32
DASHBOARD_PORT = 8080


@dataclass(frozen=True)
class Places:
    """Where processes listen.

    Attributes:
        superlink: Address the SuperLink binds; None: the host of ``settings.superlink``, which is this machine's own.
        host: Address the gateway binds, the only public one.
        port: Port the gateway binds; None: the endpoint's.
        dashboard_host: Address the pages bind.
        dashboard_port: Port the pages bind.
        confirm_from: Folder whose enrolments the keeper confirms by itself; simulations on one machine only.
        refused: File in which the gateway counts refused keys and the keeper reads them; None: in the home.
    """

    superlink: str | None = None
    host: str = "0.0.0.0"
    port: int | None = None
    dashboard_host: str = "127.0.0.1"
    dashboard_port: int = DASHBOARD_PORT
    confirm_from: Path | None = None
    refused: Path | None = None


def processes(home: ServerHome, settings: ServerSettings, places: Places) -> dict[str, Process]:
    """Return all processes of a server by name, in the order of their start."""
    made: dict[str, Callable[[ServerHome, ServerSettings, Places], list[str]]] = {
        "superlink": superlink_command,
        "runner": runner_command,
        "gateway": gateway_command,
        "keeper": keeper_command,
        "dashboard": dashboard_command,
    }
    env = environment(home)
    # A line for every question it is asked would fill the disk; the audit log and the gateway tell what matters.
    quiet = {"FLWR_LOG_LEVEL": os.environ.get("FLWR_LOG_LEVEL", "WARNING")}
    return {
        name: Process(name, command(home, settings, places), env | (quiet if name == "superlink" else {}))
        for name, command in made.items()
    }


def environment(home: ServerHome) -> dict[str, str]:
    """Return what every process gets beside what it inherits.

    The folder of this installation's programs comes first on PATH: Flower's runner starts `flwr-serverapp` by name.
    """
    folder = str(programs())
    path = os.environ.get("PATH", os.defpath)
    return {
        "PATH": path if path.split(os.pathsep)[0] == folder else os.pathsep.join((folder, path)),
        HOME_VARIABLE: str(home.folder),
        "FLWR_HOME": str(home.folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "PYTHONUNBUFFERED": "1",
    }


def superlink_command(home: ServerHome, settings: ServerSettings, places: Places) -> list[str]:
    """Return the SuperLink's command: TLS, node authentication, state on disk, nothing installed at run time."""
    host, port = split_address(settings.superlink)
    return [
        *(sys.executable, "-m", "server.control.patient"),
        *("--host", places.superlink or host, "--port", str(port)),
        *("--ssl-ca-certfile", str(home.ca), "--ssl-certfile", str(home.certificate), "--ssl-keyfile", str(home.key)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(home.secret)),
        *("--enable-supernode-auth", "--database", str(home.state), "--disable-runtime-dependency-installation"),
    ]


def runner_command(home: ServerHome, settings: ServerSettings, places: Places) -> list[str]:
    """Return the command of Flower's runner, which starts the server app of every run."""
    del places
    return [
        *(sys.executable, "-m", "server.control.runner"),
        *("--runtime-api-address", settings.superlink, "--root-certificates", str(home.ca)),
        *("--superexec-auth-secret-file", str(home.secret)),
    ]


def gateway_command(home: ServerHome, settings: ServerSettings, places: Places) -> list[str]:
    """Return the gateway's command."""
    port = places.port or split_address(settings.endpoint)[1]
    return _own(home, "gateway", "--host", places.host, "--port", str(port))


def keeper_command(home: ServerHome, settings: ServerSettings, places: Places) -> list[str]:
    """Return the keeper's command."""
    del settings
    given = () if places.confirm_from is None else ("--confirm-from", str(places.confirm_from))
    return _own(home, "keeper", *given)


def dashboard_command(home: ServerHome, settings: ServerSettings, places: Places) -> list[str]:
    """Return the command of the pages; it reads the database's address from its environment."""
    del settings
    return [
        str(programs() / "popmi"),
        *("serve", "--home", str(home.folder), "--host", places.dashboard_host, "--port", str(places.dashboard_port)),
    ]


def programs() -> Path:
    """Return the folder of this installation's programs."""
    return Path(sysconfig.get_path("scripts"))


def split_address(address: str) -> tuple[str, int]:
    """Return host, without brackets, and port of ``host:port``."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def ensure_secret(path: Path) -> None:
    """Make the secret that SuperLink and runner share, once, readable by its owner only.

    Raises:
        SetupError: If it cannot be written.
    """
    if not path.exists():
        try:
            replace_atomically(path, secrets.token_bytes(SECRET_BYTES))
        except OSError as error:
            raise SetupError(f"cannot write {path}: {error.strerror}. Check the folder's owner and room.") from error


def _own(home: ServerHome, name: str, *arguments: str) -> list[str]:
    return [str(programs() / "popmi"), "server", "up", "--only", name, "--home", str(home.folder), *arguments]
