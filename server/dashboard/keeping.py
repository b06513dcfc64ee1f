"""What the keeper last told of sites, models and the server: snapshots in the centre, only read here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request

from popmi_core.errors import RunError
from server.centre.board import STALE, SUBJECTS, card_key, read_board
from server.dashboard.modelbook import Kept, KeptModel
from server.dashboard.sitebook import Code, SiteKept


@dataclass(frozen=True)
class Told:
    """One snapshot: what was told, and when (seconds since 1970 UTC).

    ``time`` is None where nothing was told yet, ``away`` says why the centre could not be asked, empty if it could.
    """

    value: Any = None
    time: float | None = None
    away: str = ""

    @property
    def stale(self) -> bool:
        """Whether the keeper has been silent for too long for this to be how things are now."""
        return self.time is not None and time.time() - self.time > STALE

    def mapping(self) -> Mapping[str, Any]:
        """Return what was told where it is an object, else an empty one."""
        return self.value if isinstance(self.value, Mapping) else {}

    def items(self) -> list[Mapping[str, Any]]:
        """Return the objects of what was told where it is a list, else none."""
        return [item for item in self.value if isinstance(item, Mapping)] if isinstance(self.value, list) else []


def told(request: Request, key: str) -> Told:
    """Return what the keeper last told under a key; where the centre is away, the last that this process heard."""
    state = request.app.state
    centre = getattr(state, "centre", None)
    if centre is None:
        return Told()
    heard: dict[str, Told] = state.heard if hasattr(state, "heard") else {}
    state.heard = heard
    try:
        notice = read_board(centre, key)
    except RunError as error:
        last = heard.get(key, Told())
        return Told(last.value, last.time, str(error))
    found = Told() if notice is None else Told(notice.value, notice.time)
    if key in SUBJECTS:
        heard[key] = found
    return found


def kept_card(request: Request, sha256: str) -> Mapping[str, Any] | None:
    """Return the card that the keeper read in a model's file; None where it told of none."""
    return told(request, card_key(sha256)).mapping() or None


def kept_models(request: Request) -> Kept:
    """Return what the keeper told of each run's models; none without a centre."""
    return _parsed_models(told(request, "models"))


def _parsed_models(snapshot: Told) -> Kept:
    found: dict[tuple[str, int], KeptModel] = {}
    for run, rounds in snapshot.mapping().items():
        for number, item in rounds.items() if isinstance(rounds, Mapping) else ():
            if isinstance(item, Mapping) and str(number).isdigit():
                found[run, int(number)] = _kept_model(item)
    return found


def _kept_model(item: Mapping[str, Any]) -> KeptModel:
    pin = item.get("pin")
    pinned = pin if isinstance(pin, Mapping) else {}
    return KeptModel(
        size=item.get("size"),
        here=item.get("here"),
        onnx=bool(item.get("onnx")),
        pinned_by=pinned.get("by"),
        pinned_at=pinned.get("time"),
        pin_note=pinned.get("note"),
    )


def kept_sites(snapshot: Told) -> dict[str, SiteKept]:
    """Return what the keeper told of each site; of an old snapshot nobody can say who is on line now."""
    found = {str(item["name"]): _kept_site(item) for item in snapshot.items() if "name" in item}
    if not (snapshot.stale or snapshot.away) or snapshot.time is None:
        return found
    return {name: _as_of(kept, snapshot.time) for name, kept in found.items()}


def _as_of(kept: SiteKept, told: float) -> SiteKept:
    # Who was on line then was seen then.
    seen = max(kept.last_seen or 0.0, told) if kept.online else kept.last_seen
    return replace(kept, online=None, last_seen=seen, told=told)


def codes_of(status: Told) -> dict[str, Code]:
    """Return the code that each run was started with, by run."""
    runs = status.mapping().get("runs", ())
    known = [item for item in runs if isinstance(item, Mapping)] if isinstance(runs, list | tuple) else []
    return {
        str(item.get("name")): Code(str(item["code_hash"]), item.get("code_since"))
        for item in known
        if item.get("code_hash")
    }


def _kept_site(item: Mapping[str, Any]) -> SiteKept:
    return SiteKept(
        state=str(item.get("state", "")),
        since=item.get("since"),
        fingerprint=item.get("fingerprint"),
        online=item.get("online"),
        last_seen=item.get("last_seen"),
        clock_skew=item.get("clock_skew"),
        excluded=item.get("excluded"),
        excluded_by=item.get("excluded_by"),
        excluded_since=item.get("excluded_since"),
        note=str(item.get("note") or ""),
    )
