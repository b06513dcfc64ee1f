"""Who is there: let sites in at the start, take in newcomers between rounds, wait for those that are missing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from flwr.serverapp import Grid

from popmi_core.asking import JOINING
from popmi_core.errors import RunError
from popmi_core.protocol import POOLED_SITE, RunPlan
from server.desk import Desk
from server.exchange import Exchange, Question, Round
from server.register import read_excluded, read_register
from server.replies import Expected
from server.roster import Entry, Roster
from server.wire import ask

log = logging.getLogger("popmi.round")
JOIN_SECONDS = 120.0
"""How long a node may take to tell who it is and read its data set, before the run goes on without it."""
READ_SECONDS = 6 * 3600.0
"""How long a site may go on reading its images after that; it is asked anew once it has, and lets itself in at once."""
BACK_AGAIN = 180.0
"""Seconds within which sites are back after their server was: a node tries again every minute at the latest."""
LOOK_AGAIN = 5.0
"""Seconds between two looks for sites that are missing at the start."""
ASK_AGAIN = 60.0
"""Seconds before a node that was refused is asked again: its data may have been mended, its code approved."""


class Attendance:
    """Takes sites into the roster.

    Args:
        plan: The run; ``plan.sites_file`` tells which node is which site, and is read anew at every look.
        desk: Over which sites are asked.
        joined: Hears of the roster whenever it has changed.
        waits: Hears for whom a run that was begun waits, whenever that changes; of nobody once it goes on.
        clock: Seconds, growing; ``pause`` waits for as many.
    """

    def __init__(
        self,
        plan: RunPlan,
        desk: Desk,
        joined: Callable[[Roster], None],
        waits: Callable[[Sequence[str]], None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.plan, self.desk, self.roster, self.joined = plan, desk, desk.roster, joined
        self._waits, self._clock, self._pause = waits, clock, pause
        self._asked: dict[int, float] = {}

    def begin(self, grid: Grid, *, again: bool = False) -> None:
        """Let sites in until all that are expected are there, or the time to join is over.

        A run that goes on (``again``) has its sites: they come back within ``BACK_AGAIN`` seconds, and one that stays
        away must not hold the others up for as long as at the beginning.

        Raises:
            RunError: If fewer sites than a round needs have joined; every missing one is named with its reason.
        """
        config = self.plan.config
        until = self._clock() + (config.limits.join if self.plan.names else 0.0)
        back = self._clock() + BACK_AGAIN
        # A simulation goes on with one site: its rounds are void, and the record tells why.
        needed = config.min_sites if self.plan.names else 1
        told: list[str] = []
        while True:
            self.look(grid)
            missing = self._missing()
            here = len(self.roster.trainers(pooled=config.strategy == "pooled"))
            if not missing or self._clock() >= until or (again and here >= needed and self._clock() >= back):
                break
            if missing != told:
                log.info("waiting for %s", ", ".join(missing))
                told = missing
                if again:
                    self._waits(missing)
            self._pause(LOOK_AGAIN)
        if again:
            # Also where nobody was missing: what a process wrote that was ended while it waited is over.
            self._waits(())
        if here < needed:
            raise RunError(self._too_few(needed))

    def between_rounds(self, grid: Grid) -> None:
        """Look for newcomers; where fewer sites are on line than a round needs, wait for them, up to ``limits.join``.

        A hospital that restarts its machine costs minutes then, not rounds without a model. After that time the round
        begins all the same and tells who is missing.
        """
        begun, told = self._clock(), list[str]()
        while away := self._too_many_away(grid, begun):
            if away != told:
                log.warning("too few sites on line for a round; waiting for %s", ", ".join(away))
                self._waits(away)
                told = away
            self._pause(LOOK_AGAIN)
        if told:
            self._waits(())

    def _too_many_away(self, grid: Grid, begun: float) -> list[str]:
        """Return the sites that a round has to wait for; none where it can begin, or where no waiting helps."""
        config = self.plan.config
        self.look(grid)
        trainers = self.roster.trainers(pooled=config.strategy == "pooled")
        there = set(grid.get_node_ids())
        here = [site for site in trainers if self.roster.nodes[site] in there]
        away = [*(site for site in trainers if site not in here), *self._missing()]
        # Where too few are left at all, as after a revocation, no waiting helps.
        if len(here) >= config.min_sites or len(here) + len(away) < config.min_sites:
            return []
        return [] if self._clock() - begun >= config.limits.join else away

    def look(self, grid: Grid) -> list[str]:
        """Ask nodes that are not in yet who they are; return the sites that have joined."""
        registry = read_register(self.plan)
        self.desk.revoked()
        # A run whose description names its sites is theirs alone.
        chosen = self.plan.config.sites or tuple(registry)
        out = {site: why for site, why in read_excluded(self.plan).items() if site in chosen}
        changed, back = out != self.roster.excluded, self.roster.excluded.keys() - out.keys()
        # Between rounds only: what a site sends to the round in flight is used.
        self.roster.leave_out(out)
        for site in back:
            # Asked at once, not a while after it was asked last.
            self._asked.pop(registry.get(site) or 0, None)
        names = {
            node: site for site, node in registry.items() if node is not None and site in chosen and site not in out
        }
        post = self._post()
        post.hear()
        entry = Entry(names, self.plan.phantom, 0)
        inside, now = set(self.roster.nodes.values()), self._clock()
        new = [
            node
            for node in sorted(grid.get_node_ids())
            if node not in inside
            and entry.label(node) not in post.busy
            and now - self._asked.get(node, -ASK_AGAIN) >= ASK_AGAIN
            and (self.plan.sites_file is None or node in names)
        ]
        if not new:
            if changed:
                self.joined(self.roster)
            return []
        self._asked |= dict.fromkeys(new, now)
        before = (dict(self.roster.nodes), dict(self.roster.refused), dict(self.roster.waiting))
        joined = self._let_in(new, names)
        if changed or before != (self.roster.nodes, self.roster.refused, self.roster.waiting):
            self.joined(self.roster)
        return joined

    def revoked(self, site: str) -> bool:
        """Return whether a site's key was revoked."""
        registry = read_register(self.plan)
        return site in registry and registry[site] is None

    def _missing(self) -> list[str]:
        out = {*self.roster.nodes, *self.roster.excluded}
        return [site for site in self.plan.names if site not in out and not self.revoked(site)]

    def _let_in(self, nodes: list[int], names: Mapping[int, str]) -> list[str]:
        instruction = self.desk.instruction(0, **self.desk.asks.joining())
        classes = len(self.plan.classes) if instruction.count_classes else 0
        entry = Entry(names, self.plan.phantom, classes, len(self.plan.classes))
        questions = [Question(entry.label(node), 0, ask(node, JOINING, instruction, {})) for node in nodes]
        round_ = Round()
        expected = Expected(
            self.plan.run,
            0,
            {},
            round_.asked,
            missing=round_.missing,
            nonce=self.desk.nonce,
            spoilt=round_.spoilt,
            room=round_.room,
        )
        timeout = min(JOIN_SECONDS, self.plan.config.timeout)
        replies = self._post().ask(questions, round_, timeout=timeout, life=READ_SECONDS)
        return self.roster.enrol(replies, expected, entry)

    def _post(self) -> Exchange:
        post: Exchange | None = self.desk.post
        if post is None:
            raise RunError("sites cannot be asked: no grid is open. Start the rounds with OpmStrategy.start.")
        return post

    def _too_few(self, needed: int) -> str:
        here = ", ".join(sorted(site for site in self.roster.nodes if site != POOLED_SITE)) or "none"
        reasons = {site: "not on line" for site in self.plan.names if site not in self.roster.nodes}
        reasons |= {**self.roster.refused, **self.roster.excluded}
        told = "; ".join(f"{who}: {why}" for who, why in sorted(reasons.items())) or "no node answered"
        if not self.plan.names and here == "none":
            return f"no site could join the run ({told}). Mend the sites and rerun."
        waited = f" in {self.plan.config.limits.join:.0f} s" if self.plan.names else ""
        return (
            f"{len(self.roster.evaluators)} site(s) joined{waited} ({here}), at least {needed} needed ({told}). Mend "
            "the sites and resume the run."
        )
