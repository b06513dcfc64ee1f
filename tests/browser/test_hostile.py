"""Names, addresses and figures that somebody made to do harm, on every page."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import believable_federation
import pytest

from server.centre import open_centre
from server.centre.board import write_board
from server.store import RunWriter

pytestmark = pytest.mark.browser
SCRIPT = "<img src=x onerror=alert(1)><script>alert(2)</script>"
QUOTED = "\"' onmouseover='alert(3)' {{7*7}} ${7*7} javascript:alert(4)"
BAD = (SCRIPT, QUOTED)


def written(federation: Any) -> None:
    """Write a run, sites, models and audit lines whose every name is a script."""
    believable = believable_federation.believable
    home = federation.runs / "hostile"
    home.mkdir()
    with RunWriter(home / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, name=SCRIPT, sites=BAD, classes=BAD, data_name=SCRIPT, config={SCRIPT: QUOTED})
        for number in (1, 2):
            trouble = {(number, SCRIPT): ("failed", SCRIPT)}
            believable.add_round(writer, number, sites=BAD, trouble=trouble, notes={SCRIPT: QUOTED})
        writer.event(SCRIPT, level="warning", server_round=1)
    engine = open_centre(federation.centre)
    site = believable_federation.sites(time.time())[0]
    write_board(engine, "sites", [{**site, "name": name, "note": SCRIPT, "excluded": SCRIPT} for name in BAD])
    write_board(engine, "status", {**believable_federation.status(), "waiting": [SCRIPT], "trouble": [SCRIPT]})
    engine.dispose()


@pytest.fixture
def hostile(federation: Any) -> Any:
    written(federation)
    return federation


def test_a_script_in_any_name_is_text_on_every_page(hostile: Any) -> None:
    page = hostile.open("/", role="admin", refusals=(400, 404))
    seen = {}
    for where in (
        "/", "/runs/hostile", "/compare?run=hostile&run=melanoma-2", "/sites", "/models", "/audit", "/act",
        "/act/exclude", f"/audit?event={SCRIPT}&who={QUOTED}", f"/models?run={SCRIPT}", f"/login?next={SCRIPT}",
        f"/sites/{SCRIPT}",
    ):  # fmt: skip
        page.goto(hostile.pages.url + where)
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        assert page.locator("img[src=x]").count() == 0, where
        # An attribute that was broken open, or a script of the page's own.
        assert page.locator("[onmouseover], [onerror], script:not([src])").count() == 0, where
        assert page.locator("a[href^='javascript:']").count() == 0, where
        seen[where] = "onerror=alert(1)" in page.inner_text("body")
    # It is there, as text; `browse` fails the test for any dialog.
    assert seen["/"]
    assert seen["/runs/hostile"]
    assert seen["/sites"]


def raw(federation: Any, path: str, method: str = "GET") -> int:
    """Ask for a path as it is written: a browser would tidy it up first."""
    connection = HTTPConnection("127.0.0.1", federation.pages.port, timeout=10)
    cookies = "; ".join(f"{item['name']}={item['value']}" for item in federation.cookies["admin"]["cookies"])
    connection.request(method, path, headers={"Cookie": cookies})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


PATHS = (
    "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/%2e%2e%2f%2e%2e%2fapp.py",
    "/static//etc/passwd", "/static/..\\app.py", "/runs/..", "/runs/%2e%2e", "/runs/..%2f..%2fcentre.sqlite",
    "/runs/melanoma-2%2f..%2f..%2fcentre.sqlite/report.html", "/models/..%2f../1", "/models/%2e%2e/1",
    "/models/melanoma-2/12/model.../../../../centre.sqlite", "/models/melanoma-2/12/model.%2e%2e%2fplan.json",
    "/models/melanoma-2/12/model.safetensors%00.md", "/act/kits/..%2f..%2fcentre.sqlite.zip",
    "/api/v1/models/..%2f..%2f/1", "/api/v1/runs/..%2f..%2fcentre.sqlite/rounds", "/runs/melanoma-2%00/report.html",
)  # fmt: skip


def test_no_address_leads_out_of_the_runs(federation: Any) -> None:
    federation.open("/", role="admin")
    found = {path: raw(federation, path) for path in PATHS}
    assert {path: status for path, status in found.items() if status not in (400, 404, 422)} == {}


def test_a_model_file_that_is_a_link_elsewhere_is_not_handed_out(federation: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not a model")
    card = federation.runs / "melanoma-2" / "models" / "round-003.md"
    card.unlink()
    card.symlink_to(secret)
    federation.open("/", role="admin")
    assert raw(federation, "/models/melanoma-2/3/model.md") == 404


def test_many_silent_connections_leave_the_pages_to_others(federation: Any) -> None:
    page = federation.open("/")
    silent = [HTTPConnection("127.0.0.1", federation.pages.port) for _ in range(200)]
    for connection in silent:
        connection.connect()
    begun = time.monotonic()
    page.goto(f"{federation.pages.url}/sites")
    assert page.get_by_text("vidir_molemax").first.is_visible()
    # A page takes tenths of a second; a door that silence can shut would wait for the 20 s of a header.
    assert time.monotonic() - begun < 10
    for connection in silent:
        connection.close()


def test_a_body_that_is_too_large_is_refused_before_it_is_read(federation: Any) -> None:
    request = urllib.request.Request(f"{federation.pages.url}/login", data=b"name=" + b"a" * 3_000_000, method="POST")
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)) as refused:
        urllib.request.urlopen(request, timeout=20)
    if isinstance(refused.value, urllib.error.HTTPError):
        assert refused.value.code == 413
    assert federation.open("/sites").get_by_text("msk").first.is_visible()
