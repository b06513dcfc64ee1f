"""Cases 13 and 14: a key that two use, a key that is revoked, a key that nobody let in."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import dataclass
from datetime import datetime

from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from stage import BAD, GOOD, THIRD, Stage

from client.site.contact import HEARD
from client.site.home import SiteHome
from client.site.run import status
from popmi_core.audit import AuditLog
from popmi_core.deployment.enrolment import read_enrolment

REFUSED = re.compile(r"^(\S+ \S+) WARNING refused from \S+ (\d{3} POST b'/v1/fleet/[a-z-]+')", re.MULTILINE)
"""A line of the gateway's log on a node that the SuperLink refuses: when, and what."""
UNREACHABLE = "server.unreachable"
REFUSAL = "connection to the SuperLink"
"""What a node says that could not begin, in its log."""
TOLD_WITHIN = 600.0
"""Seconds in which a site's own log must tell that the server refuses it: two minutes, or more on a busy machine."""
FOR_THE_COPY = ("processes", "bundles", "audit.jsonl")
"""What a copy of a site's folder goes without."""


@dataclass(frozen=True)
class CutOff:
    """Seconds from the start of the command that revokes a key to what its node came to feel.

    Attributes:
        accepted: To the last request that was answered; below 0 where the node asked nothing more in that time.
        refused: To the first request that was refused.
        ended: Until the node ended by that, or was started anew already.
        request: The refused request.
    """

    accepted: float
    refused: float
    ended: float
    request: str


def used_twice(stage: Stage) -> None:
    """Case 13: a second site sends the first one's key; then one key is on two machines at once."""
    machine = stage.machine
    machine.popmi("server", "add-site", "twin")
    told = json.loads((machine.site(GOOD).folder / f"{GOOD}.enrolment.json").read_text())
    path = machine.folder / "twin.json"
    path.write_text(json.dumps({**told, "site": "twin"}))
    asked = ("server", "confirm", str(path), "--fingerprint", read_enrolment(path).fingerprint)
    done = machine.popmi(*asked, expect=None)
    stage.note(
        "13",
        "a key used twice",
        "`popmi server confirm` of another site's key under a new name",
        done.stderr,
        "yes; the key stays the first site's",
        good=done.returncode == 8 and GOOD in done.stderr,
        audit=[stage.event("site.refused", site="twin")],
    )
    on_two_machines(stage)


def on_two_machines(stage: Stage) -> None:
    """Case 13: a copy of a site's folder, key included, runs beside the site itself, through a whole run."""
    machine, run = stage.machine, "slow-copy"
    first, copy = machine.site(GOOD), machine.site("copy")
    shutil.copytree(first.folder, copy.folder, ignore=shutil.ignore_patterns(*FOR_THE_COPY))
    stage.mark()
    starts = node_starts(first)
    machine.run_site("copy")
    node_log = copy.processes / "node.log"
    machine.until(lambda: node_log.exists() and REFUSAL in node_log.read_text(), "a refusal of the copy", 200)
    machine.begin(run, {"rounds": 3, "sites": [GOOD, BAD, THIRD]})
    ended = stage.finish(run)
    outcomes = [row.outcome for row in stage.site_rows(run) if row.site == GOOD]
    event = stage.event(UNREACHABLE, at=copy, wait=TOLD_WITHIN)
    well, lasting = status(copy)["well"], node_starts(first) == starts
    stage.note(
        "13",
        "one key on two machines at once",
        "a copy of a site's folder ran `popmi site run` beside the site, through a run of three rounds",
        f"the first stays in ({', '.join(outcomes)}; its node {'never' if lasting else 'WAS'} started anew); the copy: "
        f"well: {well}, {said(copy)}",
        f"yes, run {ended}; the copy takes no part",
        good=lasting and not well and bool(event) and outcomes == ["ok"] * 3 and ended == "finished",
        audit=[stage.event("site.refused", wait=0.0, says=GOOD), event],
    )
    machine.stop("copy")


