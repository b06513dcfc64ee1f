"""A site's folder: what lies where, and what it says about the site."""

from __future__ import annotations

import logging
import os
import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from popmi_core.atomic import replace_atomically
from popmi_core.deployment import AuditLog, SiteKit
from popmi_core.deployment.enrolment import Endpoint
from popmi_core.errors import AuditError, SetupError

log = logging.getLogger("popmi.site")
DEFAULT_HOME = "popmi-site"
HOME_VARIABLE = "POPMI_SITE_HOME"


class SiteConfig(BaseModel):
    """``site.toml``: what this site is and where its images lie. ``endpoint`` is ``host:port`` of the gateway."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str = Field(min_length=1)
    site: str = Field(min_length=1)
    endpoint: Endpoint
    classes: tuple[str, ...] = Field(min_length=2)
    data: str = Field(min_length=1, description="folder, npz file or phantom:NAME; see docs/data.md")
    label_map: str | None = Field(default=None, description="file with the site's own words for the classes")
    proxy: str | None = Field(default=None, description="http://host:port; None takes HTTPS_PROXY of the environment")


class SiteHome:
    """One site's folder; nothing in it is made before it is written.

    Args:
        folder: The folder; None takes $POPMI_SITE_HOME, else ``popmi-site`` here.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME)).expanduser().absolute()
        self.config_file = self.folder / "site.toml"
        self.kit_file = self.folder / "kit.json"
        self.ca = self.folder / "ca.pem"
        self.key = self.folder / "node.key"
        self.public_key = self.folder / "node.pub"
        self.secret = self.folder / "secret"
        self.approved = self.folder / "approved.json"
        self.bundles = self.folder / "bundles"
        self.state = self.folder / "state"
        self.processes = self.folder / "processes"
        self.paused = self.folder / "paused"
        self.left = self.folder / "left"
        self.audit = AuditLog(self.folder / "audit.jsonl")

    @property
    def enrolled(self) -> bool:
        """Whether there is a key and a description."""
        return self.key.exists() and self.config_file.exists()

    def config(self) -> SiteConfig:
        """Return what ``site.toml`` says.

        Raises:
            SetupError: If the site was never enrolled here, or the file is damaged.
        """
        try:
            return SiteConfig.model_validate(tomllib.loads(self.config_file.read_text(encoding="utf-8")))
        except OSError as error:
            raise SetupError(
                f"{self.folder} is no site ({self.config_file.name}: {error.strerror}). Run `popmi site enrol KIT` "
                f"first, or name the folder with --home or {HOME_VARIABLE}."
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SetupError(f"{self.config_file} is not TOML: {error}. Correct it.") from error
        except ValidationError as error:
            lines = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise SetupError(f"{self.config_file} does not describe a site: {lines}. Correct it.") from error

    def write_config(self, config: SiteConfig) -> None:
        """Write ``site.toml``."""
        told: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
        replace_atomically(self.config_file, tomli_w.dumps(told).encode())

    def kit(self) -> SiteKit:
        """Return the kit this site was enrolled with.

        Raises:
            SetupError: If it is missing or damaged.
        """
        try:
            return SiteKit.model_validate_json(self.kit_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SetupError(
                f"{self.kit_file} is missing or no kit of this POPMI version. Run `popmi site enrol KIT` again; the "
                "key stays."
            ) from error

    def node_config(self, config: SiteConfig) -> dict[str, str | int | float | bool]:
        """Return what the client app is told of this site: its name, its data and the folder for what stays here."""
        data = config.data
        if config.label_map is not None and "#labels=" not in data:
            # In the order of a specification's parts: labels before classes.
            place, mark, classes = data.partition("#classes=")
            data = f"{place}#labels={config.label_map}{mark}{classes}"
        return {"site": config.site, "data": data, "state": str(self.state)}

    def pause_reason(self) -> str | None:
        """Return why the site has paused; None where it takes part.

        Raises:
            SetupError: If the file that says so cannot be read: whether the site has paused is then not known.
        """
        try:
            return self.paused.read_text(encoding="utf-8").strip() or "no reason given"
        except FileNotFoundError:
            return None
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or "no UTF-8 text"
            if isinstance(error, PermissionError):
                step = "Run as its owner."
            elif isinstance(error, IsADirectoryError):
                step = "Remove it: a folder of that name is no pause."
            else:
                step = "Run `popmi site pause`, then `popmi site resume`: they write it anew."
            raise SetupError(
                f"{self.paused} cannot be read ({why}), so whether the site has paused is not known. {step}"
            ) from error

    def note(self, event: str, **details: Any) -> bool:
        """Write down what has happened already and nothing depends on; return whether it stands in the audit log.

        A full disk must not end the gate over such a line: the log tells it instead. What must not happen unseen, as
        work on a task, is written by ``audit.append``, which raises.
        """
        try:
            self.audit.append(event, **details)
        except AuditError as error:
            log.warning("not in the audit log: %s %s (%s)", event, details, error)
            return False
        return True
