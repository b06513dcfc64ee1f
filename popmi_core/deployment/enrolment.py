"""How a hospital gets in: the kit the operator hands out, and the enrolment that comes back.

A kit holds nothing secret: where the server is, whom to trust, what the project is. The private key is made at the
site and never leaves it; what comes back is the public key, and a fingerprint both sides compare by telephone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from popmi_core import __version__
from popmi_core.atomic import replace_atomically
from popmi_core.config import RunConfig
from popmi_core.errors import SetupError

SITE_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
SiteName = Annotated[str, StringConstraints(pattern=SITE_NAME)]
Endpoint = Annotated[str, StringConstraints(pattern=r"^[^\s:/]+:\d{1,5}$|^\[[0-9a-fA-F:]+\]:\d{1,5}$")]
KIT_FILE, CA_FILE, README_FILE = "kit.json", "ca.pem", "README.txt"
MAX_KIT_BYTES = 2_000_000
README = """POPMI site kit for {site}, project {project}

1. Install POPMI {popmi} ({requirement}).
2. popmi site enrol {file} --data FOLDER
   makes this site's key here and prints its fingerprint. The key never leaves this machine.
3. Send the file it writes to the coordinating centre, and compare the fingerprint with them by telephone.
4. popmi site doctor          checks network, certificates, clock, disk and data
   popmi site check-data      says what is in the data set and what would leave this site
   popmi site dry-run         trains one round here and lists exactly what would be sent
   popmi site approve         shows the code that is to run here, and lets it
   popmi site run             takes part

The kit holds no secret. The server is {endpoint}; only outbound HTTPS to it is needed.
"""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SiteKit(_Frozen):
    """What a site must know before it can enrol; ``endpoint`` is ``host:port`` of the server's gateway."""

    project: str = Field(min_length=1, max_length=120)
    site: SiteName
    endpoint: Endpoint
    classes: tuple[str, ...] = Field(min_length=2)
    config: RunConfig = Field(description="the run that is planned, for the dry run and for what would leave the site")
    popmi: str = __version__
    ca_pem: str = Field(description="certificate of the authority that signed the server's certificate")


class Enrolment(_Frozen):
    """What a site sends back: its public key in OpenSSH form. Holds no secret."""

    project: str
    site: SiteName
    public_key: str
    popmi: str = __version__

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the key, as ``ssh-keygen -l`` prints it."""
        return fingerprint(self.public_key)


def fingerprint(public_key: str) -> str:
    """Return ``SHA256:...`` of a public key in OpenSSH form (RFC 4716's blob, unpadded base64 as OpenSSH prints it).

    Raises:
        SetupError: If the text is no such key.
    """
    fields = public_key.split()
    try:
        blob = base64.b64decode(fields[1], validate=True)
    except (IndexError, binascii.Error) as error:
        raise SetupError(
            "this is no public key: expected 'ecdsa-sha2-nistp384 AAAA...'. Take the file `popmi site enrol` wrote."
        ) from error
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def write_kit(path: Path, kit: SiteKit) -> None:
    """Write a kit as a zip file.

    Raises:
        SetupError: If the file cannot be written.
    """
    text = README.format(
        site=kit.site,
        project=kit.project,
        popmi=kit.popmi,
        requirement=f'pip install "popmi[site]=={kit.popmi}"',
        file=path.name,
        endpoint=kit.endpoint,
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(KIT_FILE, kit.model_dump_json(indent=1, exclude={"ca_pem"}))
        file.writestr(CA_FILE, kit.ca_pem)
        file.writestr(README_FILE, text)
    try:
        replace_atomically(path, packed.getvalue())
    except OSError as error:
        raise SetupError(f"cannot write site kit {path}: {error.strerror}. Choose another place.") from error


def read_kit(path: Path) -> SiteKit:
    """Return what a site kit says.

    Raises:
        SetupError: If the file is missing, no kit, or of another version of the format.
    """
    try:
        with zipfile.ZipFile(path) as file:
            told = _member(path, file, KIT_FILE).decode()
            ca = _member(path, file, CA_FILE).decode()
        # The certificate lies in a file of its own, for people and their tools to read.
        return SiteKit.model_validate({**json.loads(told), "ca_pem": ca})
    except OSError as error:
        raise SetupError(f"cannot read site kit {path}: {error.strerror}. Check the path.") from error
    # An encrypted or oddly packed zip raises what its decoder does.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, TypeError) as error:
        what = f"{error.error_count()} unusable field(s)" if isinstance(error, ValidationError) else error
        raise SetupError(
            f"{path} is no site kit of POPMI {__version__} ({what}), expected the zip `popmi server add-site` made. "
            "Ask the coordinating centre for a new one."
        ) from error


def read_enrolment(path: Path) -> Enrolment:
    """Return what a site sent back.

    Raises:
        SetupError: If the file is missing or no enrolment.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SetupError(f"cannot read enrolment {path}: {error.strerror}. Check the path.") from error
    except ValueError:
        # No text at all: told as what it is.
        text = ""
    return parse_enrolment(text, source=str(path))


def parse_enrolment(text: str, *, source: str) -> Enrolment:
    """Return what a site sent back, from the file's text; ``source`` is what an error calls it.

    Raises:
        SetupError: If it is no enrolment.
    """
    try:
        enrolment = Enrolment.model_validate_json(text)
    except ValueError as error:
        raise SetupError(
            f"{source} is no enrolment, expected the JSON file that `popmi site enrol` wrote. Ask the site for it."
        ) from error
    fingerprint(enrolment.public_key)
    return enrolment


def _member(path: Path, file: zipfile.ZipFile, name: str) -> bytes:
    try:
        info = file.getinfo(name)
    except KeyError:
        raise SetupError(
            f"{path} holds no {name}, expected a site kit. Ask the coordinating centre for a new one."
        ) from None
    if info.file_size > MAX_KIT_BYTES:
        raise SetupError(f"{path}: {name} unpacks to {info.file_size} bytes, expected at most {MAX_KIT_BYTES}.")
    return file.read(info)
