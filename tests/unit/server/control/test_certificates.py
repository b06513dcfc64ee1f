"""The study's authority and the server's certificate."""

from __future__ import annotations

import datetime
import ssl
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from popmi_core.errors import SetupError
from server.control.certificates import days_left, ensure_certificates

NOW = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)


def made(folder, *, names=("popmi.example.org", "10.1.2.3"), now=None):
    return ensure_certificates(folder, project="Melanoma", names=names, now=now)


def shake_hands(folder, name, *, authority=None):
    """Do a TLS handshake in memory as a client that trusts the authority and calls the server ``name``."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem", folder / "server.key")
    client = ssl.create_default_context(cafile=str(authority or folder / "ca.pem"))
    # What newer Pythons ask by default: a strict reading of the standard for certificates.
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[0].version()


@pytest.mark.parametrize("name", ["popmi.example.org", "10.1.2.3", "localhost", "127.0.0.1", "::1"])
def test_a_site_that_holds_the_authority_trusts_the_server_under_each_of_its_names(tmp_path, name):
    made(tmp_path)
    assert shake_hands(tmp_path, name) == "TLSv1.3"


def test_another_name_is_not_trusted(tmp_path):
    made(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(tmp_path, "elsewhere.example.org")


def test_another_authority_is_not_trusted(tmp_path):
    made(tmp_path / "a")
    made(tmp_path / "b")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path / "a", "localhost", authority=tmp_path / "b" / "ca.pem")


def test_keys_are_p384_and_their_owners_only(tmp_path):
    made(tmp_path)
    for name in ("ca.key", "server.key"):
        path = tmp_path / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert serialization.load_pem_private_key(path.read_bytes(), None).curve.name == "secp384r1"
    assert stat.S_IMODE((tmp_path / "ca.pem").stat().st_mode) == 0o644


def test_said_again_nothing_changes(tmp_path):
    first = made(tmp_path, now=NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = made(tmp_path, names=("10.1.2.3", "popmi.example.org"), now=NOW)
    assert (first.made, again.made) == (True, False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_days_left_are_told(tmp_path):
    assert made(tmp_path, now=NOW) == made(tmp_path / "x", now=NOW)
    assert days_left(tmp_path / "server.pem", now=NOW + datetime.timedelta(days=364, hours=1)) == 0
    assert days_left(tmp_path / "server.pem", now=NOW + datetime.timedelta(days=366)) == -1
    assert days_left(tmp_path / "ca.pem", now=NOW) == 3650


@pytest.mark.parametrize(("days", "renewed"), [(335, False), (336, True), (400, True)])
def test_the_servers_certificate_is_renewed_in_its_last_thirty_days(tmp_path, days, renewed):
    made(tmp_path, now=NOW)
    authority = (tmp_path / "ca.pem").read_bytes()
    later = NOW + datetime.timedelta(days=days)
    found = made(tmp_path, now=later)
    assert found.made is renewed
    assert found.server_days == (365 if renewed else 30)
    assert (tmp_path / "ca.pem").read_bytes() == authority


def test_another_name_makes_another_certificate(tmp_path):
    made(tmp_path)
    assert made(tmp_path, names=("other.example.org",)).made
    assert shake_hands(tmp_path, "other.example.org")


@pytest.mark.parametrize("lost", ["server.pem", "server.key"])
def test_a_lost_half_of_the_servers_pair_is_made_anew(tmp_path, lost):
    made(tmp_path)
    (tmp_path / lost).unlink()
    assert made(tmp_path).made
    assert shake_hands(tmp_path, "localhost")


def test_a_crash_between_key_and_certificate_heals(tmp_path):
    made(tmp_path)
    made(tmp_path / "other")
    (tmp_path / "server.key").write_bytes((tmp_path / "other" / "server.key").read_bytes())
    assert made(tmp_path).made
    assert shake_hands(tmp_path, "localhost")


def test_a_certificate_of_another_authority_is_replaced(tmp_path):
    made(tmp_path)
    made(tmp_path / "other")
    for name in ("server.key", "server.pem"):
        (tmp_path / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert made(tmp_path).made
    assert shake_hands(tmp_path, "localhost")


@pytest.mark.parametrize("lost", ["ca.pem", "ca.key"])
def test_half_an_authority_is_never_made_anew(tmp_path, lost):
    made(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(SetupError, match=f"{lost} is missing, but its other half is there.*backup"):
        made(tmp_path)


def test_an_authority_of_two_halves_that_do_not_fit_is_refused(tmp_path):
    made(tmp_path)
    made(tmp_path / "other")
    (tmp_path / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(SetupError, match=r"ca.key does not belong to .*ca.pem"):
        made(tmp_path)


def test_the_authority_signs_servers_and_no_further_authorities(tmp_path):
    made(tmp_path)
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    limits = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (limits.critical, limits.value.ca, limits.value.path_length) == (True, True, 0)


def test_a_damaged_certificate_is_told(tmp_path):
    made(tmp_path)
    (tmp_path / "server.pem").write_text("x")
    with pytest.raises(SetupError, match=r"server.pem is no certificate in PEM form"):
        made(tmp_path)


def test_a_damaged_key_is_told(tmp_path):
    made(tmp_path)
    (tmp_path / "ca.key").write_text("x")
    with pytest.raises(SetupError, match=r"ca.key is no private key in PEM form"):
        made(tmp_path)


def test_a_key_of_another_kind_is_told(tmp_path):
    made(tmp_path)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (tmp_path / "ca.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(SetupError, match="expected an EC key"):
        made(tmp_path)


def test_a_name_that_cannot_be_in_a_certificate_is_told(tmp_path):
    with pytest.raises(SetupError, match=r"certificate name 'zürich.example' is neither"):
        made(tmp_path, names=("zürich.example",))


def test_a_missing_certificate_is_told(tmp_path):
    with pytest.raises(SetupError, match=r"cannot read certificate .*none.pem"):
        days_left(tmp_path / "none.pem")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be written"):
        made(tmp_path / "file" / "pki")


def test_brackets_of_an_address_are_no_part_of_it(tmp_path):
    made(tmp_path, names=("[2001:db8::7]",))
    assert shake_hands(tmp_path, "2001:db8::7")


def test_no_key_of_another_curve_is_made(tmp_path):
    made(tmp_path)
    certificate = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
