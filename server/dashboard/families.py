"""The families of ``/metrics``: which figures Prometheus is told of a run, and of the server behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.dashboard.blocks import NOTHING, Block, Floats
from server.dashboard.health import current_faults, is_held_up, is_silent
from server.dashboard.held import Held
from server.store.schema import SITE_OUTCOMES, SITE_PHASES

STATES = ("waiting", "running", "lost", "finished", "failed", "stopped")
PHASES = ("total", "train", "fuse", "evaluate")
FIGURES = {"auroc": "auroc", "balanced_accuracy": "balanced_accuracy", "ece": "ece", "nll": "loss"}
_NO_SITE = ("global", "external")
_TRAIN = SITE_PHASES.index("train")


class RunFamilies:
    """What is told of runs; labels: ``run`` is the run's name, ``id`` its number in the record.

    An undefined figure is left out, never told as nought.
    """

    def __init__(self) -> None:
        run, site = ["run", "id"], ["run", "id", "site"]
        self.up = GaugeMetricFamily("popmi_record_up", "1 if the record answers")
        self.unreadable = GaugeMetricFamily("popmi_unreadable_runs", "Runs whose record cannot be read")
        self.state = GaugeMetricFamily("popmi_run_state", "1 for the state the run is in", labels=[*run, "state"])
        self.faults = GaugeMetricFamily("popmi_run_faults", "What is wrong now; above 0 is degraded", labels=run)
        self.silence = GaugeMetricFamily("popmi_heartbeat_age_seconds", "Since a going run's last sign", labels=run)
        self.round = GaugeMetricFamily("popmi_round", "Last finished round", labels=run)
        self.planned = GaugeMetricFamily("popmi_rounds_planned", "Rounds planned", labels=run)
        self.seconds = GaugeMetricFamily(
            "popmi_round_seconds", "Last finished round; train, evaluate: all sites added up", labels=[*run, "phase"]
        )
        self.figures = {
            name: GaugeMetricFamily(f"popmi_pooled_{told}", f"Newest pooled {told}", labels=[*run, "split"])
            for name, told in FIGURES.items()
        }
        self.site_auroc = GaugeMetricFamily("popmi_site_auroc", "Newest AUROC of a site", labels=[*site, "split"])
        self.outcome = GaugeMetricFamily(
            "popmi_site_outcome", "1 for the outcome of the site's newest answer", labels=[*site, "outcome"]
        )
        self.examples = GaugeMetricFamily(
            "popmi_site_examples", "Images of the newest round that the site trained in", labels=site
        )
        self.epsilon = GaugeMetricFamily("popmi_site_epsilon", "Privacy budget spent", labels=site)
        self.limit = GaugeMetricFamily(
            "popmi_site_epsilon_limit", "Privacy budget that the run may spend at the site", labels=site
        )
        self.bytes = CounterMetricFamily("popmi_site_bytes", "Bytes sent and received", labels=[*site, "direction"])

    def all(self) -> list[Metric]:
        """Return every family, also empty ones, so that a name that is asked for is there."""
        return [
            *(self.up, self.unreadable, self.state, self.faults, self.silence, self.round, self.planned, self.seconds),
            *(*self.figures.values(), self.site_auroc),
            *(self.outcome, self.examples, self.epsilon, self.limit, self.bytes),
        ]

    def add(self, held: Held, limits: Mapping[str, float], now: float, *, awaited: Sequence[str] = ()) -> None:
        """Tell one run.

        Args:
            held: The run.
            limits: The privacy budget that the run may spend at each site, where it was told.
            now: Seconds since 1970 UTC.
            awaited: The sites it waits for between two rounds.
        """
        run, labels = held.run, [held.run.name, str(held.run.id)]
        newest = [row for row in held.rounds if row.server_round >= held.done]
        state = "waiting" if is_held_up(run, held.rounds, awaited) else run.status
        state = "lost" if is_silent(run.status, run.heartbeat, now) else state
        for name in STATES:
            self.state.add_metric([*labels, name], float(name == state))
        self.faults.add_metric(labels, len(current_faults(run, newest, held.sites.recent(held.done))))
        if run.status in ("waiting", "running"):
            self.silence.add_metric(labels, max(0.0, now - run.heartbeat))
        self.round.add_metric(labels, held.done)
        self.planned.add_metric(labels, run.rounds_planned)
        for done in [item for item in newest if item.server_round == held.done and item.finished is not None]:
            for phase in PHASES:
                _known(self.seconds, [*labels, phase], getattr(done, f"seconds_{phase}"))
        for (split, name), block in held.figures.items():
            self._add_figure(labels, split, name, block)
        for place, site in enumerate(held.sites.names):
            self._add_site([*labels, site], place, held)
            _known(self.limit, [*labels, site], limits.get(site))

    def _add_figure(self, labels: list[str], split: str, name: str, block: Block) -> None:
        rounds = np.flatnonzero(block.present)
        if name not in self.figures or not rounds.size:
            return
        for scope, value in zip(block.scopes, block.values[:, rounds[-1]], strict=True):
            if scope == "global":
                _known(self.figures[name], [*labels, split], float(value))
            elif name == "auroc" and scope not in _NO_SITE:
                _known(self.site_auroc, [*labels, scope, split], float(value))

    def _add_site(self, labels: list[str], place: int, held: Held) -> None:
        outcomes, table = held.sites.outcomes[:, place], held.sites
        newest = np.flatnonzero((outcomes != NOTHING).any(axis=0))[-1]
        # A failed phase is not made good by the other phase of the same round.
        words = [SITE_OUTCOMES[code] for code in outcomes[:, newest] if code != NOTHING]
        self.outcome.add_metric([*labels, next((word for word in words if word != "ok"), "ok")], 1)
        _known(self.examples, labels, _last(table.sums["num_examples"][_TRAIN, place]))
        _known(self.epsilon, labels, _last(table.trained["epsilon"][place]))
        for direction in ("up", "down"):
            moved = table.sums[f"bytes_{direction}"][:, place]
            # A record without byte counts says nothing; nought would be a figure.
            if not np.isnan(moved).all():
                self.bytes.add_metric([*labels, direction], float(np.nansum(moved)))


class ServerFamilies:
    """What is told of the server behind the pages, as its keeper last saw it; empty where the pages know of none."""

    def __init__(self) -> None:
        self.up = GaugeMetricFamily("popmi_centre_up", "1 if the database shared with the keeper answers")
        self.silence = GaugeMetricFamily("popmi_keeper_age_seconds", "Since the keeper last looked")
        self.orders = GaugeMetricFamily("popmi_orders_waiting", "Acts that a person asked for and nobody did yet")
        self.waiting = GaugeMetricFamily("popmi_sites_waiting", "Sites that have not approved the wanted run's code")
        self.states = GaugeMetricFamily("popmi_sites", "Sites by state", labels=["state"])
        self.online = GaugeMetricFamily("popmi_site_online", "1 if the site is on line", labels=["site"])

    def all(self) -> list[Metric]:
        """Return every family, also empty ones."""
        return [self.up, self.silence, self.orders, self.waiting, self.states, self.online]

    def add_status(self, status: Mapping[str, Any], age: float) -> None:
        """Tell what `popmi server status` said ``age`` seconds ago."""
        self.silence.add_metric([], max(0.0, age))
        self.waiting.add_metric([], len(status.get("waiting") or ()))

    def add_sites(self, sites: Sequence[Mapping[str, Any]], *, fresh: bool = True) -> None:
        """Tell what `popmi server sites` said; where that is old (not ``fresh``), not who is on line."""
        states = [str(site.get("state", "unknown")) for site in sites]
        for state in sorted(set(states)):
            self.states.add_metric([state], states.count(state))
        for site in sites:
            # What nobody knows is left out: neither on line nor off it.
            if fresh and site.get("state") == "enrolled" and site.get("online") is not None:
                self.online.add_metric([str(site.get("name"))], float(bool(site.get("online"))))


def _last(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known[-1]) if known.size else None


def _known(family: GaugeMetricFamily, labels: list[str], value: float | None) -> None:
    if value is not None and not np.isnan(value):
        family.add_metric(labels, value)
