"""The sites' way in: a kit, an enrolment whose fingerprint two people compare, a node id; and how they stand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from popmi_core.deployment.enrolment import Enrolment, SiteKit, fingerprint, read_enrolment, write_kit
from popmi_core.errors import SetupError
from server.control.contract import Control, KeyTaken, SuperLinkAway
from server.control.home import LONGEST_REASON, Asker, ServerHome, SiteEntry
from server.control.revoking import owes


class NotLetIn(SetupError):
    """This enrolment will never be let in as it is; another one may."""


@dataclass(frozen=True)
class SiteView:
    """One site as the operator sees it; ``online`` and ``last_seen`` are None where the SuperLink did not say.

    ``excluded`` is why it is left out of rounds for now, None where it is not.
    """

    name: str
    state: str
    since: float
    fingerprint: str | None
    node_id: int | None
    online: bool | None
    last_seen: float | None
    note: str = ""
    excluded: str | None = None


def add_site(home: ServerHome, name: str, *, by: Asker | None = None) -> Path:
    """Invite a site: write its kit and note it in the registry; return the kit's path.

    A revoked site may be invited again, and needs a new key then. An invited one gets its kit anew.

    Raises:
        SetupError: If the name cannot be one, is taken, or the kit cannot be written.
    """
    settings = home.settings()
    try:
        kit = SiteKit(
            project=settings.project,
            site=name,
            endpoint=settings.endpoint,
            classes=settings.classes,
            config=settings.config,
            ca_pem=home.ca.read_text(encoding="ascii"),
        )
    except OSError as error:
        raise SetupError(f"cannot read {home.ca}: {error.strerror}. Run `popmi server init` again.") from error
    except ValueError as error:
        raise SetupError(
            f"site name {name!r}: expected lower-case letters, digits, dot, dash and underline, at most 63, beginning "
            "with a letter or digit. Choose another."
        ) from error
    path = home.kits / f"{name}.zip"
    with home.changing_sites() as sites:
        known = sites.get(name)
        if known is not None and known.state == "enrolled":
            raise SetupError(
                f"site {name} is enrolled already, with key {fingerprint(known.public_key or '')}. Choose another "
                f"name, or take it off first: `popmi server revoke {name}`."
            )
        if known is not None and owes(known):
            raise SetupError(
                f"site {name} is revoked but not cut off yet, or the audit log does not say so yet. Wait for the "
                "SuperLink, or make room for the log; then invite it."
            )
        home.note("site.invited", by, site=name)
        write_kit(path, kit)
        kept = known.excluded if known is not None and known.state == "invited" else None
        sites[name] = SiteEntry(state="invited", since=time.time(), excluded=kept)
    return path


def confirm(
    home: ServerHome,
    control: Control,
    file: Path | Enrolment,
    *,
    agreed: Callable[[Enrolment], bool],
    how: str,
    refused: Callable[..., None] | None = None,
    by: Asker | None = None,
) -> SiteEntry:
    """Let a site in whose fingerprint was compared.

    Args:
        home: The server's home.
        control: The SuperLink.
        file: What the site sent back.
        agreed: Asked whether the fingerprint is the one the site read out.
        how: How that was found out, for the audit log.
        refused: Writes down an enrolment that is never let in, as ``home.note`` does and by default with that.
        by: Who asked for it, where that is not the user at this terminal.

    Raises:
        NotLetIn: If the enrolment is another project's, the fingerprint is another, or the key belongs to another site
            or was revoked.
        SetupError: If nobody invited the site, or it cannot be let in now.
    """
    enrolment = read_enrolment(file) if isinstance(file, Path) else file
    try:
        return _confirmed(home, control, enrolment, agreed, how, by)
    except NotLetIn as error:
        note = partial(home.note, asker=by) if refused is None else refused
        reason = str(error)[:LONGEST_REASON]
        note("site.refused", site=enrolment.site, fingerprint=enrolment.fingerprint, reason=reason)
        raise


def _confirmed(
    home: ServerHome,
    control: Control,
    enrolment: Enrolment,
    agreed: Callable[[Enrolment], bool],
    how: str,
    by: Asker | None,
) -> SiteEntry:
    project = home.settings().project
    if enrolment.project != project:
        raise NotLetIn(
            f"site {enrolment.site}: its enrolment is for project {enrolment.project!r}, expected {project!r}. Ask the "
            "site which kit it used."
        )
    known = _invited(home.sites(), enrolment)
    if known.state == "enrolled":
        return known
    # Asked before the registry is held: a person at the telephone must keep nobody from revoking a key.
    if not agreed(enrolment):
        raise NotLetIn(
            f"site {enrolment.site}: the fingerprint {enrolment.fingerprint} is not the one the site read out. "
            "Nothing was registered: somebody may have changed the file on its way. Ask the site for a new one."
        )
    with home.changing_sites() as sites:
        known = _invited(sites, enrolment)
        if known.state == "enrolled":
            return known
        key = " ".join(enrolment.public_key.split()[:2])
        home.note("site.confirmed", by, site=enrolment.site, fingerprint=enrolment.fingerprint, how=how)
        node = _registered(control, enrolment.site, key)
        entry = known.model_copy(update={"public_key": key, "node_id": node, "state": "enrolled", "since": time.time()})
        home.note("site.enrolled", by, site=enrolment.site, node_id=entry.node_id)
        sites[enrolment.site] = entry
    return entry


def _invited(sites: dict[str, SiteEntry], enrolment: Enrolment) -> SiteEntry:
    site, print_ = enrolment.site, enrolment.fingerprint
    for name, entry in sites.items():
        if name != site and entry.public_key is not None and fingerprint(entry.public_key) == print_:
            raise NotLetIn(
                f"site {site}: its key {print_} is already that of site {name} ({entry.state}). One key is one site: "
                "make a new one with `popmi site enrol` on a machine of its own."
            )
    known = sites.get(site)
    if known is None:
        raise SetupError(f"site {site} was never invited. Make its kit first: `popmi server add-site {site}`.")
    if known.state == "revoked":
        raise NotLetIn(
            f"site {site} was revoked. Invite it again with `popmi server add-site {site}`; it needs a new key."
        )
    if known.state == "enrolled" and fingerprint(known.public_key or "") != print_:
        raise NotLetIn(
            f"site {site} is enrolled with key {fingerprint(known.public_key or '')}, this is {print_}. If the site "
            f"lost its key, take it off first: `popmi server revoke {site}`."
        )
    return known


def _registered(control: Control, site: str, key: str) -> int:
    try:
        return control.register(site, key)
    except KeyTaken:
        # Registered, but the registry was never written: a crash between the two. Somebody else's key it is not.
        for node in control.nodes():
            if node.name == site and fingerprint(node.public_key) == fingerprint(key):
                return node.node_id
        raise NotLetIn(
            f"site {site}: the SuperLink had its key {fingerprint(key)} before, as another site's or as one that was "
            "taken off. A key is never let in twice: make a new one with `popmi site enrol`."
        ) from None


def view_sites(home: ServerHome, control: Control) -> tuple[SiteView, ...]:
    """Return all sites by name; what only the SuperLink knows is None while it is away."""
    try:
        nodes, away = {node.node_id: node for node in control.nodes()}, ""
    except SuperLinkAway:
        nodes, away = {}, "the SuperLink is away"
    views = []
    for name, entry in home.sites().items():
        node = None if entry.node_id is None else nodes.get(entry.node_id)
        note = away
        if not away and entry.state == "enrolled" and node is None:
            note = "the SuperLink does not know this node: was its state lost? Revoke the site and invite it again."
        elif owes(entry):
            off = not away and node is None and entry.unlogged is not None
            note = "cut off, the audit log does not say so yet" if off else "revoked, not cut off yet"
        views.append(
            SiteView(
                name=name,
                state=entry.state,
                since=entry.since,
                fingerprint=None if entry.public_key is None else fingerprint(entry.public_key),
                node_id=entry.node_id,
                online=None if away else node is not None and node.online,
                last_seen=None if node is None else node.last_seen,
                note=note,
                excluded=None if entry.excluded is None else entry.excluded.reason,
            )
        )
    return tuple(views)
