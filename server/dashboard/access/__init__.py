"""Who may see and do what on the pages: persons and roles, the guard before every page, where the pages listen."""

from server.dashboard.access.person import NOBODY, Person, Refused, allow

__all__ = ["NOBODY", "Person", "Refused", "allow"]
