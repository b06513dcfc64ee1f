"""Who asks, in which role, and what a role may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request

from server.centre.people import ROLES, Doer, Role


@dataclass(frozen=True)
class Person:
    """Who asks.

    Attributes:
        name: The account's name; empty where nobody signs in.
        role: What they may do.
        csrf: What a form of theirs must carry; empty for a token, which no browser sends by itself.
        session: Digest of the session or of the token by which they are known; empty where nobody signs in.
        via: ``page`` for a session, ``api`` for a token, ``open`` where nobody signs in.
    """

    name: str = ""
    role: Role = "viewer"
    csrf: str = ""
    session: str = ""
    via: Literal["page", "api", "open"] = "open"

    def may(self, role: Role) -> bool:
        """Say whether they may do what ``role`` may."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def doer(self) -> Doer:
        """Return them as the audit log names them."""
        return Doer(self.name, self.via)


NOBODY = Person()
"""Where the pages have no centre, everybody on this machine may look and nobody may act."""


class Refused(Exception):
    """Somebody asked for what their role does not allow; the pages answer with 403."""

    def __init__(self, person: Person, needed: Role) -> None:
        super().__init__(f"{person.name or 'nobody'} is {person.role}, this needs {needed}")
        self.person, self.needed = person, needed


def allow(request: Request, role: Role) -> Person:
    """Return who asks, if they may do what ``role`` may.

    Raises:
        Refused: If they may not; it becomes a page, or JSON below ``/api``.
    """
    person = person_of(request)
    if not person.may(role):
        raise Refused(person, role)
    return person


def person_of(request: Request) -> Person:
    """Return who asks."""
    found: Person = getattr(request.state, "person", NOBODY)
    return found
