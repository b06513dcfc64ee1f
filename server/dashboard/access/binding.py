"""Where the pages listen, by which names they answer, and whom they believe about where a request came from."""

from __future__ import annotations

import ipaddress
import logging
import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from popmi_core.errors import ConfigError

log = logging.getLogger("popmi.dashboard")
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_HOST = re.compile(r"(\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(:(?P<port>\d{1,5}))?")
_PROXY = re.compile(r"https://(?P<name>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:(?P<port>\d{1,5}))?/?", re.IGNORECASE)


@dataclass(frozen=True)
class Binding:
    """Where the pages listen and by whom they may be reached.

    Attributes:
        host: Address to listen on.
        port: Port to listen on.
        published_on: In a container, the machine's address on which the port is published.
        published_port: The machine's port there, where it is another.
        certificate: PEM file of the certificate; then the pages speak TLS, and nothing else.
        key: PEM file of its key.
        behind_proxy: ``https://NAME[:PORT]`` of a proxy that speaks TLS for the pages.
        proxy_addresses: Addresses or networks of that proxy; only they are believed about a request's address.
        names: Further host names by which the pages answer.
        metrics_name: A further host name under which ``/metrics``, and nothing else, answers.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    published_on: str | None = None
    published_port: int | None = None
    certificate: Path | None = None
    key: Path | None = None
    behind_proxy: str | None = None
    proxy_addresses: tuple[str, ...] = ("127.0.0.1", "::1")
    names: tuple[str, ...] = field(default=())
    metrics_name: str | None = None

    @property
    def secure(self) -> bool:
        """Whether every browser reaches the pages by TLS."""
        return self.certificate is not None or self.behind_proxy is not None

    @property
    def public(self) -> bool:
        """Whether others than this machine can reach the pages."""
        if self.behind_proxy is not None:
            return True
        return not is_loopback(self.published_on if self.published_on is not None else self.host)

    def allowed(self, path: str) -> frozenset[str]:
        """Return the host names that are answered under a path."""
        found = frozenset(name.lower() for name in self.names)
        proxy = _PROXY.fullmatch(self.behind_proxy or "")
        if proxy is not None:
            found |= {host_name(proxy["name"].lower())}
            # Past the proxy there is no TLS: only what a health check and Prometheus ask.
            found |= LOCAL_NAMES if path in ("/healthz", "/metrics") else frozenset()
        else:
            found |= LOCAL_NAMES | (frozenset() if is_anywhere(self.host) else {self.host.lower()})
        return found | ({self.metrics_name.lower()} if self.metrics_name and path == "/metrics" else frozenset())

    def origin(self, host_header: str) -> str:
        """Return the origin that a browser names which has one of these pages open."""
        if self.behind_proxy is not None:
            return self.behind_proxy.rstrip("/").lower().removesuffix(":443")
        scheme, usual = ("https", ":443") if self.certificate is not None else ("http", ":80")
        return f"{scheme}://{host_header.lower().removesuffix(usual)}"

    def address(self) -> str:
        """Return the address to open in a browser."""
        if self.behind_proxy is not None:
            return self.behind_proxy.rstrip("/")
        anywhere = is_anywhere(self.host)
        name = (self.names[0] if self.names else "127.0.0.1") if anywhere else self.host
        shown = f"[{name}]" if ":" in name else name
        return f"{'https' if self.certificate is not None else 'http'}://{shown}:{self.published_port or self.port}"

    def is_proxy(self, address: str) -> bool:
        """Say whether an address is the proxy's."""
        if self.behind_proxy is None:
            return False
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in ipaddress.ip_network(item, strict=False) for item in self.proxy_addresses)


