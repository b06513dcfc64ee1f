"""What another site has a browser send is refused, whatever it sends."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from signing_in import LOCAL, PASSWORD, app_of, post, secret_of, sign_in
from signing_in import browser as opened
from sqlalchemy.engine import Engine

from server.centre import accounts, tokens
from server.centre.people import Doer
from server.dashboard.access.binding import Binding
from server.dashboard.access.forms import inside, same

BY = Doer("root", "terminal")


@pytest.fixture
def anna(browser: TestClient) -> TestClient:
    sign_in(browser, "anna")
    return browser


def roles(centre: Engine) -> list[str]:
    return [item.role for item in accounts.listed(centre)]


@pytest.mark.parametrize("said", [None, "", "wrong", "\udcff", "a" * 10_000])
def test_a_form_without_its_secret_changes_nothing(anna: TestClient, centre: Engine, said: str | None) -> None:
    before = roles(centre)
    form = {"role": "admin"} | ({} if said is None else {"csrf": said.encode("utf-8", "replace").decode()})
    answer = anna.post("/accounts/vera/role", data=form)
    assert answer.status_code == 403
    assert "This form is too old, or it was not made by these pages" in answer.text
    assert roles(centre) == before


def test_a_form_with_anothers_secret_changes_nothing(anna: TestClient, app: FastAPI, centre: Engine) -> None:
    with opened(app) as other:
        sign_in(other, "vera")
        stolen = secret_of(other.get("/account").text)
    assert anna.post("/accounts/vera/role", data={"role": "admin", "csrf": stolen}).status_code == 403
    assert accounts.find(centre, "vera").role == "viewer"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "https://127.0.0.1:8080"},
        {"Origin": "http://127.0.0.1:8080.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Origin": LOCAL},
    ],
)
def test_a_form_from_another_site_changes_nothing_even_with_its_secret(
    anna: TestClient, centre: Engine, headers: dict[str, str]
) -> None:
    form = {"role": "admin", "csrf": secret_of(anna.get("/account").text)}
    assert anna.post("/accounts/vera/role", data=form, headers=headers).status_code == 403
    assert accounts.find(centre, "vera").role == "viewer"


@pytest.mark.parametrize("headers", [{}, {"Origin": LOCAL}, {"Sec-Fetch-Site": "same-origin", "Origin": LOCAL}])
def test_a_form_of_these_pages_is_taken(anna: TestClient, centre: Engine, headers: dict[str, str]) -> None:
    form = {"role": "operator", "csrf": secret_of(anna.get("/account").text)}
    assert anna.post("/accounts/vera/role", data=form, headers=headers).status_code == 303
    assert accounts.find(centre, "vera").role == "operator"


def test_the_secret_may_come_in_a_header_as_htmx_sends_it(anna: TestClient, centre: Engine) -> None:
    secret = secret_of(anna.get("/account").text)
    assert f'<meta name="csrf" content="{secret}">' in anna.get("/").text
    answer = anna.post("/accounts/vera/role", data={"role": "operator"}, headers={"X-CSRF-Token": secret})
    assert answer.status_code == 303
    answer = anna.post("/accounts/vera/role", data={"role": "admin", "csrf": secret}, headers={"X-CSRF-Token": "wrong"})
    assert answer.status_code == 403


def test_a_form_with_a_file_carries_its_secret_too(anna: TestClient, centre: Engine) -> None:
    secret, file = secret_of(anna.get("/account").text), {"file": ("a.json", b"{}", "application/json")}
    assert anna.post("/accounts/vera/role", data={"role": "operator", "csrf": secret}, files=file).status_code == 303
    assert anna.post("/accounts/vera/role", data={"role": "admin"}, files=file).status_code == 403
    # The secret is a text, not a file.
    sent = {"csrf": ("a.txt", secret.encode(), "text/plain"), **file}
    assert anna.post("/accounts/vera/role", data={"role": "admin"}, files=sent).status_code == 403


@pytest.mark.parametrize(
    "path", ["/logout", "/account/tokens", "/account/sessions/end-all", "/accounts", "/api/v1/orders"]
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_no_way_of_changing_something_goes_around_the_secret(anna: TestClient, path: str, method: str) -> None:
    assert anna.request(method, path).status_code == 403
    assert anna.get("/").status_code == 200


def test_another_site_cannot_sign_a_browser_in(app: FastAPI) -> None:
    """Who is signed in as the attacker unawares works in the attacker's name."""
    form = {"name": "vera", "password": PASSWORD}
    with opened(app) as browser:
        assert browser.post("/login", data=form).status_code == 403
        assert browser.post("/login", data=form | {"csrf": ""}).status_code == 403
        secret = secret_of(browser.get("/login").text)
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert browser.post("/login", data=form | {"csrf": secret}, headers=headers).status_code == 403
        assert browser.post("/login", data=form | {"csrf": "guessed"}).status_code == 403
        assert browser.get("/").status_code == 303
        assert browser.post("/login", data=form | {"csrf": secret}).status_code == 303


def test_a_program_with_a_token_needs_no_form(app: FastAPI, browser: TestClient, centre: Engine) -> None:
    @app.post("/api/v1/echo")
    def echo(said: dict[str, str]) -> dict[str, str]:
        return said

    _, secret = tokens.make(centre, accounts.find(centre, "otto"), "ci", "operator", 1, BY)
    bearer = {"Authorization": f"Bearer {secret}"}
    assert browser.post("/api/v1/echo", json={"a": "b"}, headers=bearer).json() == {"a": "b"}
    sign_in(browser, "otto")
    answer = browser.post("/api/v1/echo", json={"a": "b"})
    assert answer.status_code == 403
    assert "too old" in answer.json()["detail"]
    header = {"X-CSRF-Token": secret_of(browser.get("/account").text)}
    assert browser.post("/api/v1/echo", json={"a": "b"}, headers=header).json() == {"a": "b"}


def test_behind_a_proxy_the_origin_is_the_proxys(centre: Engine, runs: Path) -> None:
    app = app_of(centre, runs, binding=Binding(behind_proxy="https://Pages.example:443"))
    with TestClient(app, base_url="https://pages.example", follow_redirects=False, client=("127.0.0.1", 1)) as client:
        client.headers["origin"] = "https://pages.example"
        assert sign_in(client, "anna").status_code == 303
        client.headers["origin"] = "http://pages.example"
        assert post(client, "/logout").status_code == 403


def test_what_was_sent_after_the_session_ended_changed_nothing_and_says_so(anna: TestClient) -> None:
    secret = secret_of(anna.get("/account").text)
    post(anna, "/logout")
    answer = anna.post("/accounts/vera/role", data={"role": "admin", "csrf": secret})
    assert answer.status_code == 401
    assert "You are signed out, so nothing was changed" in answer.text


@pytest.mark.parametrize("where", ["/", "/runs/a%20b?split=test&x=1", "/models"])
def test_a_path_of_ours_is_gone_on_to(where: str) -> None:
    assert inside(where) == where


def test_an_empty_secret_fits_nothing() -> None:
    assert not same("", "")
    assert not same("a", "")
    assert same("ä", "ä")
