"""The study's own certificate authority, and the server's certificate it signs.

Both keys are EC P-384. The authority lasts ten years and is made once: sites trust it by its certificate in their kit.
The server's certificate lasts a year and is made anew when fewer than 30 days are left or its names change.
"""

from __future__ import annotations

import datetime
import fcntl
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from popmi_core.atomic import replace_atomically
from popmi_core.errors import SetupError

CA_DAYS, SERVER_DAYS, RENEW_DAYS = 3650, 365, 30
ALWAYS = ("localhost", "127.0.0.1", "::1")
"""The server's own processes meet on this machine."""
EARLIER = datetime.timedelta(days=1)
"""How long before now a certificate begins: a site's clock may be behind, and says so elsewhere."""


@dataclass(frozen=True)
class Certificates:
    """What there is: whole days left of both certificates, and whether the server's was just made."""

    ca_days: int
    server_days: int
    made: bool


def ensure_certificates(
    folder: Path, *, project: str, names: Sequence[str], now: datetime.datetime | None = None
) -> Certificates:
    """Make what is missing in ``folder`` and renew what runs out; change nothing else.

    Args:
        folder: Gets ``ca.pem``, ``ca.key``, ``server.pem`` and ``server.key``; keys readable by their owner only.
        project: Name of the study, for the authority's name.
        names: DNS names and IP addresses of the server.
        now: Time in UTC, for tests.

    Raises:
        SetupError: If a file is damaged, one of the authority's two is missing, or nothing can be written.
    """
    moment = now or datetime.datetime.now(datetime.UTC)
    wanted = sorted({*names, *ALWAYS})
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            ca, ca_key = _authority(folder, project, moment)
            made = _due(folder, ca, wanted, moment)
            if made:
                _issue(folder, ca, ca_key, wanted, moment)
    except OSError as error:
        raise SetupError(
            f"certificates in {folder} cannot be written: {error.strerror}. Check its owner and room."
        ) from error
    return Certificates(
        days_left(folder / "ca.pem", now=moment), days_left(folder / "server.pem", now=moment), made=made
    )


def days_left(path: Path, *, now: datetime.datetime | None = None) -> int:
    """Return the whole days for which a certificate is still good, negative once it has run out.

    Raises:
        SetupError: If there is none, or it is damaged.
    """
    left = _read(path).not_valid_after_utc - (now or datetime.datetime.now(datetime.UTC))
    return left.days


def _authority(
    folder: Path, project: str, now: datetime.datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    path, key_path = folder / "ca.pem", folder / "ca.key"
    if path.exists() != key_path.exists():
        missing = key_path if path.exists() else path
        raise SetupError(
            f"{missing} is missing, but its other half is there. Put it back from a backup; a new authority would "
            "lock out every site that holds a kit of the old one."
        )
    if not path.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"POPMI authority of {project}"[:64])])
        _write(key_path, _private(key), 0o600)
        _write(path, _sign_authority(name, key, now).public_bytes(serialization.Encoding.PEM), 0o644)
    ca, key = _read(path), _read_key(key_path)
    if ca.public_key() != key.public_key():
        raise SetupError(f"{key_path} does not belong to {path}. Put both back from one backup.")
    return ca, key


def _sign_authority(name: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    # A path length of 0: it signs servers, no further authorities.
    return (
        _begun(name, name, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def _issue(
    folder: Path,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    now: datetime.datetime,
) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "POPMI server")])
    authority = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _begun(subject, ca.subject, key.public_key(), now, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    # Key first: a crash between the two leaves a pair that does not fit, which the next call makes anew.
    _write(folder / "server.key", _private(key), 0o600)
    _write(folder / "server.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _due(folder: Path, ca: x509.Certificate, names: Sequence[str], now: datetime.datetime) -> bool:
    path, key_path = folder / "server.pem", folder / "server.key"
    if not path.exists() or not key_path.exists():
        return True
    certificate = _read(path)
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError):
        return True
    alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        certificate.public_key() != _read_key(key_path).public_key()
        or set(alternative) != {_general(name) for name in names}
        or days_left(path, now=now) < RENEW_DAYS
    )


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    bare = name.removeprefix("[").removesuffix("]")
    try:
        return x509.IPAddress(ipaddress.ip_address(bare))
    except ValueError:
        pass
    try:
        return x509.DNSName(bare)
    except ValueError as error:
        raise SetupError(
            f"certificate name {name!r} is neither a DNS name in ASCII nor an IP address. Correct --name or --endpoint."
        ) from error


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise SetupError(f"cannot read certificate {path}: {error.strerror}. Run `popmi server init`.") from error
    except ValueError as error:
        raise SetupError(f"{path} is no certificate in PEM form: it is damaged. Put it back from a backup.") from error


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise SetupError(f"{path} is no private key in PEM form: it is damaged. Put it back from a backup.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SetupError(f"{path} holds a {type(key).__name__}, expected an EC key. Put it back from a backup.")
    return key


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, payload: bytes, mode: int) -> None:
    # The temporary file is the owner's only from its first byte; others may read it once it holds no secret.
    replace_atomically(path, payload)
    path.chmod(mode)
