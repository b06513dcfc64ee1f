"""Checks of the way to the server: name, proxy, port, certificate, clock, gateway."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509.oid import NameOID

from client.site.connection import (
    Answer,
    Target,
    ask_health,
    connect,
    seen_certificate,
    target_of,
    verify_chain,
)
from client.site.findings import Finding, failed, ok, warning
from popmi_core.errors import SetupError

FEW_DAYS = 30
AHEAD, BEHIND = 5.0, 300.0
"""Seconds a node's clock may differ from the server's before Flower refuses it (TIMESTAMP_TOLERANCE and its leeway)."""
# OpenSSL's verification results (x509_vfy.h).
_NOT_YET, _EXPIRED = 9, 10
_NEW_KIT = "A new authority comes with a new kit: `popmi site enrol KIT`."


def check_network(endpoint: str, ca_pem: str, proxy: str | None, now: Callable[[], float]) -> Iterator[Finding]:
    """Check the way to the gateway, step by step; a step that fails ends it, for the rest would only repeat it."""
    try:
        target = target_of(endpoint, proxy)
    except SetupError as error:
        yield failed("proxy", str(error), "Correct HTTPS_PROXY or 'proxy' in site.toml.")
        return
    yield _proxy(target)
    for step in (_name_resolves, _port_is_open):
        yield (finding := step(target))
        if finding.state == "failed":
            return
    try:
        certificate = x509.load_der_x509_certificate(seen_certificate(target))
    except (OSError, ValueError) as error:
        yield failed(
            "TLS",
            f"no TLS at {target.host}:{target.port} ({_why(error)})",
            "Ask the coordinating centre whether this is the gateway's port, and your network whether it passes TLS.",
        )
        return
    today = now()
    yield _chain(target, certificate, ca_pem, today)
    yield certificate_name(certificate, target.host)
    yield certificate_dates(certificate, today)
    yield from _answers(target, ca_pem, now)


def certificate_name(certificate: x509.Certificate, host: str) -> Finding:
    """Check that a certificate is made out to ``host``."""
    names = _names(certificate)
    if any(_fits(name, host) for name in names):
        return ok("certificate name", f"made out to {host}")
    return failed(
        "certificate name",
        f"the certificate is for {', '.join(names) or 'no name at all'}, expected {host}",
        "Ask the coordinating centre for a certificate that names this host, or a kit with the right one.",
    )


def certificate_dates(certificate: x509.Certificate, now: float) -> Finding:
    """Check that a certificate is valid at ``now`` (seconds since 1970), and for some time to come."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    today = datetime.fromtimestamp(now, UTC)
    days = (end - today).days
    dates = f"valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"
    if today < begin:
        return failed(
            "certificate dates",
            f"not yet valid: {dates}, it is {today:%Y-%m-%d %H:%M} here",
            "Look at this machine's clock first; if it is right, ask the coordinating centre.",
        )
    if today > end:
        return failed(
            "certificate dates",
            f"expired {(today - end).days} days ago: {dates}",
            "Look at this machine's clock first; if it is right, the coordinating centre must renew its certificate.",
        )
    if days < FEW_DAYS:
        return warning(
            "certificate dates", f"{days} days left: {dates}", "Tell the coordinating centre to renew its certificate."
        )
    return ok("certificate dates", f"{days} days left: {dates}")


def clock_skew(skew: float) -> Finding:
    """Check how many seconds this machine's clock is ahead of the server's."""
    told = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server" if skew else "as the server's"
    remedy = "Set the clock by the network: `timedatectl set-ntp true`, or chrony with your hospital's time server."
    if skew > AHEAD or skew < -BEHIND:
        limits = f"Flower refuses nodes more than {AHEAD:.0f} s ahead or {BEHIND:.0f} s behind"
        return failed("clock", f"{told}; {limits}", remedy)
    if skew > AHEAD / 2 or skew < -30:
        return warning("clock", told, remedy)
    return ok("clock", told)


def _proxy(target: Target) -> Finding:
    if target.proxy is None:
        return ok("proxy", "none, direct connection")
    return ok("proxy", f"{target.proxy_shown} (from site.toml or HTTPS_PROXY; NO_PROXY does not name {target.host})")


