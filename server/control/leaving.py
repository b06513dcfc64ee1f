"""A site left out of rounds for now: its key stays good, and no round asks it from the next one on."""

from __future__ import annotations

import time

from popmi_core.errors import SetupError
from server.control.home import LONGEST_REASON, Asker, Excluded, ServerHome, SiteEntry, operator


def exclude(home: ServerHome, name: str, *, reason: str, by: Asker | None = None) -> None:
    """Leave a site out from the next round on, until ``include``. What it sends to the round in flight is used.

    Said again, the newer reason counts.

    Raises:
        SetupError: If there is no such site, it is revoked, no reason is told, or the registry cannot be written.
        AuditError: If the audit log cannot be written; nothing was changed.
    """
    told = reason.strip()
    if not 0 < len(told) <= LONGEST_REASON:
        raise SetupError(
            f"site {name} is not excluded: the reason has {len(told)} letters, expected 1 to {LONGEST_REASON}. Say why."
        )
    with home.changing_sites() as sites:
        known = _known(sites, name)
        if known.state == "revoked":
            raise SetupError(f"site {name} is revoked: no round asks it any more. There is nothing to exclude.")
        home.note("site.excluded", by, site=name, reason=told)
        who = operator() if by is None else by.name
        sites[name] = known.model_copy(update={"excluded": Excluded(reason=told, by=who, since=time.time())})


def include(home: ServerHome, name: str, *, by: Asker | None = None) -> None:
    """Have a site that was left out take part again: a run that is going asks it between two rounds.

    Raises:
        SetupError: If there is no such site, it is not excluded, or the registry cannot be written.
        AuditError: If the audit log cannot be written; nothing was changed.
    """
    with home.changing_sites() as sites:
        known = _known(sites, name)
        if known.excluded is None:
            raise SetupError(f"site {name} is not excluded: it takes part as it is. There is nothing to include.")
        home.note("site.included", by, site=name)
        sites[name] = known.model_copy(update={"excluded": None})


def _known(sites: dict[str, SiteEntry], name: str) -> SiteEntry:
    if name not in sites:
        raise SetupError(f"there is no site {name}. The sites are: {', '.join(sites) or 'none yet'}.")
    return sites[name]
