"""What a person may have done by the keeper: each act in words, what it needs to be told, and whom it may be about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.dashboard.keeping import Told
from server.dashboard.language import N_

About = Literal["run", "site", "round"]
PATIENCE = 15.0
"""Seconds after which a page says that nobody has taken an order up."""


@dataclass(frozen=True)
class Act:
    """One kind of order.

    Attributes:
        kind: Its name among the orders.
        title: What it is, said as a command.
        button: The words on the button that gives the order.
        about: What it is about: a run, a site, or the model of a round.
        happens: What will happen, a sentence each, with ``%(about)s`` for what it is about.
        reason: Whether it must be told why.
        note: Whether it may be told why.
        typed: Whether the site's name must be typed: what cannot be undone, or hurts the wrong one.
        danger: Whether it cannot be undone.
    """

    kind: str
    title: str
    button: str
    about: About
    happens: tuple[str, ...]
    reason: bool = False
    note: bool = False
    typed: bool = False
    danger: bool = False


ACTS = {
    act.kind: act
    for act in (
        Act(
            "stop", N_("Stop the run"), N_("Stop it after this round"), "run",
            (
                N_("%(about)s rests as soon as the round in flight is done; that round counts."),
                N_("Nothing is lost: Resume goes on after the last round."),
            ),
        ),
        Act(
            "resume", N_("Resume a run"), N_("Go on with it"), "run",
            (
                N_("%(about)s goes on after its last round, with the code that is installed now."),
                N_("If that code is another than before, every site must approve it first."),
            ),
        ),
        Act(
            "exclude", N_("Exclude a site"), N_("Exclude the site"), "site",
            (
                N_("%(about)s is not asked from the next round on; what it sends to the round in flight is used."),
                N_("Its key stays good and it stays on line. Include takes it in again between two rounds."),
                N_("A round with fewer sites than the run's min_sites gives no new model."),
            ),
            reason=True, typed=True,
        ),
        Act(
            "include", N_("Include a site again"), N_("Include the site"), "site",
            (N_("%(about)s is asked again from the next round on."),),
            typed=True,
        ),
        Act(
            "revoke", N_("Revoke a site's key"), N_("Revoke the key for good"), "site",
            (
                N_("%(about)s is cut off within one heartbeat, and what it sends to the round in flight is not used."),
                N_("Its key is never let in again. To come back, the site needs a new kit and a new key."),
            ),
            reason=True, typed=True, danger=True,
        ),
        Act(
            "invite", N_("Invite a site"), N_("Make the kit"), "site",
            (
                N_("A kit is made for %(about)s: fetch it here and send it to the site. It holds no secret."),
                N_("The site answers with an enrolment file; its key is let in once you have confirmed it."),
            ),
        ),
        Act(
            "pin", N_("Pin a model"), N_("Pin this model"), "round",
            (
                N_("%(about)s is the model to take: the pages mark it, and popmi server export holds it."),
                N_("Its file must be the one that the record tells of. Another model of this run is pinned no more."),
            ),
            note=True,
        ),
        Act(
            "unpin", N_("Unpin a model"), N_("Unpin it"), "run",
            (N_("No model of %(about)s is pinned; an export holds the last round's."),),
        ),
        Act(
            "onnx", N_("Make an ONNX file"), N_("Make the file"), "round",
            (N_("%(about)s is written as ONNX, beside the model, and compared with it. That takes about a minute."),),
        ),
    )
}  # fmt: skip
"""Acts that one page with one form asks for; beginning a run and confirming an enrolment have pages of their own."""
TITLES = {kind: act.title for kind, act in ACTS.items()} | {
    "start": N_("Start a run"),
    "confirm": N_("Confirm an enrolment"),
}
"""What each kind of order is called."""


def choices(kind: str, sites: Told, status: Told) -> tuple[str, ...]:
    """Return the sites or runs that an act may be about now, as far as the keeper told of them."""
    known = {str(item.get("name")): item for item in sites.items()}
    if kind == "exclude":
        return _named(known, lambda item: item.get("state") != "revoked" and item.get("excluded") is None)
    if kind == "include":
        return _named(known, lambda item: item.get("state") != "revoked" and item.get("excluded") is not None)
    if kind == "revoke":
        return _named(known, lambda item: item.get("state") != "revoked")
    if kind in ("pin", "onnx"):
        return tuple(str(item.get("name")) for item in runs_of(status))
    if kind == "unpin":
        pinned = status.mapping().get("pinned")
        return tuple(pinned) if isinstance(pinned, Mapping) else ()
    going = run_going(status)
    if kind == "stop":
        return () if going is None else (going,)
    if kind == "resume":
        over = {str(item.get("name")): str(item.get("state", "")).startswith("finished") for item in runs_of(status)}
        return tuple(name for name, done in over.items() if not done and name != going)
    return ()


def run_going(status: Told) -> str | None:
    """Return the run that is wanted and has not ended, None where there is none."""
    for item in runs_of(status):
        if item.get("wanted") == "going" and not str(item.get("state", "")).startswith(("finished", "failed")):
            return str(item.get("name"))
    return None


def runs_of(status: Told) -> Sequence[Mapping[str, Any]]:
    """Return what the keeper told of each run."""
    runs = status.mapping().get("runs")
    return [item for item in runs if isinstance(item, Mapping)] if isinstance(runs, list) else []


def _named(known: Mapping[str, Mapping[str, Any]], fits: Any) -> tuple[str, ...]:
    return tuple(name for name, item in known.items() if fits(item))
