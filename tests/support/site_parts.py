"""Kits, homes, bundles and certificates for tests of a hospital's side."""

from __future__ import annotations

import ipaddress
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.site.enrol import enrol
from client.site.home import SiteHome
from popmi_core.config import RunConfig
from popmi_core.deployment import SiteKit

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
NOW = datetime.now(UTC).replace(microsecond=0)
SMALL_RUN = {
    "strategy": "fedavg",
    "rounds": 2,
    "model": {"backbone": "popmi_vit_micro", "image_size": 16},
    "local": {"batch_size": 16},
    "data": {"phantom_images": 60},
}


class Authority:
    """A certificate authority of a test, and the certificates it signs."""

    def __init__(self, name: str = "test authority") -> None:
        self.key, self.name = _key(), _named(name)
        self.certificate = (
            _begun(self.name, self.name, self.key)
            .not_valid_before(NOW - timedelta(days=400))
            .not_valid_after(NOW + timedelta(days=400))
            .add_extension(x509.BasicConstraints(True, 0), True)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        """The authority's certificate, as a kit has it."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def sign(
        self, folder: Path, *, host: str = "localhost", also: tuple[str, ...] = (), begin: float = -1, end: float = 90
    ) -> tuple[Path, Path]:
        """Write a server's certificate, valid from ``begin`` to ``end`` days from now, and its key."""
        key, hosts = _key(), (host, *also)
        names: list[x509.GeneralName] = [x509.DNSName(one) for one in hosts]
        if "localhost" in hosts:
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        made = (
            _begun(_named("gateway"), self.name, key)
            .not_valid_before(NOW + timedelta(days=begin))
            .not_valid_after(NOW + timedelta(days=end))
            .add_extension(x509.SubjectAlternativeName(names), False)
            .sign(self.key, hashes.SHA256())
        )
        folder.mkdir(parents=True, exist_ok=True)
        certificate, private = folder / "server.pem", folder / "server.key"
        certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, private


def make_kit(*, site: str = "north", endpoint: str = "localhost:1", ca_pem: str = "no certificate", **run) -> SiteKit:
    """Return a kit of a small run on the phantom."""
    config = RunConfig.model_validate({**SMALL_RUN, **run})
    return SiteKit(project="moles", site=site, endpoint=endpoint, classes=CLASSES, config=config, ca_pem=ca_pem)


def make_home(folder: Path, kit: SiteKit | None = None, *, data: str = "phantom:phantom_slide") -> SiteHome:
    """Return the folder of an enrolled site."""
    home = SiteHome(folder)
    enrol(home, kit or make_kit(), data=data)
    return home


def small_bundle(body: str = "", *, package: str = "client") -> dict[str, bytes]:
    """Return a bundle whose client app sends back what it got, after ``body`` ran on import."""
    described = f"""
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "popmi"
version = "0.0.1"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "popmi"
[tool.flwr.app.components]
serverapp = "rounds.app:app"
clientapp = "{package}.app:app"
[tool.flwr.app.config]
plan = ""
"""
    code = f"""
from flwr.app import Message
from flwr.clientapp import ClientApp
app = ClientApp()
{body}
@app.train()
def train(message, context):
    return Message(message.content, reply_to=message)
"""
    return {
        # As Flower writes it into a bundle.
        "pyproject.toml": tomli_w.dumps(tomllib.loads(described)).encode(),
        f"{package}/__init__.py": b"",
        f"{package}/app.py": code.strip().encode() + b"\n",
    }


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
    )
