"""A run's figures in MLflow, read back from MLflow's own store (server/tracking.py)."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from popmi_core.cli.main import commands
from popmi_core.errors import ConfigError, RunError
from server.store import RunReader, RunWriter
from server.tracking import Told, track

pytest.importorskip("mlflow")
from mlflow import MlflowClient
from mlflow.entities import Run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make MLflow's tables once: that takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    path = tmp_path / "mlflow.db"
    path.write_bytes(empty_store.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "opm-seed0"
    made.mkdir()
    return made


def tracked(uri: str, experiment: str = "POPMI") -> Run:
    """Return the one run that MLflow holds."""
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


def history(uri: str, key: str) -> list[tuple[int, float]]:
    found = MlflowClient(tracking_uri=uri).get_metric_history(tracked(uri).info.run_id, key)
    return sorted((item.step, item.value) for item in found)


def counted(uri: str) -> int:
    return sum(len(history(uri, key)) for key in tracked(uri).data.metrics)


def test_mlflow_holds_what_the_record_holds(folder: Path, uri: str, believable: ModuleType) -> None:
    believable.write_run(folder / "record.sqlite", rounds=4)
    told = track(str(folder), tracking_uri=uri)
    assert (told.rounds, told.state, told.kept) == (4, "finished", ())

    with RunReader(folder / "record.sqlite") as reader:
        summary, metrics, rows = reader.run(), reader.metrics(1), reader.sites(1)
        rounds = reader.rounds(1)
    run = tracked(uri)
    assert run.info.run_name == "opm-seed0"
    assert (run.info.status, run.info.end_time) == ("FINISHED", int(1000 * summary.finished))
    for scope, where in (("global", "global"), ("msk", "site.msk"), ("external", "external")):
        split = "external" if scope == "external" else "val"
        expected = [
            (row.server_round, row.value)
            for row in metrics
            if (row.scope, row.split, row.name) == (scope, split, "auroc") and row.value is not None
        ]
        assert expected
        assert history(uri, f"{where}/{split}.auroc") == sorted(expected)
    undefined = [row.server_round for row in metrics if row.scope == "global" and row.value is None]
    assert undefined == [1]
    assert [step for step, _ in history(uri, "global/val.auprc")] == [2, 3, 4]
    lower = [(row.server_round, row.lower) for row in metrics if row.scope == "global" and row.name == "auroc"]
    assert history(uri, "global/val.auroc.lower") == sorted(pair for pair in lower if pair[0] < 4 or pair[1])[:4]
    epsilons = [(r.server_round, r.epsilon) for r in rows if (r.site, r.phase) == ("msk", "train") and r.epsilon]
    assert history(uri, "site.msk/train.epsilon") == epsilons
    assert history(uri, "round/seconds_total") == [(row.server_round, row.seconds_total) for row in rounds]

    assert run.data.params["local.learning_rate"] == "0.001"
    assert run.data.params["privacy"] == "None"
    tags = run.data.tags
    assert tags["popmi.state"] == "finished"
    assert tags["popmi.phantom"] == "true"
    assert tags["popmi.rounds"] == "4/4"
    assert tags["popmi.model_sha256"] == rounds[-1].model_sha256
    assert tags["popmi.sites"].split(",") == list(summary.sites)


def test_said_twice_it_tells_nothing_twice(folder: Path, uri: str, believable: ModuleType) -> None:
    believable.write_run(folder / "record.sqlite", rounds=2)
    first = track(str(folder), tracking_uri=uri)
    held = counted(uri)
    assert first.metrics == held > 100
    again = track(str(folder / "record.sqlite"), tracking_uri=uri)
    assert (again.mlflow_run, again.metrics) == (first.mlflow_run, 0)
    assert counted(uri) == held


def test_what_was_cut_off_is_told_the_next_time(
    folder: Path, uri: str, believable: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    believable.write_run(folder / "record.sqlite", rounds=3)
    monkeypatch.setattr("server.tracking.BATCH", 100)
    real, batches = MlflowClient.log_batch, []

    def dies(client: MlflowClient, run_id: str, metrics=(), params=(), tags=()) -> None:
        batches.append(len(metrics))
        if sum(count > 0 for count in batches) > 2:
            raise KeyboardInterrupt
        real(client, run_id, metrics=metrics, params=params, tags=tags)

    monkeypatch.setattr(MlflowClient, "log_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        track(str(folder), tracking_uri=uri)
    assert counted(uri) == 200
    monkeypatch.setattr(MlflowClient, "log_batch", real)
    told = track(str(folder), tracking_uri=uri)
    assert counted(uri) == 200 + told.metrics
    assert [step for step, _ in history(uri, "global/val.auroc")] == [1, 2, 3]


def test_a_run_is_followed_until_it_ends(folder: Path, uri: str, believable: ModuleType) -> None:
    looks: list[Told] = []
    with RunWriter(folder / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, rounds=3)
        believable.add_round(writer, 1)
        follower = threading.Thread(
            target=lambda: track(str(folder), tracking_uri=uri, follow=True, every=0.05, said=looks.append)
        )
        follower.start()
        _until(lambda: looks and looks[-1].rounds == 1)
        assert tracked(uri).info.status == "RUNNING"
        believable.add_round(writer, 2)
        _until(lambda: looks[-1].rounds == 2)
        # Made anew after a damaged checkpoint: another end, and other figures.
        writer.drop_rounds(1)
        believable.add_round(writer, 2, trouble={(2, "msk"): ("late", "slow")})
        believable.add_round(writer, 3, last=True)
        writer.finish_run("stopped", "by hand")
    follower.join(60)
    assert not follower.is_alive()
    assert looks[-1].state == "stopped"
    run = tracked(uri)
    assert (run.info.status, run.data.tags["popmi.reason"]) == ("KILLED", "by hand")
    found = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "global/val.auroc")
    newest = {item.step: item.value for item in sorted(found, key=lambda item: item.timestamp)}
    with RunReader(folder / "record.sqlite") as reader:
        assert newest == reader.series(1, "auroc", "val")["global"]
    # MLflow forgets nothing: of the round that was made anew it has both figures.
    assert sorted(item.step for item in found) == [1, 2, 2, 3]


def _until(true) -> None:
    wait = threading.Event()
    for _ in range(600):
        if true():
            return
        wait.wait(0.05)
    raise AssertionError("not in time")


def test_a_run_of_a_database_is_found_by_its_name(database: str, uri: str, believable: ModuleType) -> None:
    for name in ("first", "second"):
        believable.write_run(database, rounds=1, name=name)
    place = database if "://" in database else f"sqlite:///{database}"
    track(place, tracking_uri=uri, run="first", experiment="Trial")
    assert tracked(uri, "Trial").info.run_name == "first"


def test_names_that_mlflow_does_not_take_stay_apart(folder: Path, uri: str, believable: ModuleType) -> None:
    sites = ("a<b", "a>b", "äöü")
    with RunWriter(folder / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, sites=sites)
        believable.add_round(writer, 1, sites=sites)
        writer.finish_run("finished")
    track(str(folder), tracking_uri=uri)
    found = [key for key in tracked(uri).data.metrics if key.endswith("/val.auroc") and key.startswith("site.")]
    assert len(found) == 3


def test_a_parameter_that_mlflow_holds_otherwise_is_told(folder: Path, uri: str, believable: ModuleType) -> None:
    believable.write_run(folder / "record.sqlite", rounds=1)
    track(str(folder), tracking_uri=uri)
    with RunWriter(folder / "record.sqlite", heartbeat=0) as writer, writer._engine.begin() as connection:
        connection.exec_driver_sql('UPDATE runs SET config = \'{"strategy": "fedavg"}\'')
    assert track(str(folder), tracking_uri=uri).kept == ("strategy",)
    assert tracked(uri).data.params["strategy"] == "opm"


def test_an_address_that_mlflow_refuses_is_told_without_its_password(
    folder: Path, believable: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    believable.write_run(folder / "record.sqlite", rounds=1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match=r"MLflow at http://127.0.0.1:9 does not take the run: .*it goes on") as caught:
        track(str(folder), tracking_uri="http://me:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)
    with pytest.raises(RunError, match=r"MLflow at nonsense://me cannot be used|does not take the run"):
        track(str(folder), tracking_uri="nonsense://me")


def test_a_record_that_is_missing_is_told(tmp_path: Path, uri: str) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        track(str(tmp_path / "nothing"), tracking_uri=uri)


def test_without_mlflow_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"needs the package 'mlflow'.*Install popmi\[mlflow\]"):
        track(str(folder), tracking_uri="sqlite://")


def test_the_command_tells_what_it_did(folder: Path, uri: str, believable: ModuleType) -> None:
    believable.write_run(folder / "record.sqlite", rounds=2)
    done = CliRunner().invoke(commands, ["mlflow", str(folder), "--tracking-uri", uri])
    assert done.exit_code == 0, done.output
    assert "round 2: " in done.output
    assert "the run is finished" in done.output
    assert tracked(uri).info.run_id in done.output


def test_it_needs_neither_torch_nor_flower_and_calls_nobody() -> None:
    code = (
        "import os, sys, server.tracking as tracking; tracking._client('sqlite://');"
        "print(sorted({'torch', 'flwr'} & set(sys.modules)), os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[] true"
