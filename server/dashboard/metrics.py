"""``/metrics``: the runs' state and newest figures for Prometheus, and how the server behind them is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy.engine import Engine

from popmi_core.errors import RunError
from server.centre.board import read_board
from server.centre.orders import count_waiting
from server.dashboard.catalogue import Catalogue
from server.dashboard.families import RunFamilies, ServerFamilies
from server.dashboard.held import Held, HeldRuns
from server.store.looks import awaited_sites

RUNS_TOLD = 10
"""How many of the newest runs are told; older ones no longer change."""

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """Tell Prometheus how the runs and the server are."""
    state = request.app.state
    registry = CollectorRegistry()
    # The runs that the pages hold: one of a thousand rounds is read once, then only what is new.
    registry.register(RunCollector(state.catalogue, state.sections.held))
    registry.register(ServerCollector(getattr(state, "centre", None)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class RunCollector(Collector):
    """Reads the newest runs of a catalogue; an undefined figure is left out, never told as nought.

    Args:
        catalogue: Where the runs are.
        held: Those of them that were read before.
    """

    def __init__(self, catalogue: Catalogue, held: HeldRuns) -> None:
        self._catalogue, self._held = catalogue, held

    def collect(self) -> Iterator[Metric]:
        """Return every family, also empty ones, so that a name that is asked for is there."""
        told = RunFamilies()
        try:
            found, unreadable = self._newest()
            for key in found:
                try:
                    held = self._held.get(key)
                    awaited = awaited_sites(self._catalogue.open(key)[0], held.run)
                    told.add(held, self._limits(key, held), time.time(), awaited=awaited)
                except (RunError, LookupError):
                    unreadable += 1
            told.unreadable.add_metric([], unreadable)
            told.up.add_metric([], 1)
        except RunError:
            # The database is away: a person must see that, and no old figures.
            told.up.add_metric([], 0)
        yield from told.all()

    def _newest(self) -> tuple[list[str], int]:
        found, unreadable = [], 0
        for key in self._catalogue.names():
            try:
                reader, run_id = self._catalogue.open(key)
                found.append((reader.run(run_id).created, key))
            except (RunError, LookupError):
                unreadable += 1
        return [key for _, key in sorted(found)[-RUNS_TOLD:]], unreadable

    def _limits(self, key: str, held: Held) -> dict[str, float]:
        """Return the privacy budget that the run may spend at each site, as noted when the site joined."""
        reader, run_id = self._catalogue.open(key)
        rows = reader.details(run_id, kind="joined")
        told = {row.scope: row.value.get("epsilon_limit") for row in rows if isinstance(row.value, Mapping)}
        return {site: float(limit) for site, limit in told.items() if isinstance(limit, int | float)}


class ServerCollector(Collector):
    """Reads what the keeper last wrote, and which orders wait for it.

    Args:
        centre: The database that the pages share with the keeper; None where they show a folder of runs alone.
    """

    def __init__(self, centre: Engine | None) -> None:
        self._centre = centre

    def collect(self) -> Iterator[Metric]:
        """Return every family, also empty ones."""
        told = ServerFamilies()
        if self._centre is not None:
            try:
                self._add(told, self._centre)
                told.up.add_metric([], 1)
            except RunError:
                told = ServerFamilies()
                told.up.add_metric([], 0)
        yield from told.all()

    def _add(self, told: ServerFamilies, centre: Engine) -> None:
        told.orders.add_metric([], count_waiting(centre))
        status, sites = read_board(centre, "status"), read_board(centre, "sites")
        if status is not None and isinstance(status.value, Mapping):
            told.add_status(status.value, time.time() - status.time)
        if sites is not None:
            told.add_sites(_sites(sites.value), fresh=not sites.stale(time.time()))


def _sites(value: Any) -> list[Mapping[str, Any]]:
    listed = value.get("sites") if isinstance(value, Mapping) else value
    return [item for item in listed if isinstance(item, Mapping)] if isinstance(listed, list) else []