def check(binding: Binding, *, login: bool) -> None:
    """Refuse to listen where somebody could look, or read along, who must not.

    Args:
        binding: Where the pages are to listen.
        login: Whether people must sign in.

    Raises:
        ConfigError: If others could reach the pages without TLS or without signing in, or what was said does not fit
            together; it says what to do.
    """
    _check_published(binding)
    _check_proxy(binding)
    _check_certificate(binding)
    for name in (*binding.names, *([binding.metrics_name] if binding.metrics_name else [])):
        if _NAME.fullmatch(name.lower()) is None and not _is_address(name):
            raise ConfigError(f"host name {name[:80]!r}: expected a name or an address alone, without scheme and port.")
    if not binding.public:
        return
    if not binding.secure:
        raise ConfigError(
            f"host {binding.host!r} is no loopback address, expected 127.0.0.1: passwords would cross the network for "
            "all to read. To look from another machine, forward the port: ssh -L 8080:127.0.0.1:8080 SERVER. To be "
            "seen by others, say --tls-certificate FILE --tls-key FILE, or --behind-proxy https://NAME where a proxy "
            "speaks TLS. In a container whose port is published on this machine only: --published-on 127.0.0.1."
        )
    if not login:
        raise ConfigError(
            f"host {binding.host!r} can be reached by others, and nobody has to sign in here: these pages have no "
            "accounts. Say --home FOLDER of the server, or --centre FILE for accounts of their own."
        )
    if binding.certificate is not None and is_anywhere(binding.host) and not binding.names:
        raise ConfigError(
            f"host {binding.host!r} is every address of this machine, so --name must say by which name the pages are "
            "opened: the one in their certificate."
        )


def _check_published(binding: Binding) -> None:
    if binding.published_on is not None and not is_loopback(binding.published_on):
        raise ConfigError(
            f"published on {binding.published_on!r}, which is no loopback address, expected 127.0.0.1. Publish the "
            "container's port as 127.0.0.1:8080:8080 and say --published-on 127.0.0.1. To be seen by others, leave it "
            "out, and say --behind-proxy https://NAME, or --tls-certificate FILE --tls-key FILE."
        )


def _check_proxy(binding: Binding) -> None:
    if binding.behind_proxy is None:
        return
    if _PROXY.fullmatch(binding.behind_proxy) is None:
        raise ConfigError(
            f"--behind-proxy {binding.behind_proxy[:200]!r}: expected https://NAME or https://NAME:PORT, as people "
            "type it, and no path."
        )
    if binding.certificate is not None or binding.published_on is not None:
        raise ConfigError("--behind-proxy goes with neither --tls-certificate nor --published-on. Leave one out.")
    for item in binding.proxy_addresses:
        try:
            ipaddress.ip_network(item, strict=False)
        except ValueError as error:
            raise ConfigError(
                f"--proxy-address {item[:80]!r}: expected an IP address or a network, for example 10.0.0.0/24."
            ) from error


def _check_certificate(binding: Binding) -> None:
    if (binding.certificate is None) != (binding.key is None):
        raise ConfigError("--tls-certificate and --tls-key go together: name both files, or neither.")
    if binding.certificate is None or binding.key is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # No password is asked for: nobody sits at a server that starts by itself.
        context.load_cert_chain(binding.certificate, binding.key, password=lambda: "")
        readable = binding.key.stat().st_mode & 0o077
    except OSError as error:
        # ssl.SSLError is an OSError, too; it says nothing of which file.
        raise ConfigError(
            f"certificate {binding.certificate} with key {binding.key} cannot be used: {error.strerror or error}. "
            "Expected two PEM files that belong together, the key without a password."
        ) from error
    if readable:
        log.warning("key %s can be read by others on this machine: chmod 600 it", binding.key)


def host_name(header: str) -> str:
    """Return the name in a ``Host`` header, without port and brackets; empty where it is no such header."""
    found = _HOST.fullmatch(header.lower())
    return "" if found is None else found["six"] or found["name"]


def host_port(header: str) -> str:
    """Return the port in a ``Host`` header, empty where there is none."""
    found = _HOST.fullmatch(header.lower())
    return "" if found is None else found["port"] or ""


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Say whether an address is reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_anywhere(host: str) -> bool:
    """Say whether an address stands for all of this machine's."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host


def client_address(binding: Binding, peer: str, forwarded: Iterable[str]) -> str:
    """Return where a request came from: the peer, or what the proxy says of it.

    Args:
        binding: Where the pages listen.
        peer: Address at the other end of the connection.
        forwarded: The request's ``X-Forwarded-For`` headers.
    """
    if not binding.is_proxy(peer):
        return peer
    told = [item.strip() for line in forwarded for item in line.split(",") if item.strip()]
    # From the end: what stands before the proxy's own entry, anybody may have written.
    for item in reversed(told):
        try:
            found = str(ipaddress.ip_address(item.strip("[]")))
        except ValueError:
            return peer
        if not binding.is_proxy(found):
            return found
    return peer
