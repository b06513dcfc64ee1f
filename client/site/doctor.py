"""The doctor: everything that could keep a site from taking part, each with what to do about it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

from cryptography.x509 import load_pem_x509_certificates

from client.site.findings import Finding, all_well, failed
from client.site.home import SiteHome
from popmi_core.errors import SetupError


def examine(home: SiteHome, now: Callable[[], float] = time.time) -> list[Finding]:
    """Run every check; a site that is not enrolled has one finding.

    Args:
        home: The site.
        now: This machine's clock, seconds since 1970.
    """
    try:
        config, kit = home.config(), home.kit()
    except SetupError as error:
        return [failed("site folder", str(error), "Run `popmi site enrol KIT`.")]
    from client.site.machine import check_machine
    from client.site.network import check_network

    machine = check_machine(home, config, kit.popmi)
    try:
        # The file, not the kit: it is what the node trusts, and a hospital may have added its own authority.
        ca = home.ca.read_text(encoding="ascii")
        load_pem_x509_certificates(ca.encode())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds no certificate in PEM form"
        remedy = "Run `popmi site enrol KIT` again, which writes it anew; the key stays."
        return [failed("certificate authority", f"{home.ca}: {why}", remedy), *machine]
    return [*check_network(config.endpoint, ca, config.proxy, now), *machine]


def as_json(findings: Sequence[Finding]) -> str:
    """Return the findings for programs: ``{"ok": bool, "findings": [...]}``."""
    return json.dumps({"ok": all_well(findings), "findings": [item.model_dump() for item in findings]}, indent=1)


def as_table(findings: Sequence[Finding]) -> str:
    """Return the findings for people; the words tell the state, not a colour alone."""
    marks = {"ok": "ok     ", "warning": "WARNING", "failed": "FAILED "}
    wide = max(len(item.name) for item in findings)
    lines = []
    for item in findings:
        lines.append(f"{marks[item.state]}  {item.name.ljust(wide)}  {item.found}")
        if item.remedy:
            lines.append(f"{' ' * (11 + wide)}-> {item.remedy}")
    return "\n".join(lines)
