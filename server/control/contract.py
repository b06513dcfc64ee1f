"""What the operator's side asks of the SuperLink, without knowing how it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from popmi_core.errors import SetupError


class SuperLinkAway(SetupError):
    """The SuperLink does not answer now; what was asked may be asked again."""


class RefusedForNow(SetupError):
    """The SuperLink answered, but could not do it: too busy, or its disk is full; what was asked may be asked again."""


@dataclass(frozen=True)
class FlowerRun:
    """One start of a run as the SuperLink knows it; several of them may belong to one run of POPMI.

    Attributes:
        run_id: The SuperLink's own number.
        name: The run's name, as its run configuration carries it.
        active: Whether it is pending, starting or running.
        status: The SuperLink's words, e.g. ``finished:failed``.
        details: Why it ended, if it was told.
    """

    run_id: int
    name: str
    active: bool
    status: str
    details: str = ""


@dataclass(frozen=True)
class FlowerNode:
    """One registered site as the SuperLink knows it; ``last_seen`` in seconds since 1970 UTC, None: never."""

    node_id: int
    name: str
    public_key: str
    online: bool
    last_seen: float | None


class Control(Protocol):
    """The SuperLink's control plane.

    Every method raises ``SuperLinkAway`` when there is no answer, ``RefusedForNow`` when it cannot do it now, and
    ``SetupError`` when it refuses.
    """

    def start_run(self, name: str, bundle: bytes) -> int:
        """Start the run of this name with a packed bundle; return the SuperLink's number for it."""
        ...

    def stop_run(self, run_id: int) -> None:
        """End a run at once; one that has ended already is no error."""
        ...

    def runs(self) -> Sequence[FlowerRun]:
        """Return the newest hundred starts, newest first."""
        ...

    def nodes(self) -> Sequence[FlowerNode]:
        """Return all registered sites; those taken off are not among them."""
        ...

    def register(self, site: str, public_key: str) -> int:
        """Let the key (OpenSSH form) in and return its node id.

        Raises:
            KeyTaken: If the key was ever registered before, even when it was taken off since.
        """
        ...

    def unregister(self, node_id: int) -> None:
        """Cut a site off; one that is not registered is no error."""
        ...


class KeyTaken(SetupError):
    """The SuperLink knows this key already."""
