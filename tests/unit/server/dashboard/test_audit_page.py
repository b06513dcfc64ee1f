"""The page of the audit log: filters, pages, files, and a chain that is never shown whole when it is not."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from popmi_core.audit import AuditLog
from server.centre import open_centre
from server.centre.board import write_board
from server.centre.trail import mirror

Visit = Callable[..., AbstractContextManager[TestClient]]


def numbers(page: str) -> list[int]:
    """Return the numbers of the lines on a page."""
    return [int(part.partition('"')[0]) for part in page.split('id="line-')[1:]]


def test_the_newest_line_comes_first_and_the_chain_is_whole(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        page = client.get("/audit").text
    assert numbers(page) == list(range(21, 0, -1))
    assert "whole, 21 lines" in page
    assert "out of memory on the device" in page


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"event": "site.late"}, {15}),
        ({"who": "server app"}, {15, 16, 21}),
        ({"run": "melanoma-1"}, {12}),
        ({"site": "msk"}, {2, 7, 16}),
        ({"site": "msk", "event": "site.invited"}, {2}),
        ({"text": "STOLEN"}, {13}),
        ({"text": "100%"}, set()),
    ],
)
def test_filters_find_what_they_say(federation: Any, visiting: Visit, asked: dict[str, str], found: set[int]) -> None:
    with visiting(federation.runs, federation.centre) as client:
        assert set(numbers(client.get("/audit", params=asked).text)) == found


def test_days_are_whole_and_in_utc(federation: Any, visiting: Visit) -> None:
    day = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 5 * 24 * 3600))
    with visiting(federation.runs, federation.centre) as client:
        assert numbers(client.get("/audit", params={"since": day, "until": day}).text) == [13]
        wrong = client.get("/audit", params={"since": "yesterday"})
    assert wrong.status_code == 400
    assert "A day is written like" in wrong.text
    assert 'value="yesterday"' in wrong.text


def test_what_nothing_fits_is_said(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        assert "No line fits these filters." in client.get("/audit", params={"run": "nothing"}).text


def test_a_long_log_is_shown_in_pages(tmp_path: Path, visiting: Visit) -> None:
    centre = open_centre(tmp_path / "centre.sqlite")
    log = AuditLog(tmp_path / "audit.jsonl")
    with mock.patch("popmi_core.audit.os.fsync"):
        for number in range(250):
            log.append("site.seen", site="msk" if number % 2 else "oslo")
    mirror(centre, list(enumerate(log.path.read_text().splitlines(), start=1)))
    with visiting(tmp_path, centre) as client:
        first = client.get("/audit").text
        second = client.get("/audit?before=151").text
        last = client.get("/audit?before=51").text
        filtered = client.get("/audit?site=msk").text
    assert numbers(first) == list(range(250, 150, -1))
    assert "before=151" in first
    assert "250 lines found" in first
    assert numbers(second) == list(range(150, 50, -1))
    assert "Older" not in last
    assert "125 lines found" in filtered
    assert "site=msk&amp;before=" in filtered
    centre.dispose()


def test_a_changed_line_breaks_the_chain_for_everybody_to_see(federation: Any, visiting: Visit) -> None:
    with federation.centre.begin() as connection:
        connection.execute(
            text("UPDATE audit_lines SET line = replace(line, 'laptop stolen', 'on request') WHERE number = 13")
        )
    with visiting(federation.runs, federation.centre) as client:
        page = client.get("/audit").text
        told = client.get("/api/v1/audit").json()["chain"]
    assert "The chain is broken." in page
    assert "line 13" in page
    assert "whole," not in page
    assert told["whole"] is False
    assert "line 13" in told["trouble"]


def test_a_line_taken_out_breaks_the_chain(federation: Any, visiting: Visit) -> None:
    with federation.centre.begin() as connection:
        connection.execute(text("DELETE FROM audit_lines WHERE number = 13"))
    with visiting(federation.runs, federation.centre) as client:
        assert "line 13" in client.get("/audit").text


def test_what_was_found_is_a_file(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        rows = list(csv.DictReader(io.StringIO(client.get("/audit.csv?site=msk").text)))
        lines = client.get("/audit.jsonl").text.splitlines()
        assert client.get("/audit.xml").status_code == 404
        assert client.get("/audit.csv?since=never").status_code == 404
    assert [row["number"] for row in rows] == ["2", "7", "16"]
    assert rows[0]["time"].endswith("+00:00")
    assert json.loads(rows[2]["details"])["round"] == 4
    assert [json.loads(line)["number"] for line in lines] == list(range(1, 22))


def test_the_exported_lines_are_the_logs_own_and_verify(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        whole = client.get("/audit.jsonl").text
    assert whole == (federation.runs.parent / "audit.jsonl").read_text()


def test_without_a_server_the_page_says_where_the_log_is(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs) as client:
        assert "No audit log here." in client.get("/audit").text
        assert client.get("/audit.csv").status_code == 404
        assert client.get("/api/v1/audit").status_code == 404


def test_an_empty_log_says_when_it_fills(tmp_path: Path, visiting: Visit) -> None:
    centre = open_centre(tmp_path / "centre.sqlite")
    with visiting(tmp_path, centre) as client:
        assert "The log is empty." in client.get("/audit").text
    centre.dispose()


def test_a_centre_that_is_away_is_told(federation: Any, visiting: Visit) -> None:
    with federation.centre.begin() as connection:
        connection.execute(text("ALTER TABLE audit_lines RENAME TO elsewhere"))
    with visiting(federation.runs, federation.centre) as client:
        answer = client.get("/audit")
        part = client.get("/audit", headers={"HX-Request": "true"})
        assert client.get("/api/v1/audit").status_code == 503
    assert answer.status_code == 503
    assert "cannot read the audit log" in answer.text
    assert part.status_code == 200
    assert "cannot read the audit log" in part.text


def test_a_script_in_a_line_is_shown_as_text(tmp_path: Path, visiting: Visit) -> None:
    centre = open_centre(tmp_path / "centre.sqlite")
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("<script>alert(1)</script>", site="<img src=x onerror=alert(2)>", reason="<b>")
    mirror(centre, [(1, log.path.read_text().strip())])
    with visiting(tmp_path, centre) as client:
        page = client.get("/audit", params={"text": "<b>"}).text
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert 'value="&lt;b&gt;"' in page
    centre.dispose()


def test_a_log_that_was_cut_off_is_told_though_its_copy_is_whole(federation: Any, visiting: Visit) -> None:
    write_board(federation.centre, "audit", {"lines": 21, "trouble": "line 9 was written anew"})
    with visiting(federation.runs, federation.centre) as client:
        page = client.get("/audit").text
    assert "The log itself was cut off or changed." in page
    assert "line 9 was written anew" in page


def test_a_silent_keeper_is_told_beside_the_log(federation: Any, visiting: Visit) -> None:
    with federation.centre.begin() as connection:
        connection.execute(text("UPDATE board SET time = time - 7200"))
    with visiting(federation.runs, federation.centre) as client:
        assert "The keeper is silent." in client.get("/audit").text
