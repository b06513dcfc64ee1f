"""Enrol: make this site's key here, and a file that tells the operator its public half."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from client.site.home import SiteConfig, SiteHome
from popmi_core.atomic import replace_atomically
from popmi_core.data.spec import SiteSpec
from popmi_core.deployment import Enrolment, SiteKit
from popmi_core.errors import SetupError


@dataclass(frozen=True)
class Enrolled:
    """What enrolling led to: the file for the operator, the fingerprint to compare, whether the key is new, notes."""

    file: Path
    fingerprint: str
    new_key: bool
    notes: tuple[str, ...] = ()


def enrol(
    home: SiteHome, kit: SiteKit, *, data: str, label_map: Path | None = None, proxy: str | None = None
) -> Enrolled:
    """Write a site's folder from ``kit``; a key that is there already stays, and so do label map and proxy not given.

    Raises:
        SetupError: If there is a key of another site or project here or a damaged one, or the folder cannot be written.
    """
    refuse_other_site(home, kit)
    before = home.config() if home.config_file.exists() else None
    words = str(label_map.absolute()) if label_map is not None else before.label_map if before else None
    way = proxy or (before.proxy if before else None)
    try:
        made = not home.key.exists()
        if made:
            write_key(home)
        enrolment = Enrolment(project=kit.project, site=kit.site, public_key=public_half(home))
        if not home.secret.exists():
            _write_private(home.secret, secrets.token_bytes(32))
        notes = [*_replace_ca(home, kit.ca_pem)]
        replace_atomically(home.kit_file, kit.model_dump_json(indent=1).encode())
        config = SiteConfig(
            project=kit.project,
            site=kit.site,
            endpoint=kit.endpoint,
            classes=kit.classes,
            data=_absolute(data),
            label_map=words,
            proxy=way,
        )
        home.write_config(config)
        home.left.unlink(missing_ok=True)
        file = home.folder / f"{kit.site}.enrolment.json"
        replace_atomically(file, enrolment.model_dump_json(indent=1).encode())
    except OSError as error:
        raise SetupError(f"cannot write {home.folder}: {error.strerror}. Check its owner and its room.") from error
    if label_map is None and words is not None:
        notes.append(f"The label map stays: {words}")
    if proxy is None and way is not None:
        notes.append("The proxy of site.toml stays.")
    home.audit.append("site.enrolled", site=kit.site, project=kit.project, key=enrolment.fingerprint, new_key=made)
    return Enrolled(file, enrolment.fingerprint, made, tuple(notes))


def refuse_other_site(home: SiteHome, kit: SiteKit) -> None:
    """Stop where a folder belongs to another site than the kit, or holds a key of unknown origin.

    Raises:
        SetupError: With what the folder is, and what the kit is for.
    """
    if home.config_file.exists():
        here = home.config()
        if (here.project, here.site) != (kit.project, kit.site):
            raise SetupError(
                f"{home.folder} is site {here.site} of project {here.project}; the kit is for site {kit.site} of "
                f"{kit.project}. Give every site its own folder with --home."
            )
    elif home.key.exists():
        raise SetupError(
            f"{home.key} is there, but no {home.config_file.name} that says whose it is; it is not overwritten. Move "
            "it away, or add --new-key."
        )


def public_half(home: SiteHome) -> str:
    """Return the public half of the site's key in OpenSSH's form, and write it beside the key where it is not there.

    Raises:
        SetupError: If the private key is damaged.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

    try:
        key = load_ssh_private_key(home.key.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SetupError(
            f"{home.key} is no private key in OpenSSH's form: it was damaged. Restore it from a backup, or make a new "
            "one with --new-key; the operator then confirms that."
        ) from error
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    if not home.public_key.exists() or home.public_key.read_bytes().strip() != public:
        replace_atomically(home.public_key, public + b"\n")
    return public.decode()


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


def _replace_ca(home: SiteHome, pem: str) -> Iterator[str]:
    old = home.ca.read_bytes() if home.ca.exists() else None
    if old is not None and old != pem.encode():
        kept = home.ca.with_name("ca.pem.old")
        replace_atomically(kept, old)
        yield f"ca.pem is the kit's now; the one before lies in {kept}. An authority you had added must be added again."
    replace_atomically(home.ca, pem.encode())


def _write_private(path: Path, content: bytes) -> None:
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    # Whole or not at all, and mode 0600 from its first byte: half a key, left by a full disk, would count as the key.
    replace_atomically(path, content)
