"""Write into the audit log what was done in the centre itself: who signed in, accounts, tokens."""

from __future__ import annotations

import logging

from sqlalchemy.engine import Engine

from popmi_core.errors import AuditError
from server.centre.remarks import unwritten, written
from server.control.home import Asker, ServerHome

log = logging.getLogger("popmi.keeper")


def write_remarks(home: ServerHome, centre: Engine) -> int:
    """Write every remark that waits; returns how many. A log that cannot be written leaves them waiting.

    ``at`` in the line is when it happened; the line's own time is when the keeper came to write it.

    Raises:
        RunError: If the centre cannot be read or written now.
    """
    done: list[int] = []
    try:
        for item in unwritten(centre):
            # One word of each name: what a stranger typed must not pose as who did it.
            details = {name: value for name, value in item.details.items() if name not in ("who", "via", "order")}
            home.note(item.event, Asker(item.by.who, item.by.via, None), at=round(item.time), **details)
            done.append(item.id)
    except AuditError as error:
        log.warning("what was done to accounts waits for the audit log: %s", error)
    if done:
        written(centre, done)
    return len(done)
