"""Enrol: make this site's key here, and a file that tells the operator its public half."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

from client.site.home import SiteConfig, SiteHome
from popmi_core.atomic import replace_atomically
from popmi_core.data.spec import SiteSpec
from popmi_core.deployment import Enrolment, SiteKit
from popmi_core.errors import SetupError


@dataclass(frozen=True)
class Enrolled:
    """What enrolling led to: the file for the operator, the fingerprint to compare, and whether the key is new."""

    file: Path
    fingerprint: str
    new_key: bool


def enrol(
    home: SiteHome, kit: SiteKit, *, data: str, label_map: Path | None = None, proxy: str | None = None
) -> Enrolled:
    """Write a site's folder from ``kit``; a key that is there already stays and is told again.

    Raises:
        SetupError: If there is a key of another site or project here, or the folder cannot be written.
    """
    if home.config_file.exists():
        _check_same(home, kit)
    elif home.key.exists():
        raise SetupError(
            f"{home.key} is there, but no {home.config_file.name} that says whose it is; it is not overwritten. Move "
            "it away, or add --new-key."
        )
    try:
        made = not home.key.exists()
        if made:
            write_key(home)
        if not home.secret.exists():
            _write_private(home.secret, secrets.token_bytes(32))
        replace_atomically(home.ca, kit.ca_pem.encode())
        replace_atomically(home.kit_file, kit.model_dump_json(indent=1).encode())
        home.write_config(
            SiteConfig(
                project=kit.project,
                site=kit.site,
                endpoint=kit.endpoint,
                classes=kit.classes,
                data=_absolute(data),
                label_map=None if label_map is None else str(label_map.absolute()),
                proxy=proxy,
            )
        )
        home.left.unlink(missing_ok=True)
        enrolment = Enrolment(
            project=kit.project, site=kit.site, public_key=home.public_key.read_text(encoding="utf-8").strip()
        )
        file = home.folder / f"{kit.site}.enrolment.json"
        replace_atomically(file, enrolment.model_dump_json(indent=1).encode())
    except OSError as error:
        raise SetupError(f"cannot write {home.folder}: {error.strerror}. Check its owner and its room.") from error
    home.audit.append("site.enrolled", site=kit.site, project=kit.project, key=enrolment.fingerprint, new_key=made)
    return Enrolled(file, enrolment.fingerprint, made)


def write_key(home: SiteHome) -> None:
    """Make an EC P-384 key; the private half is readable by its owner only, from its first byte on."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = ec.generate_private_key(ec.SECP384R1())
    # Flower's node loads keys in OpenSSH's form only.
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    home.folder.mkdir(parents=True, exist_ok=True)
    # Public first: a crash between the two leaves no private key whose public half is lost.
    replace_atomically(home.public_key, public + b"\n")
    _write_private(home.key, private)


def set_key_aside(home: SiteHome) -> Path | None:
    """Give the old key another name, so that a new one can be made; return where it lies now, None without one."""
    if not home.key.exists():
        return None
    kept = home.key.with_name(f"node-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.key.old")
    home.key.rename(kept)
    home.audit.append("key.set_aside", file=kept.name)
    return kept


def _absolute(data: str) -> str:
    # The service that reads it later starts in another folder.
    spec = SiteSpec.parse(data)
    return str(spec if spec.path is None else replace(spec, path=spec.path.absolute()))


def _check_same(home: SiteHome, kit: SiteKit) -> None:
    here = home.config()
    if (here.project, here.site) != (kit.project, kit.site):
        raise SetupError(
            f"{home.folder} is site {here.site} of project {here.project}; the kit is for site {kit.site} of "
            f"{kit.project}. Give every site its own folder with --home."
        )


def _write_private(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(handle)
