"""A run's figures in MLflow, read from its record: a second home for them, told again without doubles."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popmi_core import __version__
from popmi_core.errors import ConfigError, RunError
from server.store import RoundRow, RunReader, RunSummary
from server.store.schema import RECORD_NAME, display_name

IDENTITY = "popmi.run"
"""Tag that tells which run of which record an MLflow run is."""
BATCH = 1000
"""Metrics that MLflow takes at once."""
ROUND_SECONDS = ("seconds_total", "seconds_train", "seconds_fuse", "seconds_evaluate")
SITE_FIGURES = ("num_examples", "seconds", "bytes_up", "bytes_down", "epsilon", "train_loss")
ENDS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


@dataclass(frozen=True)
class Told:
    """What one look told MLflow.

    Attributes:
        mlflow_run: Id of the run there.
        metrics: New or changed figures.
        rounds: The run's last finished round.
        state: The record's word for the run.
        kept: Parameters that MLflow holds with another value: it never changes one.
    """

    mlflow_run: str
    metrics: int
    rounds: int
    state: str
    kept: tuple[str, ...]


def track(
    record: str,
    *,
    tracking_uri: str,
    run: str | None = None,
    experiment: str = "POPMI",
    follow: bool = False,
    every: float = 2.0,
    said: Callable[[Told], None] = lambda _: None,
) -> Told:
    """Tell MLflow a run's configuration, figures and state; with ``follow``, until the run is over.

    Args:
        record: A run folder, its ``record.sqlite``, or an SQLAlchemy URL of a database of runs.
        tracking_uri: MLflow's server or database.
        run: Name of the run; the newest without.
        experiment: MLflow's experiment; made when missing.
        follow: Look again every ``every`` seconds.
        every: Seconds from look to look.
        said: Called after each look that told something.

    Raises:
        ConfigError: If mlflow is not installed.
        RunError: If the record cannot be read, or MLflow refuses; said again, it goes on where it was.
    """
    client = _client(tracking_uri)
    path = Path(record) / RECORD_NAME if "://" not in record and Path(record).is_dir() else record
    try:
        with RunReader(path) as reader:
            summary = reader.run(name=run)
            there = _Tracked(client, experiment, summary, str(path))
            while True:
                told = there.tell(reader, reader.run(summary.id))
                if told.metrics or not follow or told.state in ENDS:
                    said(told)
                if not follow or told.state in ENDS:
                    return told
                time.sleep(every)
    except _mlflow_errors() as error:
        raise RunError(
            f"MLflow at {display_name(tracking_uri)} does not take the run: {_cause(error, tracking_uri)}. Check the "
            "address; said again, it goes on where it was."
        ) from error


class _Tracked:
    """One run in MLflow, and what it holds already."""

    def __init__(self, client: Any, experiment: str, summary: RunSummary, record: str) -> None:
        self._client = client
        # The id alone is any record's; a run begun anew under the same name is another run.
        text = f"{summary.id}/{summary.name}/{summary.created!r}"
        identity = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]
        known = client.get_experiment_by_name(experiment)
        place = client.create_experiment(experiment) if known is None else known.experiment_id
        found = client.search_runs([place], f"tags.`{IDENTITY}` = '{identity}'", max_results=1)
        self._held: dict[str, dict[int, float]] = defaultdict(dict)
        if found:
            self.run_id: str = found[0].info.run_id
            self._read_back(found[0].data.metrics)
        else:
            tags = {IDENTITY: identity, "popmi.version": __version__, "popmi.record": display_name(record)}
            begun = int(1000 * summary.created)
            self.run_id = client.create_run(place, start_time=begun, tags=tags, run_name=summary.name).info.run_id
        self.kept = self._parameters(summary.config)
        self._ended: dict[int, float | None] = {}
        self._status = ""

    def tell(self, reader: RunReader, summary: RunSummary) -> Told:
        """Tell what is new since the last look."""
        from mlflow.entities import Metric

        rounds = [row for row in reader.rounds(summary.id) if row.finished is not None]
        # A round that was made anew ended at another time.
        news = [row for row in rounds if self._ended.get(row.server_round) != row.finished]
        fresh = []
        for key, step, ended, value in _figures(reader, summary.id, news):
            if self._held[key].get(step) != value:
                fresh.append(Metric(key, value, int(1000 * ended), step))
                self._held[key][step] = value
        for start in range(0, len(fresh), BATCH):
            self._client.log_batch(self.run_id, metrics=fresh[start : start + BATCH])
        self._ended.update((row.server_round, row.finished) for row in news)
        self._state(summary, rounds)
        return Told(self.run_id, len(fresh), summary.rounds_done, summary.status, self.kept)

    def _read_back(self, names: Mapping[str, float]) -> None:
        for key in names:
            history = self._client.get_metric_history(self.run_id, key)
            self._held[key] = {item.step: item.value for item in sorted(history, key=lambda item: item.timestamp)}

    def _parameters(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        from mlflow.entities import Param

        wanted = {key: str(value)[:6000] for key, value in _flat(config)}
        there = self._client.get_run(self.run_id).data.params
        missing = [Param(key, value) for key, value in wanted.items() if key not in there]
        # A hundred parameters are what MLflow takes at once.
        for start in range(0, len(missing), 100):
            self._client.log_batch(self.run_id, params=missing[start : start + 100])
        return tuple(key for key, value in wanted.items() if there.get(key, value) != value)

    def _state(self, summary: RunSummary, rounds: Sequence[RoundRow]) -> None:
        from mlflow.entities import RunTag

        tags = {
            "popmi.state": summary.status,
            "popmi.reason": summary.reason or "",
            "popmi.rounds": f"{summary.rounds_done}/{summary.rounds_planned}",
            "popmi.strategy": summary.strategy,
            "popmi.seed": str(summary.seed),
            "popmi.data": summary.data_name,
            "popmi.phantom": str(summary.phantom).lower(),
            "popmi.classes": ",".join(summary.classes),
            "popmi.sites": ",".join(summary.sites),
            "popmi.model_sha256": next((row.model_sha256 for row in reversed(rounds) if row.model_sha256), ""),
        }
        self._client.log_batch(self.run_id, tags=[RunTag(key, value[:5000]) for key, value in tags.items()])
        status = ENDS.get(summary.status, "RUNNING")
        if status == self._status:
            return
        if status == "RUNNING":
            self._client.update_run(self.run_id, status=status)
        else:
            ended = None if summary.finished is None else int(1000 * summary.finished)
            self._client.set_terminated(self.run_id, status=status, end_time=ended)
        self._status = status


def _figures(reader: RunReader, run_id: int, rounds: Sequence[RoundRow]) -> Iterator[tuple[str, int, float, float]]:
    """Yield name, round, end (seconds since 1970 UTC) and value of every figure of these rounds that is defined."""
    if not rounds:
        return
    ended = {row.server_round: row.finished or 0.0 for row in rounds}
    first = min(ended)
    for row in rounds:
        for name in ROUND_SECONDS:
            yield from _defined(f"round/{name}", row.server_round, ended, getattr(row, name))
    for figure in reader.metrics(run_id, since=first):
        key = f"{_scope(figure.scope)}/{figure.split}.{figure.name}"
        for end, value in (("", figure.value), (".lower", figure.lower), (".upper", figure.upper)):
            yield from _defined(key + end, figure.server_round, ended, value)
    for site in reader.sites(run_id, since=first):
        for name in SITE_FIGURES:
            yield from _defined(
                f"{_scope(site.site)}/{site.phase}.{name}", site.server_round, ended, getattr(site, name)
            )


def _defined(
    key: str, server_round: int, ended: Mapping[int, float], value: float | None
) -> Iterator[tuple[str, int, float, float]]:
    if value is not None and server_round in ended:
        yield key, server_round, ended[server_round], float(value)


def _scope(name: str) -> str:
    if name in ("global", "external"):
        return name
    plain = re.sub(r"[^\w. -]", "_", name, flags=re.ASCII)
    # Two names that MLflow would write alike stay two.
    mark = "" if plain == name else f"-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:6]}"
    return f"site.{plain[:200]}{mark}"


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _client(tracking_uri: str) -> Any:
    # No figure, and no word that there are any, goes elsewhere than to the address that was named.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this needs the package '{error.name}', which is not installed. Install popmi[mlflow]."
        ) from error
    try:
        return MlflowClient(tracking_uri=tracking_uri)
    except _mlflow_errors() as error:
        raise RunError(
            f"MLflow at {display_name(tracking_uri)} cannot be used: {_cause(error, tracking_uri)}. Check the address."
        ) from error


def _cause(error: Exception, tracking_uri: str) -> str:
    # The address may hold a password, and MLflow's errors quote it.
    return str(error).replace(tracking_uri.rstrip("/"), display_name(tracking_uri.rstrip("/")))


def _mlflow_errors() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    return MlflowException
