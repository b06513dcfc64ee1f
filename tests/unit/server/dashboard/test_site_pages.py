"""The pages of sites: each is shown as it is, from what the keeper told and from the records."""

from __future__ import annotations

import csv
import html
import io
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from server.centre.board import write_board
from server.dashboard.sitebook import SiteInRun, SiteKept, judge_site
from server.store import RunWriter
from server.store.looks import SiteDigest

Visit = Callable[..., AbstractContextManager[TestClient]]
SCRIPT = "<script>alert(1)</script>"


def row_of(page: str, name: str) -> str:
    """Return a site's row of the table as text."""
    found = re.search(rf'<tr>\s*<th scope="row"><a href="/sites/{name}".*?</tr>', page, re.DOTALL)
    assert found is not None
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found.group()))


def test_every_site_is_shown_as_it_is(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        page = client.get("/sites").text
    assert "online" in row_of(page, "msk")
    assert "2.078 of 3.000" in row_of(page, "msk")
    assert "11 of 12" in row_of(page, "msk")
    assert "approved" in row_of(page, "msk")
    assert "+3.4 s set its clock" in row_of(page, "rosendahl")
    assert "not online" in row_of(page, "vidir_modern")
    assert "2 h ago" in row_of(page, "vidir_modern")
    assert "excluded" in row_of(page, "vidir_molemax")
    assert "new scanner, labels are being checked" in row_of(page, "vidir_molemax")
    assert "waiting for its enrolment" in row_of(page, "oslo")
    assert "revoked" in row_of(page, "genova")
    assert "good for 212 days" in page


def test_without_a_server_sites_come_from_the_records_and_the_page_says_so(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs) as client:
        page = client.get("/sites").text
        one = client.get("/sites/msk").text
    assert "these pages have no server behind them" in page
    assert "well when it last answered" in row_of(page, "msk")
    assert "oslo" not in page
    assert "these pages have no server behind them" in one


def test_a_silent_keeper_is_said_with_the_time_of_its_last_word(
    federation: Any, visiting: Visit, federation_source: ModuleType
) -> None:
    told = time.time() - 3600
    write_board(federation.centre, "sites", federation_source.sites(told))
    with federation.centre.begin() as connection:
        connection.execute(text("UPDATE board SET time = :told"), {"told": told})
    with visiting(federation.runs, federation.centre) as client:
        page = client.get("/sites").text
        rows = {row["site"]: row for row in csv.DictReader(io.StringIO(client.get("/sites.csv").text))}
        answer = client.get("/api/v1/sites").json()
        figures = client.get("/metrics").text
    assert "The keeper is silent." in page
    assert time.strftime("%Y-%m-%d %H:%M", time.gmtime(told)) in page
    # A site that was on line when the keeper last told is not on line for ever.
    assert "the keeper is silent, so nobody can say" in row_of(page, "msk")
    assert "60 min ago" in row_of(page, "msk")
    assert " now " not in row_of(page, "msk")
    assert rows["msk"]["state"] == "not known"
    assert rows["msk"]["online"] == ""
    assert float(rows["msk"]["told"]) == told
    assert next(item for item in answer["sites"] if item["name"] == "msk")["tone"] == "idle"
    assert "the keeper is silent" in answer["trouble"][0]
    assert "popmi_site_online{" not in figures


def test_a_keeper_that_told_nothing_yet_is_no_error(federation: Any, visiting: Visit) -> None:
    with federation.centre.begin() as connection:
        connection.execute(text("DELETE FROM board"))
    with visiting(federation.runs, federation.centre) as client:
        page = client.get("/sites").text
    assert "The keeper has told nothing yet." in page
    assert "well when it last answered" in row_of(page, "msk")


def test_a_centre_that_is_away_leaves_the_last_that_was_heard(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        assert "The database cannot be asked." not in client.get("/sites").text
        with federation.centre.begin() as connection:
            connection.execute(text("ALTER TABLE board RENAME TO elsewhere"))
        page = client.get("/sites").text
    assert "The database cannot be asked." in page
    assert "What is shown was told at" in page
    assert "excluded" in row_of(page, "vidir_molemax")


def test_a_site_waiting_for_approval_says_so_and_with_which_code(
    federation: Any, visiting: Visit, federation_source: ModuleType, believable: ModuleType
) -> None:
    home = federation.runs / "melanoma-3"
    home.mkdir()
    waiting = {(1, "vienna_dias"): ("failed", federation_source.APPROVAL)}
    with RunWriter(home / "record.sqlite", heartbeat=0) as writer:
        federation_source.begin_run(writer, "melanoma-3", 20)
        believable.add_round(writer, 1, trouble=waiting)
    with visiting(federation.runs, federation.centre) as client:
        page, one = client.get("/sites").text, client.get("/sites/vienna_dias").text
    assert "waiting for approval" in row_of(page, "vienna_dias")
    assert "not approved" in row_of(page, "vienna_dias")
    assert "popmi site approve" in one
    assert federation_source.CODE[:12] in one


def test_one_site_shows_its_data_with_hidden_counts(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        page = client.get("/sites/vidir_modern").text
    assert "7 unusable rows skipped" in page
    assert "Hidden: fewer than 5 images" in page
    assert page.count('class="hidden-cell"') > 0
    assert "580" in page


def test_one_site_shows_every_run_and_round(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        newest = client.get("/sites/rosendahl").text
        older = client.get("/sites/rosendahl", params={"run": "melanoma-1"}).text
        lines = list(csv.DictReader(io.StringIO(client.get("/sites/rosendahl/rounds.csv?run=melanoma-1").text)))
    assert "Its data in melanoma-2" in newest
    assert "Its data in melanoma-1" in older
    assert "no answer within 60 s" in older
    assert "Privacy budget spent (epsilon)" in older
    assert len(lines) == 15
    assert {row["site"] for row in lines} == {"rosendahl"}


def test_the_split_of_the_curves_can_be_chosen(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs) as client:
        page = client.get("/sites/msk", params={"split": "test"}).text
        assert client.get("/sites/msk", params={"split": "none of these"}).status_code == 200
    assert re.search(r'split=test"\s+aria-current="page"', page)


def test_an_invited_site_has_a_page_before_its_first_run(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre, "operator") as client:
        page = client.get("/sites/oslo").text
    assert "It has taken part in no run yet." in page
    assert "Confirm its enrolment" in page


def test_unknown_sites_and_runs_are_not_found(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        assert client.get("/sites/msk/rounds.csv?run=nothing").status_code == 404
        assert client.get("/sites/nobody").status_code == 404
        assert client.get("/sites/msk?run=nothing").status_code == 404


def test_only_an_operator_is_offered_acts_on_sites(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre, "viewer") as client:
        assert "/act/" not in client.get("/sites").text + client.get("/sites/msk").text
    with visiting(federation.runs, federation.centre, "operator") as client:
        assert "/act/invite" in client.get("/sites").text
        assert "/act/exclude?site=msk" in client.get("/sites/msk").text
        assert "/act/include?site=vidir_molemax" in client.get("/sites/vidir_molemax").text
        assert "/act/revoke" not in client.get("/sites/genova").text


def test_the_table_is_a_file_that_no_spreadsheet_runs(tmp_path: Path, visiting: Visit, believable: ModuleType) -> None:
    home = tmp_path / "runs" / "odd"
    home.mkdir(parents=True)
    with RunWriter(home / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, rounds=1, name="odd", sites=("=cmd()", SCRIPT))
        believable.add_round(writer, 1, sites=("=cmd()", SCRIPT))
    with visiting(tmp_path / "runs") as client:
        rows = list(csv.DictReader(io.StringIO(client.get("/sites.csv").text)))
        page = client.get("/sites").text
    assert {row["site"] for row in rows} == {"'=cmd()", SCRIPT}
    assert SCRIPT not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("name", ["a/b", SCRIPT, "x y", "50%", "..", "é", "rounds.csv", "a?b#c"])
def test_a_site_of_any_name_has_its_page(tmp_path: Path, visiting: Visit, believable: ModuleType, name: str) -> None:
    home = tmp_path / "runs" / "odd"
    home.mkdir(parents=True)
    with RunWriter(home / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, rounds=1, name="odd", sites=(name, "other"))
        believable.add_round(writer, 1, sites=(name, "other"))
    with visiting(tmp_path / "runs") as client:
        linked = [html.unescape(link) for link in re.findall(r'href="(/sites/[^"?]+)"', client.get("/sites").text)]
        (mine,) = [link for link in linked if link != "/sites/other"]
        # A browser takes a step up out of a path, so this one name cannot have a page; nothing breaks by it.
        expected = 404 if name == ".." else 200
        assert client.get(mine).status_code in (expected, 200)
        if expected == 200:
            assert f"<h1>{html.escape(name)}</h1>" in client.get(mine).text
            assert client.get(f"{mine}/rounds.csv?run=odd").text.count(",train,") == 1
            assert client.get(f"/api/v1{mine}").json()["name"] == name


def test_without_a_site_the_page_says_what_to_do(tmp_path: Path, visiting: Visit, federation: Any) -> None:
    (tmp_path / "none").mkdir()
    with federation.centre.begin() as connection:
        connection.execute(text("DELETE FROM board"))
    with visiting(tmp_path / "none") as client:
        assert "A site appears here by itself" in client.get("/sites").text
    with visiting(tmp_path / "none", federation.centre) as client:
        assert "Invite the first one" in client.get("/sites").text


def test_what_a_keeper_of_another_version_tells_breaks_nothing(federation: Any, visiting: Visit) -> None:
    write_board(federation.centre, "sites", [{"name": "msk"}, {"nameless": 1}, "text", None])
    write_board(federation.centre, "status", {"runs": "none", "certificate_days": None})
    write_board(federation.centre, "models", {"melanoma-2": {"x": 1, "3": "text"}, "melanoma-1": []})
    with visiting(federation.runs, federation.centre) as client:
        assert client.get("/sites").status_code == 200
        assert client.get("/models").status_code == 200


def test_code_that_a_site_has_not_answered_under_is_not_called_approved(
    federation: Any, visiting: Visit, federation_source: ModuleType
) -> None:
    status = federation_source.status()
    for run in status["runs"]:
        # As after a start with new code: the rounds on record ended before it.
        run["code_since"] = time.time() + 60
    write_board(federation.centre, "status", status)
    with visiting(federation.runs, federation.centre) as client:
        assert "not known yet" in row_of(client.get("/sites").text, "msk")
        assert "approved" not in row_of(client.get("/sites").text, "msk")
        for run in status["runs"]:
            del run["code_since"]
        write_board(federation.centre, "status", status)
        assert "not known yet" in row_of(client.get("/sites").text, "msk")


def digest(outcome: str = "ok", reason: str | None = None, rounds: int = 3) -> SiteInRun:
    return SiteInRun("r", "r", 1.0, True, SiteDigest("a", rounds, rounds, rounds, outcome, reason, None, None))


@pytest.mark.parametrize(
    ("kept", "run", "word", "tone"),
    [
        (SiteKept("enrolled", online=True), digest(), "online", "good"),
        (SiteKept("enrolled", online=True, note="cut off soon"), digest(), "online", "warn"),
        (SiteKept("enrolled", online=True), digest("quarantined", "NaN"), "quarantined", "bad"),
        (SiteKept("enrolled", online=True), digest("late", "slow"), "late", "warn"),
        (SiteKept("enrolled", online=False), digest(), "not online", "warn"),
        (SiteKept("enrolled"), digest(), "not known", "idle"),
        (SiteKept("enrolled", told=5.0), digest(), "not known", "idle"),
        (SiteKept("enrolled", told=5.0), digest("late", "slow"), "late", "warn"),
        (SiteKept("enrolled", online=True, excluded="why"), digest(), "excluded", "warn"),
        (SiteKept("revoked", online=True), digest(), "revoked", "idle"),
        (None, digest(rounds=0), "has not answered yet", "idle"),
        (None, digest(), "well when it last answered", "good"),
    ],
)
def test_a_site_is_never_shown_better_than_the_worst_that_is_known(
    kept: SiteKept | None, run: SiteInRun, word: str, tone: str
) -> None:
    assert judge_site(kept, [run])[:2] == (word, tone)


def test_what_the_server_needs_a_look_at_stands_on_top(
    federation: Any, visiting: Visit, federation_source: Any
) -> None:
    status = federation_source.status() | {"trouble": ["the disk has 0.4 GB left"], "certificate_days": 12}
    write_board(federation.centre, "status", status)
    with visiting(federation.runs, federation.centre) as client:
        page = client.get("/sites").text
    assert "the disk has 0.4 GB left" in page
    assert "renew it: start popmi server up anew" in page
