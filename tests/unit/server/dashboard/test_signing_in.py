"""Signing in and out, and what is seen of the pages without."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from signing_in import LOCAL, PASSWORD, app_of, post, secret_of, sign_in
from signing_in import browser as opened
from sqlalchemy import update
from sqlalchemy.engine import Engine

from server.centre import Attempt, accounts, onetime, open_centre, passwords, throttle, tokens
from server.centre.opening import writing
from server.centre.people import Doer
from server.centre.sessions import SessionLimits
from server.dashboard.access.binding import Binding

BY = Doer("root", "terminal")
PAGES = (
    "/", "/live", "/changes", "/runs/x", "/runs/x/live", "/runs/x/changes", "/runs/x/report.html", "/runs/x/sites.csv",
    "/sites", "/models", "/audit", "/account", "/accounts", "/accounts/anna", "/api/v1/runs", "/api/v1/runs/x",
    "/api/v1/runs/x/sites", "/api/v1/openapi.json", "/api/v1/sites", "/nothing",
)  # fmt: skip


def every_route(routes: Iterable[Any]) -> Iterator[Any]:
    for route in routes:
        # FastAPI keeps a router that was included as one route of many.
        inner = getattr(route, "original_router", None)
        yield from [route] if inner is None else every_route(inner.routes)


def test_every_route_of_the_application_is_closed_to_strangers(app: FastAPI, browser: TestClient) -> None:
    """Not from a list: whatever route a page comes to have is asked here as well."""
    opens = {"/healthz", "/login", "/first", "/password", "/metrics"}
    asked = 0
    for route in every_route(app.routes):
        path = re.sub(r"\{number(:int)?\}", "1", getattr(route, "path", ""))
        path = re.sub(r"\{[^}]*\}", "x", path)
        for method in sorted((getattr(route, "methods", None) or set()) - {"HEAD", "OPTIONS"}):
            if path in opens:
                continue
            answer = browser.request(method, path)
            asked += 1
            assert answer.status_code in (303, 401), (method, path, answer.status_code)
            assert answer.headers.get("location", "/login?").startswith("/login?"), (method, path)
    assert asked > 20


@pytest.mark.parametrize("path", PAGES)
def test_a_stranger_is_led_to_the_page_to_sign_in_and_sees_nothing(browser: TestClient, path: str) -> None:
    answer = browser.get(path)
    if path.startswith("/api/"):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert "detail" in answer.json()
    else:
        assert answer.status_code == 303
        assert answer.headers["location"] == f"/login?next={path.replace('/', '%2F')}"
        assert answer.text == ""


def test_a_part_of_a_page_has_the_whole_one_loaded_anew(browser: TestClient) -> None:
    answer = browser.get("/live", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-refresh"]) == (401, "true")
    assert browser.get("/changes", headers={"Accept": "text/event-stream"}).status_code == 401


def test_what_is_open_to_everybody_tells_nothing_of_the_federation(browser: TestClient, runs: Path) -> None:
    assert browser.get("/healthz").json() == {"status": "ok"}
    assert browser.get("/static/page.css").status_code == 200
    page = browser.get("/login").text
    assert str(runs) not in page
    assert 'href="/sites"' not in page
    assert "anna" not in page


def test_who_signs_in_goes_on_where_they_wanted_to(browser: TestClient) -> None:
    answer = sign_in(browser, "vera", next="/runs/x?split=test")
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/x?split=test")
    page = browser.get("/").text
    assert "vera" in page
    assert "Sign out" in page
    assert browser.get("/login?next=/models").headers["location"] == "/models"


@pytest.mark.parametrize(
    "elsewhere",
    ["https://evil.example", "//evil.example", "///evil.example", "/\\evil.example",
     "javascript:alert(1)", "evil", "", "/\t/evil.example",
     "/login", "/a\r\nSet-Cookie: x=y"],
)  # fmt: skip
def test_nobody_is_led_elsewhere_after_signing_in(browser: TestClient, elsewhere: str) -> None:
    answer = sign_in(browser, "vera", next=elsewhere)
    assert answer.headers["location"] == "/"
    assert "x=y" not in str(answer.headers)


def test_the_sessions_cookie_is_for_no_script_and_no_other_site(browser: TestClient) -> None:
    cookie = sign_in(browser, "vera").headers.get_list("set-cookie")[0]
    assert re.match(r"popmi-8080=[\w-]{43};", cookie)
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Domain" not in cookie


def test_under_tls_the_cookie_is_sent_by_tls_only_and_no_other_name_sets_it(centre: Engine, runs: Path) -> None:
    app = app_of(centre, runs, binding=Binding(behind_proxy="https://pages.example", proxy_addresses=("127.0.0.1",)))
    with TestClient(app, base_url="https://pages.example", follow_redirects=False, client=("127.0.0.1", 1)) as client:
        answer = sign_in(client, "vera")
        cookie = answer.headers.get_list("set-cookie")[0]
        assert cookie.startswith("__Host-popmi=")
        assert {"Secure", "HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("name", "password"), [("vera", "wrong wrong wrong"), ("nobody", PASSWORD), ("", ""), ("vera", "")]
)
def test_a_wrong_name_and_a_wrong_password_are_told_alike(browser: TestClient, name: str, password: str) -> None:
    answer = sign_in(browser, name, password)
    assert answer.status_code == 401
    assert "Name and password do not fit together" in answer.text
    assert browser.get("/").status_code == 303
    # Only what was typed differs.
    told = [re.sub(r'value="[^"]*"', "", sign_in(browser, who, "wrong wrong wrong").text) for who in ("vera", "nobody")]
    assert told[0] == told[1]


def test_a_script_as_a_name_is_only_text(browser: TestClient) -> None:
    page = sign_in(browser, '"><script>alert(1)</script>', "wrong wrong wrong").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_a_disabled_account_is_told_like_a_wrong_password(browser: TestClient, centre: Engine) -> None:
    accounts.disable(centre, "vera", BY)
    answer = sign_in(browser, "vera")
    assert answer.status_code == 401
    assert "Name and password do not fit together" in answer.text


def test_brute_force_is_told_to_wait(browser: TestClient, centre: Engine) -> None:
    answers = [sign_in(browser, "vera", "wrong wrong wrong") for _ in range(throttle.FREE_BY_NAME)]
    assert {answer.status_code for answer in answers} == {401}
    answer = sign_in(browser, "vera")  # the right one, too early
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "Too many tries" in answer.text
    with writing(centre) as session:
        session.execute(update(Attempt).values(time=time.time() - 3600))
    assert sign_in(browser, "vera").status_code == 303
    # Its owner was there: the tries before count no more.
    post(browser, "/logout")
    assert sign_in(browser, "vera", "wrong wrong wrong").status_code == 401
    assert sign_in(browser, "vera").status_code == 303


def test_in_a_crowd_one_is_told_to_try_again_and_the_try_does_not_count(
    browser: TestClient, centre: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "_PLACES", threading.BoundedSemaphore(1))
    with passwords._turn():
        for _ in range(throttle.FREE_BY_NAME + 1):
            answer = sign_in(browser, "vera")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    assert sign_in(browser, "vera").status_code == 303


def test_a_new_session_begins_with_every_sign_in(browser: TestClient) -> None:
    first = sign_in(browser, "vera").cookies["popmi-8080"]
    post(browser, "/logout")
    assert sign_in(browser, "vera").cookies["popmi-8080"] != first
    # A session that somebody planted before is no session after.
    browser.cookies.clear()
    browser.cookies.set("popmi-8080", "planted", domain="127.0.0.1")
    assert sign_in(browser, "vera").cookies["popmi-8080"] != "planted"


def test_signing_in_over_a_session_ends_it(browser: TestClient, app: FastAPI) -> None:
    before = sign_in(browser, "vera").cookies["popmi-8080"]
    page = browser.get("/account").text
    answer = browser.post("/login", data={"name": "anna", "password": PASSWORD, "csrf": secret_of(page)})
    assert answer.status_code == 303
    with opened(app) as other:
        other.cookies.set("popmi-8080", before, domain="127.0.0.1")
        assert other.get("/").status_code == 303


def test_signing_out_ends_the_session_for_whoever_copied_the_cookie(browser: TestClient, app: FastAPI) -> None:
    cookie = sign_in(browser, "vera").cookies["popmi-8080"]
    with opened(app) as thief:
        thief.cookies.set("popmi-8080", cookie, domain="127.0.0.1")
        assert thief.get("/").status_code == 200
        answer = post(browser, "/logout")
        assert answer.headers["location"] == "/login"
        assert 'popmi-8080=""' in answer.headers["set-cookie"]
        assert thief.get("/").status_code == 303
    assert browser.get("/").status_code == 303


def test_a_session_is_over_after_its_time(centre: Engine, runs: Path) -> None:
    for limits in (SessionLimits(idle_seconds=0.05), SessionLimits(whole_seconds=0.05)):
        with opened(app_of(centre, runs, limits=limits)) as client:
            cookie = sign_in(client, "vera").cookies.get("popmi-8080", "")
            time.sleep(0.1)
            client.cookies.set("popmi-8080", cookie, domain="127.0.0.1")
            assert client.get("/").status_code == 303


def test_two_processes_of_the_pages_share_their_sessions(database: str, centre: Engine, runs: Path) -> None:
    other = open_centre(database)
    with opened(app_of(centre, runs)) as here, opened(app_of(other, runs)) as there:
        cookie = sign_in(here, "anna").cookies["popmi-8080"]
        there.cookies.set("popmi-8080", cookie, domain="127.0.0.1")
        assert there.get("/accounts").status_code == 200
        post(there, "/logout")
        assert here.get("/").status_code == 303
    other.dispose()


def test_a_token_lets_a_program_in_and_no_browser(browser: TestClient, centre: Engine) -> None:
    _, secret = tokens.make(centre, accounts.find(centre, "otto"), "ci", "viewer", 1, BY)
    bearer = {"Authorization": f"Bearer {secret}"}
    answer = browser.get("/api/v1/runs", headers=bearer)
    assert (answer.status_code, answer.json()) == (200, [])
    assert "set-cookie" not in answer.headers
    assert browser.get("/metrics", headers=bearer).status_code == 200
    for path in ("/", "/account", "/runs/x/sites.csv"):
        assert browser.get(path, headers=bearer).status_code == 303
    for wrong in ("popmi_wrong", "", secret[:-1], "a b", "\x80"):
        answer = browser.get("/api/v1/runs", headers={"Authorization": f"Bearer {wrong}".encode("latin-1")})
        assert answer.status_code == 401
        assert "unknown, revoked or over" in answer.json()["detail"]


def test_a_wrong_token_is_refused_even_beside_a_session(browser: TestClient) -> None:
    sign_in(browser, "vera")
    assert browser.get("/api/v1/runs").status_code == 200
    assert browser.get("/api/v1/runs", headers={"Authorization": "Bearer popmi_wrong"}).status_code == 401


def test_without_a_centre_everybody_here_looks_and_nobody_signs_in(runs: Path) -> None:
    with opened(app_of(None, runs)) as client:
        assert client.get("/").status_code == 200
        for path in ("/login", "/first?key=x", "/password?key=x", "/account", "/accounts"):
            assert client.get(path).status_code in (403, 404)
        assert "Sign out" not in client.get("/").text
        assert client.get("/", headers={"Authorization": "Bearer popmi_x"}).status_code == 200


def test_a_centre_that_is_away_lets_nobody_in_and_says_so(browser: TestClient, centre: Engine) -> None:
    sign_in(browser, "vera")
    with writing(centre) as session:
        session.connection().exec_driver_sql("DROP TABLE sessions")
    answer = browser.get("/")
    assert answer.status_code == 503
    assert "The database does not answer" in answer.text
    assert answer.headers["retry-after"] == "5"
    assert browser.get("/api/v1/runs").json()["detail"].startswith("The database with the accounts does not answer")
    assert browser.get("/healthz").status_code == 200


def test_the_first_admin_is_made_by_the_link_and_is_signed_in(database: str, runs: Path, centre: Engine) -> None:
    for name in ("vera", "otto"):
        accounts.remove(centre, name, BY)
    accounts.set_role(centre, "anna", "admin", BY)
    with writing(centre) as session:
        session.connection().exec_driver_sql("DELETE FROM accounts")
    secret = onetime.first_admin(centre)
    with opened(app_of(centre, runs)) as client:
        assert "There is no account yet" in client.get("/login").text
        assert client.get("/first?key=wrong").status_code == 404
        form = {"key": str(secret), "name": "Eva", "password": PASSWORD, "again": PASSWORD}
        page = client.get(f"/first?key={secret}").text
        form["csrf"] = secret_of(page)
        assert "not the same" in client.post("/first", data=form | {"again": "other"}).text
        assert "expected 12 to 1024" in client.post("/first", data=form | {"password": "a", "again": "a"}).text
        assert client.post("/first", data=form).headers["location"] == "/"
        assert client.get("/accounts").status_code == 200
    with opened(app_of(centre, runs)) as stranger:
        assert "There is no account yet" not in stranger.get("/login").text
        assert stranger.get(f"/first?key={secret}").status_code == 404
        assert stranger.get(f"{LOCAL}/accounts").status_code == 303