def _name_resolves(target: Target) -> Finding:
    host, port = target.first_hop
    try:
        found = sorted({str(item[4][0]) for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
    # A name no name server could know (a label of more than 63 letters) is a UnicodeError.
    except (OSError, UnicodeError) as error:
        return failed(
            "DNS",
            f"{host} has no address ({_why(error)})",
            "Ask your network for the name, or the coordinating centre whether the kit names the right host.",
        )
    return ok("DNS", f"{host} is {', '.join(found)}{' (the proxy)' if target.proxy else ''}")


def _port_is_open(target: Target) -> Finding:
    where = f"{target.host}:{target.port}"
    try:
        connect(target).close()
    except OSError as error:
        return failed(
            "port",
            f"{where} cannot be reached ({_why(error)})",
            f"Let your firewall{' and the proxy' if target.proxy else ''} pass outbound TCP to {where}; if it does, "
            "ask the coordinating centre whether the gateway is up.",
        )
    return ok("port", f"{where} is open")


def _chain(target: Target, certificate: x509.Certificate, ca_pem: str, now: float) -> Finding:
    seen = f"the certificate of {_shown(certificate.subject)}, signed by {_shown(certificate.issuer)}"
    authorities = x509.load_pem_x509_certificates(ca_pem.encode())
    trusted = ", ".join(_shown(item.subject) for item in authorities)
    for authority in authorities:
        # Beside a server's certificate that is in its dates, OpenSSL's "expired" would lead nowhere.
        if authority.subject == certificate.issuer and (dates := certificate_dates(authority, now)).state == "failed":
            return failed(
                "certificate chain", f"{seen}; the authority's own: {dates.found}", f"{dates.remedy} {_NEW_KIT}"
            )
    try:
        verify_chain(target, ca_pem)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (_NOT_YET, _EXPIRED):
            return ok("certificate chain", f"{seen}; its dates are looked at below")
        return failed(
            "certificate chain",
            f"{seen}; the kit trusts {trusted} ({error.verify_message})",
            "If a device of your hospital opens TLS, let it pass this host unopened. Otherwise somebody else answers, "
            "or the kit is old: ask the coordinating centre by telephone, and do not run.",
        )
    except OSError as error:
        return failed("certificate chain", f"the handshake broke off ({_why(error)})", "Run the doctor again.")
    return ok("certificate chain", f"{seen}, as the kit says")


def _answers(target: Target, ca_pem: str, now: Callable[[], float]) -> Iterator[Finding]:
    before = now()
    try:
        answer = ask_health(target, ca_pem)
    except (OSError, http.client.HTTPException) as error:
        before = now()
        yield _clock(_ask_anybody(target), before, now())
        yield failed("gateway", f"/health was not asked for: {_why(error)}", "Put right what is said above.")
        return
    yield _clock(answer, before, now())
    if answer.status == 200:
        yield ok("gateway", "/health answers")
    else:
        yield failed(
            "gateway",
            f"/health answers {answer.status}",
            "The gateway is up, what is behind it is not: ask the coordinating centre. A site that runs waits for it.",
        )


def _ask_anybody(target: Target) -> Answer | None:
    try:
        return ask_health(target, None)
    except (OSError, http.client.HTTPException):
        return None


def _clock(answer: Answer | None, before: float, after: float) -> Finding:
    if answer is None or answer.date is None:
        return warning("clock", "the server does not tell its time", "Compare this machine's clock with a known one.")
    # It told whole seconds, at some moment between the two: what lies within that is no difference.
    ahead, behind = before - (answer.date + 1), answer.date - after
    return clock_skew(ahead if ahead > 0 else -behind if behind > 0 else 0.0)


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        *names.get_values_for_type(x509.DNSName),
        *(str(item) for item in names.get_values_for_type(x509.IPAddress)),
    ]


def _fits(name: str, host: str) -> bool:
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(host)
    except ValueError:
        pass
    name, host = name.lower(), host.lower()
    # A star stands for one label (RFC 6125).
    return name == host or (name.startswith("*.") and host.partition(".")[2] == name[2:])


def _shown(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return f"'{found[0].value!s}'" if found else f"'{name.rfc4514_string()}'"


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
