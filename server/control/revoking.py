"""The end of a site's part: its key is cut off, whatever else is away or full at that moment."""

from __future__ import annotations

import time

from popmi_core.errors import AuditError, SetupError
from server.control.contract import Control, RefusedForNow, SuperLinkAway
from server.control.home import Asker, ServerHome, SiteEntry, Unlogged, operator
from server.control.reserve import use_reserve


def revoke(home: ServerHome, control: Control, name: str, *, reason: str, by: Asker | None = None) -> None:
    """Take a site off for good; its key is never let in again.

    First the registry, so that no round asks it any more even while the SuperLink is away; then the SuperLink; the
    audit log last: a log without room must not keep a stolen key in. None of the three waits for another.

    Raises:
        SetupError: If there is no such site, or it is cut off but the registry could not be written.
        SuperLinkAway: If the SuperLink could not be told; the keeper tells it as soon as it is back.
        AuditError: If it is cut off but the audit log could not be written; the keeper writes it as soon as it can.
    """
    use_reserve(home.reserve)
    known = home.sites().get(name)
    if known is None:
        raise SetupError(f"there is no site {name}. The sites are: {', '.join(home.sites()) or 'none yet'}.")
    unwritten = _mark_revoked(home, name, reason, by)
    try:
        strays = _cut_off(control, name, known.node_id)
        if unwritten is None:
            _finish(home, control, name, strays)
    except (SuperLinkAway, RefusedForNow) as error:
        if unwritten is not None:
            raise SuperLinkAway(
                f"site {name} is NOT revoked: {unwritten} Nor could the SuperLink be told: {error}"
            ) from error
        raise SuperLinkAway(
            f"site {name} is revoked and no round asks it any more, but the SuperLink could not be told ({error}) "
            "The keeper tells it as soon as it is back; `popmi server revoke` may be said again."
        ) from error
    except AuditError as error:
        raise AuditError(
            f"site {name} IS cut off, and its key is never let in again; but the audit log does not say so yet: "
            f"{error} The keeper writes it as soon as there is room, and so does the next `popmi server revoke`."
        ) from error
    if unwritten is not None:
        raise SetupError(
            f"site {name} IS cut off, but neither the registry nor the audit log says so yet: {unwritten} Then say "
            f"`popmi server revoke {name}` again."
        ) from unwritten


def _mark_revoked(home: ServerHome, name: str, reason: str, by: Asker | None) -> SetupError | None:
    """Have the registry say that a site is revoked, and what the audit log lacks; return why it could not."""
    try:
        with home.changing_sites() as sites:
            known = sites[name]
            before = "" if known.unlogged is None else f"{known.unlogged.reason}; "
            sites[name] = known.model_copy(
                update={
                    "state": "revoked",
                    "since": known.since if known.state == "revoked" else time.time(),
                    "unlogged": Unlogged(
                        reason=f"{before}{reason}",
                        by=operator() if by is None else by.name,
                        via=None if by is None else by.via,
                    ),
                }
            )
    except SetupError as error:
        return error
    return None


def _cut_off(control: Control, name: str, node_id: int | None) -> list[int]:
    """Take all nodes of a site off; return those the registry did not know: `confirm` was killed between the two."""
    if node_id is not None:
        control.unregister(node_id)
    strays = [node.node_id for node in control.nodes() if node.name == name and node.node_id != node_id]
    for stray in strays:
        control.unregister(stray)
    return strays


def _finish(home: ServerHome, control: Control, name: str, strays: list[int]) -> None:
    cut_off_revoked(home, control)
    for stray in strays:
        home.note("site.cut_off", site=name, node_id=stray)


def cut_off_revoked(home: ServerHome, control: Control) -> list[str]:
    """Take revoked sites off the SuperLink that are still on it and return their names; write down what the log lacks.

    Raises:
        SuperLinkAway: If it does not answer.
        AuditError: If the log cannot be written; the sites are cut off, and their lines stay owed.
    """
    if not any(owes(entry) for entry in home.sites().values()):
        return []
    done: list[str] = []
    with home.changing_sites() as sites:
        owing = {name: entry for name, entry in sites.items() if owes(entry)}
        for entry in owing.values():
            if entry.node_id is not None:
                control.unregister(entry.node_id)
        try:
            for name in owing:
                done += [name] if owing[name].node_id is not None else []
                _write_down(home, sites, name)
        except AuditError as error:
            unwritten = error
        else:
            return done
    # The registry holds what was written down before, so that no line is written twice.
    raise unwritten


def _write_down(home: ServerHome, sites: dict[str, SiteEntry], name: str) -> None:
    entry = sites[name]
    if (owed := entry.unlogged) is not None:
        asker = None if owed.via is None else Asker(owed.by, owed.via)
        told = {"reason": owed.reason, "by": owed.by, "since": entry.since}
        home.note("site.revoked", asker, site=name, node_id=entry.node_id, **told)
        sites[name] = entry = entry.model_copy(update={"unlogged": None})
    if entry.node_id is not None:
        home.note("site.cut_off", site=name, node_id=entry.node_id)
        sites[name] = entry.model_copy(update={"node_id": None})


def owes(entry: SiteEntry) -> bool:
    """Return whether something is still to be done for a revoked site: at the SuperLink, or in the audit log."""
    return entry.state == "revoked" and (entry.node_id is not None or entry.unlogged is not None)
