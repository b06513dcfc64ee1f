"""The pages say what the record says, to this machine only, and break on nothing they are given."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.testclient import TestClient

from popmi_core.errors import ConfigError
from server.dashboard.access.binding import Binding, check
from server.dashboard.app import STATIC, create_app
from server.dashboard.serving import serve
from server.store import RunWriter

LOCAL = "http://127.0.0.1:8080"
SCRIPT = "<script>alert(1)</script>"


@contextmanager
def browsing(runs: str | Path) -> Iterator[TestClient]:
    with TestClient(create_app(runs), base_url=LOCAL, raise_server_exceptions=True) as client:
        yield client


def test_the_list_names_every_run_with_state_and_progress(written: Callable[..., Path]) -> None:
    written("first", rounds=2)
    with browsing(written("second", rounds=3, phantom=False, data_name="dermoscopy")) as client:
        page = client.get("/").text
    assert page.index("/runs/second") < page.index("/runs/first")
    assert "3 of 3 rounds" in page
    assert "finished" in page


def test_an_unreadable_record_is_listed_with_its_reason_and_breaks_nothing(written: Callable[..., Path]) -> None:
    runs = written("good", rounds=1)
    (runs / "bad").mkdir()
    (runs / "bad" / "record.sqlite").write_bytes(b"garbage " * 1000)
    (runs / "empty").mkdir()
    (runs / "empty" / "record.sqlite").touch()
    with browsing(runs) as client:
        page = client.get("/").text
        assert "file is not a database" in page
        assert "good" in page
        answer = client.get("/runs/bad")
        assert answer.status_code == 503
        assert "file is not a database" in answer.text
        assert client.get("/runs/bad/live").status_code == 200
        assert client.get("/api/v1/runs/bad").status_code == 503
        listed = {item["key"]: item for item in client.get("/api/v1/runs").json()}
    assert "unreadable" in listed["bad"]
    assert "unreadable" in listed["empty"]
    assert listed["good"]["state"]["word"] == "finished"


def test_a_locked_record_is_listed_as_locked(written: Callable[..., Path]) -> None:
    runs = written("held", rounds=1)
    with sqlite3.connect(runs / "held" / "record.sqlite") as holder, browsing(runs) as client:
        holder.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in client.get("/").text
        holder.rollback()


def test_no_runs_yet_says_how_to_begin(tmp_path: Path) -> None:
    with browsing(tmp_path / "nothing") as client:
        assert "No runs yet in" in client.get("/").text


def test_new_folders_appear_and_removed_ones_go(written: Callable[..., Path]) -> None:
    with browsing(written("one", rounds=1)) as client:
        assert client.get("/runs/two").status_code == 404
        runs = written("two", rounds=1)
        assert client.get("/runs/two").status_code == 200
        (runs / "two" / "record.sqlite").unlink()
        assert client.get("/runs/two").status_code == 404


def test_one_run_folder_is_a_list_of_one(written: Callable[..., Path]) -> None:
    written("other", rounds=1)
    with browsing(written("mine", rounds=1) / "mine") as client:
        assert [item["key"] for item in client.get("/api/v1/runs").json()] == ["mine"]
        assert client.get("/runs/other").status_code == 404


def test_many_runs_of_one_database_are_listed_by_number(tmp_path: Path, believable: ModuleType) -> None:
    for name in ("a", "b"):
        believable.write_run(tmp_path / "all.sqlite", rounds=1, name=name)
    with browsing(f"sqlite:///{tmp_path / 'all.sqlite'}") as client:
        assert [(item["key"], item["name"]) for item in client.get("/api/v1/runs").json()] == [("1", "a"), ("2", "b")]
        assert client.get("/runs/2").status_code == 200
        assert client.get("/runs/3").status_code == 404


def test_a_run_page_shows_curves_worst_site_faults_matching_and_budget(written: Callable[..., Path]) -> None:
    with browsing(written(rounds=4)) as client:
        page = client.get("/runs/opm-seed0").text
        assert "undefined" in client.get("/runs/opm-seed0/curves/auprc").text
    for said in (
        "Phantom data.",
        "Balanced accuracy",
        "Rotation consistency",
        "Privacy budget spent (epsilon)",
        "worst site <strong>vienna_dias</strong>",
        "no answer within 60 s",
        "out of memory on the device",
        "blocks.1.mlp",
        "as is",
        "MB",
        "(validation AUROC",
    ):
        assert said in page
    # every curve ships its table
    assert page.count('data-chart="') == page.count('id="table-') == 12


def test_another_split_shows_its_own_curves_and_the_external_set(written: Callable[..., Path]) -> None:
    with browsing(written(rounds=2)) as client:
        charts = client.get("/runs/opm-seed0/series?split=test").json()["charts"]
        assert "external" in [line["scope"] for line in charts["auroc"]["lines"]]
        page = client.get("/runs/opm-seed0?split=nonsense").text
    tabs = page.split('class="tabs"')[1].split("</nav>")[0]
    assert tabs.count('aria-current="page"') == 1


def test_a_run_on_real_images_carries_no_phantom_banner(written: Callable[..., Path]) -> None:
    with browsing(written(rounds=1, phantom=False, data_name="dermoscopy")) as client:
        assert "Phantom data." not in client.get("/runs/opm-seed0").text


def test_a_run_without_a_finished_round_has_a_page(tmp_path: Path, believable: ModuleType) -> None:
    home = tmp_path / "young"
    home.mkdir()
    with RunWriter(home / "record.sqlite", heartbeat=0) as writer, browsing(tmp_path) as client:
        believable.begin(writer)
        assert "waiting" in client.get("/").text
        writer.start_round(1)
        page = client.get("/runs/young").text
    assert "The first curve begins when a round ends." in page
    assert "going on" in page


def test_names_that_are_scripts_are_only_text(tmp_path: Path, believable: ModuleType) -> None:
    home = tmp_path / "odd<b>"
    home.mkdir()
    with RunWriter(home / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, name=SCRIPT, sites=(SCRIPT, "b"), classes=(SCRIPT,), data_name=SCRIPT)
        trouble = {(1, "b"): ("failed", f"{SCRIPT}'\"")}
        believable.add_round(writer, 1, sites=(SCRIPT, "b"), trouble=trouble)
        writer.record_match(1, SCRIPT, gains={SCRIPT: 0.1}, note=SCRIPT)
        writer.event(SCRIPT)
        writer.finish_run("failed", SCRIPT)
    with browsing(tmp_path) as client:
        pages = [client.get(path).text for path in ("/", "/runs/odd%3Cb%3E", "/runs/odd%3Cb%3E/report.html")]
    for page in pages:
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page


@pytest.mark.parametrize(
    "path",
    [
        "/runs/%2e%2e",
        "/runs/..%2f..%2fetc%2fpasswd",
        "/runs/%2fetc",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/runs/opm-seed0/..%2f..%2fsecret.csv",
        "/runs/opm-seed0/secret.csv",
        "/api/v1/runs/..%2fsecret",
        "/api/v1/runs/opm-seed0/secret",
        "/runs/nothing",
        "/nothing",
    ],
)
def test_paths_that_lead_out_lead_nowhere(written: Callable[..., Path], path: str) -> None:
    runs = written(rounds=1)
    (runs.parent / "record.sqlite").write_bytes((runs / "opm-seed0" / "record.sqlite").read_bytes())
    with browsing(runs) as client:
        assert client.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/", "/runs/opm-seed0", "/static/page.css", "/api/v1/runs", "/nothing", "/healthz"])
def test_every_answer_is_hardened(written: Callable[..., Path], path: str) -> None:
    with browsing(written(rounds=1)) as client:
        headers = client.get(path).headers
    assert "unsafe" not in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert "set-cookie" not in headers


def test_pages_obey_their_own_policy(written: Callable[..., Path]) -> None:
    """No inline script, style or handler, and nothing from elsewhere."""
    with browsing(written(rounds=2)) as client:
        pages = [client.get(path).text for path in ("/", "/runs/opm-seed0", "/nothing")]
    for page in pages:
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! src=)|javascript:", page)
        assert not re.search(r"(src|href|action)=\"(https?:)?//", page)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[::2]:8080", ""])
def test_a_foreign_host_name_is_refused(written: Callable[..., Path], host: str) -> None:
    with browsing(written(rounds=1)) as client:
        assert client.get("/", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080", "LOCALHOST"])
def test_this_machine_may_look_by_any_of_its_names(written: Callable[..., Path], host: str) -> None:
    with browsing(written(rounds=1)) as client:
        assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed_through_the_pages(written: Callable[..., Path], method: str) -> None:
    with browsing(written(rounds=1)) as client:
        assert client.request(method, "/runs/opm-seed0").status_code == 405


def test_tables_come_as_csv_that_no_spreadsheet_runs(tmp_path: Path, believable: ModuleType) -> None:
    home = tmp_path / "a b"
    home.mkdir()
    with RunWriter(home / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, sites=("=cmd()", "b"))
        believable.add_round(writer, 1, sites=("=cmd()", "b"))
        writer.finish_run("finished")
    with browsing(tmp_path) as client:
        for table in ("metrics", "sites", "rounds", "matches", "events"):
            answer = client.get(f"/runs/a%20b/{table}.csv")
            assert answer.headers["content-type"] == "text/csv; charset=utf-8"
            assert "attachment" in answer.headers["content-disposition"]
        rows = list(csv.DictReader(io.StringIO(client.get("/runs/a%20b/metrics.csv").text)))
    assert {row["scope"] for row in rows} == {"global", "'=cmd()", "b"}
    undefined = [row for row in rows if row["name"] == "auprc" and row["scope"] == "b"]
    assert undefined[0]["value"] == ""


def test_the_api_gives_undefined_as_null(written: Callable[..., Path]) -> None:
    with browsing(written(rounds=1)) as client:
        rows = client.get("/api/v1/runs/opm-seed0/metrics").json()
        assert client.get("/api/v1/runs/opm-seed0").json()["rounds_done"] == 1
        assert "/api/v1/runs/{key}/metrics" in client.get("/api/v1/openapi.json").json()["paths"]
        assert client.get("/healthz").json() == {"status": "ok"}
    assert next(row for row in rows if row["name"] == "auprc")["value"] is None


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.4", "::", "example.org", ""])
def test_listening_where_others_could_look_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"no loopback address, expected 127\.0\.0\.1"):
        check(Binding(host=host), login=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_listening_on_this_machine_is_fine(host: str) -> None:
    check(Binding(host=host), login=False)


def test_a_taken_port_is_an_error_a_person_can_act_on(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"cannot listen on .*Choose another with --port"):
            serve(tmp_path, Binding(port=taken.getsockname()[1]))


def test_a_file_is_no_folder_of_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file, expected a folder of runs"):
        create_app(tmp_path / "file")


def test_assets_are_the_ones_whose_licences_are_written_down() -> None:
    text = (STATIC / "LICENSES.md").read_text(encoding="utf-8")
    for name, digest in re.findall(r"^\| `([\w.]+)`.*`([0-9a-f]{64})` \|$", text, re.MULTILINE):
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest
    foreign = {item.name for item in STATIC.glob("*.min.*")}
    assert foreign == set(re.findall(r"^\| `([\w.]+)`", text, re.MULTILINE))
    assert all((STATIC / name).exists() for name in ("htmx.LICENSE.txt", "uplot.LICENSE.txt"))
