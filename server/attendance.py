"""Who is there: let sites in at the start, take in newcomers between rounds, wait for those that are missing."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from flwr.app import MessageType
from flwr.serverapp import Grid

from popmi_core.errors import RunError
from popmi_core.protocol import POOLED_SITE, RunPlan
from server.desk import Desk
from server.exchange import Exchange, Question, Round
from server.replies import Expected
from server.roster import Entry, Roster
from server.wire import ask

log = logging.getLogger("popmi.round")
JOIN_SECONDS = 120.0
"""How long a node may take to tell who it is and read its data set, before the run goes on without it."""
LOOK_AGAIN = 5.0
"""Seconds between two looks for sites that are missing at the start."""
ASK_AGAIN = 60.0
"""Seconds before a node that was refused is asked again: its data may have been mended, its code approved."""
REVOKED = "revoked"


class Attendance:
    """Takes sites into the roster.

    Args:
        plan: The run; ``plan.sites_file`` tells which node is which site, and is read anew at every look.
        desk: Over which sites are asked.
        joined: Hears of the roster whenever it has changed.
        clock: Seconds, growing; ``pause`` waits for as many.
    """

    def __init__(
        self,
        plan: RunPlan,
        desk: Desk,
        joined: Callable[[Roster], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.plan, self.desk, self.roster, self.joined = plan, desk, desk.roster, joined
        self._clock, self._pause = clock, pause
        self._asked: dict[int, float] = {}

    def begin(self, grid: Grid) -> None:
        """Let sites in until all that are expected are there, or the time to join is over.

        Raises:
            RunError: If fewer sites than a round needs have joined; every missing one is named with its reason.
        """
        config = self.plan.config
        until = self._clock() + (config.limits.join if self.plan.names else 0.0)
        told: list[str] = []
        while True:
            self.look(grid)
            missing = [site for site in self.plan.names if site not in self.roster.nodes and not self.revoked(site)]
            if not missing or self._clock() >= until:
                break
            if missing != told:
                log.info("waiting for %s", ", ".join(missing))
                told = missing
            self._pause(LOOK_AGAIN)
        # A simulation goes on with one site: its rounds are void, and the record tells why.
        needed = config.min_sites if self.plan.names else 1
        if len(self.roster.trainers(pooled=config.strategy == "pooled")) < needed:
            raise RunError(self._too_few(needed))

    def look(self, grid: Grid) -> list[str]:
        """Ask nodes that are not in yet who they are; return the sites that have joined."""
        registry = self._registry()
        self.roster.drop([site for site in self.roster.nodes if site in registry and registry[site] is None])
        # A run whose description names its sites is theirs alone.
        chosen = self.plan.config.sites or tuple(registry)
        names = {node: site for site, node in registry.items() if node is not None and site in chosen}
        inside, now = set(self.roster.nodes.values()), self._clock()
        new = [
            node
            for node in sorted(grid.get_node_ids())
            if node not in inside
            and now - self._asked.get(node, -ASK_AGAIN) >= ASK_AGAIN
            and (not registry or node in names)
        ]
        if not new:
            return []
        self._asked |= dict.fromkeys(new, now)
        before = (dict(self.roster.nodes), dict(self.roster.refused), dict(self.roster.waiting))
        joined = self._let_in(new, names)
        if before != (self.roster.nodes, self.roster.refused, self.roster.waiting):
            self.joined(self.roster)
        return joined

    def revoked(self, site: str) -> bool:
        """Return whether a site's key was revoked."""
        registry = self._registry()
        return site in registry and registry[site] is None

    def _let_in(self, nodes: list[int], names: Mapping[int, str]) -> list[str]:
        post: Exchange | None = self.desk.post
        if post is None:
            raise RunError("sites cannot be asked: no grid is open. Start the rounds with OpmStrategy.start.")
        instruction = self.desk.instruction(0, count_classes=self.plan.config.personal.class_prior == "own")
        classes = len(self.plan.classes) if instruction.count_classes else 0
        entry = Entry(names, self.plan.phantom, classes)
        questions = [Question(entry.label(node), 0, ask(node, MessageType.QUERY, instruction, {})) for node in nodes]
        round_ = Round()
        expected = Expected(self.plan.run, 0, {}, round_.asked, missing=round_.missing, nonce=self.desk.nonce)
        timeout = min(JOIN_SECONDS, self.plan.config.timeout)
        return self.roster.enrol(post.ask(questions, round_, timeout=timeout), expected, entry)

    def _registry(self) -> dict[str, int | None]:
        """Return the node of every site that has a key, None for a revoked one; empty in a simulation.

        Raises:
            RunError: If the register of sites cannot be read.
        """
        if self.plan.sites_file is None:
            return {}
        path = Path(self.plan.sites_file)
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            return {
                site: None if item["state"] == REVOKED else int(item["node_id"])
                for site, item in told.items()
                if item["state"] == REVOKED or item.get("node_id") is not None
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"the register of sites {path} cannot be read ({type(error).__name__}). Restore it from the back-up."
            ) from error

    def _too_few(self, needed: int) -> str:
        here = ", ".join(sorted(site for site in self.roster.nodes if site != POOLED_SITE)) or "none"
        reasons = {site: "not on line" for site in self.plan.names if site not in self.roster.nodes}
        reasons |= self.roster.refused
        told = "; ".join(f"{who}: {why}" for who, why in sorted(reasons.items())) or "no node answered"
        if not self.plan.names and here == "none":
            return f"no site could join the run ({told}). Mend the sites and rerun."
        waited = f" in {self.plan.config.limits.join:.0f} s" if self.plan.names else ""
        return (
            f"{len(self.roster.evaluators)} site(s) joined{waited} ({here}), at least {needed} needed ({told}). Mend "
            "the sites and resume the run."
        )
