"""Whether an order that is taken up may still be carried out, and whether it was begun by a keeper before this one.

An order waits while no keeper runs. By then its giver may have left, or the site it would cut off may be another one.
"""

from __future__ import annotations

from sqlalchemy.engine import Engine

from popmi_core.audit import AuditLog
from popmi_core.errors import AccessError
from popmi_core.protocol import PLAN_FILE
from server.centre import accounts
from server.centre.kinds import Start
from server.centre.orders import OrderRow
from server.centre.people import ROLES
from server.centre.reaching import reaching
from server.control.home import ServerHome
from server.control.plans import read_plan

NEEDED = "operator"
"""Role of those who may give orders."""


def no_longer_allowed(centre: Engine, row: OrderRow) -> str:
    """Return why who gave an order may not have it done now; empty if they may.

    Raises:
        RunError: If the centre cannot be read now.
    """
    try:
        with reaching(centre, "read the accounts"):
            giver = accounts.find(centre, row.who)
    except AccessError:
        return f"account {row.who}, which gave this order, was removed since. Somebody else must give it."
    if giver.disabled:
        return f"account {row.who}, which gave this order, was disabled since. Somebody else must give it."
    if ROLES.index(giver.role) < ROLES.index(NEEDED):
        return f"account {row.who}, which gave this order, is {giver.role} by now; this needs {NEEDED}."
    return ""


def concerns_another(home: ServerHome, row: OrderRow) -> str:
    """Return why a revocation is not of the site that has the name now; empty if it is.

    Raises:
        SetupError: If the registry cannot be read.
    """
    site = str(row.arguments.get("site"))
    entry = home.sites().get(site)
    if row.kind != "revoke" or entry is None or entry.state == "revoked" or entry.since <= row.created:
        return ""
    return (
        f"site {site} is {entry.state} since, after this order was given: it may be another key, so nothing was "
        "revoked. Give the order again if this one is to be cut off too."
    )


def began_before(home: ServerHome, row: OrderRow, told: Start) -> bool:
    """Return whether a keeper before this one began the run that an order asks for, and not somebody else earlier.

    Raises:
        AuditError: If the audit log cannot be read.
        RunError: If the run's plan cannot be read.
    """
    if not (home.run_folder(told.name) / PLAN_FILE).exists():
        return False
    for entry in AuditLog(home.audit_file).entries():
        if entry.event == "run.wanted" and entry.details.get("run") == told.name:
            return entry.details.get("order") == row.id
    # Ended between the plan and its line in the log.
    return read_plan(home, told.name).config == told.config