def revoked_and_unknown(stage: Stage) -> None:
    """Case 14: a key is revoked in the middle of a run; another was never let in."""
    machine, run, home = stage.machine, "slow-revoked", stage.machine.site(THIRD)
    machine.begin(run, {"rounds": 5, "sites": [GOOD, BAD, THIRD]})
    machine.until(lambda: machine.done(run) >= 1, "the first round", 400)
    cut = cut_off(stage, THIRD)
    heard = (home.processes / HEARD).stat().st_mtime
    stranger = machine.enrol("stranger", f"phantom:{THIRD}", confirm=False)
    machine.run_site("stranger")
    ended = stage.finish(run, 900)
    rows = [row for row in stage.site_rows(run) if row.site == THIRD]
    events = [
        stage.event("site.revoked", site=THIRD),
        stage.event("site.cut_off", site=THIRD),
        stage.event(UNREACHABLE, at=home, wait=TOLD_WITHIN),
    ]
    silent = (home.processes / HEARD).stat().st_mtime == heard
    reason = rows[-1].reason or ""
    stage.note(
        "14",
        "a revoked key",
        "`popmi server revoke` in the middle of a run; seconds from the start of that command",
        f"{reason}; the node's last request was answered after {cut.accepted:.1f} s, its first refused after "
        f"{cut.refused:.1f} s ({cut.request}), its process ended after {cut.ended:.1f} s; {said(home)}",
        f"yes, run {ended}; {'nothing of the site was' if silent else 'THE SITE WAS'} answered until then",
        good=well_cut_off(cut) and silent and "revoked" in reason and ended == "finished",
        audit=events,
        seconds=cut.refused,
    )
    machine.stop(THIRD)
    event = stage.event(UNREACHABLE, at=stranger, wait=TOLD_WITHIN)
    stage.note(
        "14",
        "an unknown key",
        "a site ran whose key nobody had confirmed",
        said(stranger),
        "yes; it is never asked",
        good="stranger" not in machine.online() and not (stranger.processes / HEARD).exists() and bool(event),
        audit=[stage.event("site.refused", site="stranger", wait=0.0), event],
    )
    machine.stop("stranger")


def cut_off(stage: Stage, site: str) -> CutOff:
    """Revoke a site's key, and watch from the command's start on how its node fares.

    The node touches a file whenever the server has answered it; the gateway's log has the second of each refusal. All
    other sites' keys are good, so the first refusal is this node's.
    """
    machine, home = stage.machine, stage.machine.site(site)
    gateway, node = machine.home.processes / "gateway.log", f"{site} node"
    so_far, process = len(gateway.read_bytes()), machine.process(node)
    begun = time.time()
    machine.start("revoke", "server", "revoke", site, "--reason", "laptop stolen")
    machine.until(lambda: first_refusal(gateway.read_bytes()[so_far:]), "the revoked node's refusal", 180, every=0.05)
    found = first_refusal(gateway.read_bytes()[so_far:])
    assert found is not None
    refused, request = found
    machine.until(lambda: machine.process(node) != process, "the end of the revoked node", 180, every=0.05)
    ended = time.time() - begun
    if (code := machine.running.pop("revoke").wait(180)) != 0:
        raise RuntimeError(f"popmi server revoke ended with {code}: {(machine.folder / 'revoke.log').read_text()}")
    return CutOff((home.processes / HEARD).stat().st_mtime - begun, refused - begun, ended, request)


def first_refusal(log: bytes) -> tuple[float, str] | None:
    """Return when, in seconds since 1970, the gateway passed on its first refusal of a node, and what was refused."""
    found = REFUSED.search(log.decode(errors="replace"))
    if found is None:
        return None
    return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").timestamp(), found[2].replace("b'", "").strip("'")


def well_cut_off(cut: CutOff) -> bool:
    """Return whether a key was cut off within one heartbeat, and nothing was answered after the first refusal."""
    return 0.0 <= cut.refused <= HEARTBEAT_DEFAULT_INTERVAL and cut.accepted <= cut.refused


def node_starts(home: SiteHome) -> int:
    """Return how often a site's node was started."""
    return int(json.loads((home.processes / "processes.json").read_text())["node"]["starts"])


def said(home: SiteHome) -> str:
    """Return what a site's own audit log said last of the server that does not answer it."""
    lines = [entry for entry in AuditLog(home.audit.path).entries() if entry.event == UNREACHABLE]
    return "; ".join(f"{name}: {text}" for name, text in lines[-1].details["why"].items()) if lines else "nothing said"
