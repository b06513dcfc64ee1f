"""``/metrics``: the runs' state and newest figures for Prometheus, read from the record at every question."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from popmi_core.errors import RunError
from server.dashboard.catalogue import Catalogue
from server.dashboard.health import current_faults, is_silent
from server.store import RunReader, RunSummary, SiteRow

RUNS_TOLD = 10
"""How many of the newest runs are told; older ones no longer change."""
STATES = ("waiting", "running", "lost", "finished", "failed", "stopped")
PHASES = ("total", "train", "fuse", "evaluate")
FIGURES = {"auroc": "auroc", "balanced_accuracy": "balanced_accuracy", "ece": "ece", "nll": "loss"}

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """Tell Prometheus how the runs are."""
    registry = CollectorRegistry()
    registry.register(RunCollector(request.app.state.catalogue))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class RunCollector(Collector):
    """Reads the newest runs of a catalogue; an undefined figure is left out, never told as nought.

    Args:
        catalogue: Where the runs are.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def collect(self) -> Iterator[Metric]:
        """Return every family, also empty ones, so that a name that is asked for is there."""
        told = _Families()
        try:
            found, unreadable = self._newest()
            for reader, run in found:
                try:
                    told.add(reader, run, time.time())
                except RunError:
                    unreadable += 1
            told.unreadable.add_metric([], unreadable)
            told.up.add_metric([], 1)
        except RunError:
            # The database is away: a person must see that, and no old figures.
            told.up.add_metric([], 0)
        yield from told.all()

    def _newest(self) -> tuple[list[tuple[RunReader, RunSummary]], int]:
        found, unreadable = [], 0
        for key in self._catalogue.names():
            try:
                reader, run_id = self._catalogue.open(key)
                found.append((reader, reader.run(run_id)))
            except (RunError, LookupError):
                unreadable += 1
        found.sort(key=lambda item: item[1].created)
        return found[-RUNS_TOLD:], unreadable


class _Families:
    """The families by name; labels: ``run`` is the run's name, ``id`` its number in the record."""

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
        self.outcome = GaugeMetricFamily(
            "popmi_site_outcome", "1 for the outcome of the site's newest answer", labels=[*site, "outcome"]
        )
        self.examples = GaugeMetricFamily("popmi_site_examples", "Images trained on in the newest round", labels=site)
        self.epsilon = GaugeMetricFamily("popmi_site_epsilon", "Privacy budget spent", labels=site)
        self.bytes = CounterMetricFamily("popmi_site_bytes", "Bytes sent and received", labels=[*site, "direction"])

    def all(self) -> list[Metric]:
        """Return every family."""
        return [
            *(self.up, self.unreadable, self.state, self.faults, self.silence, self.round, self.planned, self.seconds),
            *(*self.figures.values(), self.outcome, self.examples, self.epsilon, self.bytes),
        ]

    def add(self, reader: RunReader, run: RunSummary, now: float) -> None:
        """Tell one run."""
        labels = [run.name, str(run.id)]
        rounds, sites = reader.rounds(run.id, since=run.rounds_done), reader.sites(run.id)
        recent = [row for row in sites if row.server_round >= run.rounds_done]
        state = "lost" if is_silent(run.status, run.heartbeat, now) else run.status
        for name in STATES:
            self.state.add_metric([*labels, name], float(name == state))
        self.faults.add_metric(labels, len(current_faults(run, rounds, recent)))
        if run.status in ("waiting", "running"):
            self.silence.add_metric(labels, max(0.0, now - run.heartbeat))
        self.round.add_metric(labels, run.rounds_done)
        self.planned.add_metric(labels, run.rounds_planned)
        for done in [item for item in rounds if item.server_round == run.rounds_done and item.finished is not None]:
            for phase in PHASES:
                _known(self.seconds, [*labels, phase], getattr(done, f"seconds_{phase}"))
        for name, family in self.figures.items():
            newest = {row.split: row.value for row in reader.metrics(run.id, name=name, scope="global")}
            for split, value in newest.items():
                _known(family, [*labels, split], value)
        for site in sorted({row.site for row in sites}):
            self._add_site([*labels, site], [row for row in sites if row.site == site])

    def _add_site(self, labels: list[str], rows: Sequence[SiteRow]) -> None:
        newest = rows[-1].server_round
        # A failed phase is not made good by the other phase of the same round.
        outcomes = [row.outcome for row in rows if row.server_round == newest]
        self.outcome.add_metric([*labels, next((word for word in outcomes if word != "ok"), "ok")], 1)
        trained = [row for row in rows if row.phase == "train"]
        _known(self.examples, labels, _last(trained, "num_examples"))
        _known(self.epsilon, labels, _last(trained, "epsilon"))
        for direction in ("up", "down"):
            moved = sum(getattr(row, f"bytes_{direction}") or 0 for row in rows)
            self.bytes.add_metric([*labels, direction], moved)


def _last(rows: Sequence[SiteRow], name: str) -> float | None:
    return next((value for row in reversed(rows) if (value := getattr(row, name)) is not None), None)


def _known(family: GaugeMetricFamily, labels: list[str], value: float | None) -> None:
    if value is not None:
        family.add_metric(labels, value)
