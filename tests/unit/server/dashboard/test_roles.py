"""What each role may do on the pages of accounts, and how a refusal looks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from signing_in import PASSWORD, post, secret_of, sign_in
from signing_in import browser as opened
from sqlalchemy import select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session
from starlette.requests import Request as StarletteRequest

from popmi_core.errors import AccessError
from server.centre import accounts, sessions, throttle, tokens
from server.centre.passwords import CrowdedError
from server.centre.people import Doer
from server.centre.remarks import unwritten
from server.centre.schema import Attempt
from server.centre.sessions import SessionLimits
from server.dashboard.access import NOBODY, Person, Refused, allow

BY = Doer("root", "terminal")
BETTER = "seven quiet green hills"
ADMINS = [
    ("POST", "/accounts", {"name": "new", "role": "admin"}),
    ("POST", "/accounts/vera/role", {"role": "admin"}),
    ("POST", "/accounts/anna/disable", {}),
    ("POST", "/accounts/anna/enable", {}),
    ("POST", "/accounts/anna/end", {}),
    ("POST", "/accounts/anna/link", {}),
    ("POST", "/accounts/anna/remove", {"typed": "anna"}),
    ("POST", "/accounts/anna/tokens/1/revoke", {}),
    ("GET", "/accounts", {}),
    ("GET", "/accounts/anna", {}),
]


@pytest.fixture
def anna(browser: TestClient) -> TestClient:
    assert sign_in(browser, "anna").status_code == 303
    return browser


@pytest.fixture
def chen(app: FastAPI, centre: Engine) -> Iterator[TestClient]:
    accounts.add(centre, "chen", "operator", PASSWORD, BY)
    with opened(app) as client:
        sign_in(client, "chen")
        yield client


@pytest.mark.parametrize(
    ("role", "may"),
    [("viewer", {"viewer"}), ("operator", {"viewer", "operator"}), ("admin", {"viewer", "operator", "admin"})],
)
def test_a_role_may_what_those_below_it_may(role: str, may: set[str]) -> None:
    person = Person("lin", role)
    assert {other for other in ("viewer", "operator", "admin") if person.may(other)} == may


def test_allow_hands_out_the_person_or_refuses() -> None:
    request = StarletteRequest({"type": "http", "headers": [], "state": {"person": Person("lin", "operator")}})
    assert allow(request, "viewer").name == "lin"
    with pytest.raises(Refused, match="lin is operator, this needs admin"):
        allow(request, "admin")
    with pytest.raises(Refused, match="nobody is viewer, this needs operator"):
        allow(StarletteRequest({"type": "http", "headers": []}), "operator")
    assert NOBODY.may("viewer")


@pytest.mark.parametrize("name", ["vera", "otto"])
@pytest.mark.parametrize(("method", "path", "form"), ADMINS)
def test_accounts_are_for_admins(
    browser: TestClient, centre: Engine, name: str, method: str, path: str, form: dict[str, str]
) -> None:
    sign_in(browser, name)
    before = accounts.listed(centre)
    answer = browser.get(path) if method == "GET" else post(browser, path, form)
    assert answer.status_code == 403
    assert f"You are signed in as {name}" in answer.text
    assert "This needs the role admin" in answer.text
    assert accounts.listed(centre) == before


def test_a_refusal_below_the_api_is_json(app: FastAPI, browser: TestClient, centre: Engine) -> None:
    @app.get("/api/v1/for-operators")
    def for_operators(request: Request) -> str:
        return allow(request, "operator").name

    for holder, role, status in (("vera", "viewer", 403), ("otto", "viewer", 403), ("otto", "operator", 200)):
        _, secret = tokens.make(centre, accounts.find(centre, holder), "ci", role, 1, BY)
        answer = browser.get("/api/v1/for-operators", headers={"Authorization": f"Bearer {secret}"})
        assert answer.status_code == status
        if status == 403:
            assert "This needs the role operator" in answer.json()["detail"]


def test_where_nobody_signs_in_a_refusal_says_why(runs) -> None:
    from signing_in import app_of

    app = app_of(None, runs)

    @app.get("/for-operators")
    def for_operators(request: Request) -> str:
        return allow(request, "operator").name

    with opened(app) as client:
        answer = client.get("/for-operators")
    assert answer.status_code == 403
    assert "Nobody signs in here" in answer.text


def test_an_admin_lets_somebody_in_by_a_link(anna: TestClient, app: FastAPI) -> None:
    page = post(anna, "/accounts", {"name": "Chen", "role": "operator"}).text
    link = re.search(r"http://127\.0\.0\.1:8080(/password\?key=[\w-]+)", page)
    assert link is not None
    with opened(app) as client:
        shown = client.get(link[1]).text
        assert "chen" in shown
        key = link[1].partition("=")[2]
        form = {"key": key, "password": BETTER, "again": BETTER, "csrf": secret_of(shown)}
        assert client.post("/password", data=form | {"again": "x"}).status_code == 422
        assert client.post("/password", data=form).status_code == 303
        assert "chen" in client.get("/").text
        assert client.get("/accounts").status_code == 403
    with opened(app) as client:
        assert client.get(link[1]).status_code == 404
        form["csrf"] = secret_of(client.get("/login").text)
        assert client.post("/password", data=form).status_code == 422
    assert link[1] not in anna.get("/accounts/chen").text


def test_what_an_admin_types_wrongly_is_said_and_changes_nothing(anna: TestClient, centre: Engine) -> None:
    before = accounts.listed(centre)
    for path, form, said in (
        ("/accounts", {"name": "<b>", "role": "viewer"}, "expected letters a to z"),
        ("/accounts", {"name": "vera", "role": "viewer"}, "there is one of this name"),
        ("/accounts", {"name": "new", "role": "root"}, "expected one of viewer, operator, admin"),
        ("/accounts/vera/role", {"role": "root"}, "expected one of viewer, operator, admin"),
        ("/accounts/anna/role", {"role": "viewer"}, "this is the last admin"),
        ("/accounts/anna/disable", {}, "this is the last admin"),
        ("/accounts/anna/remove", {"typed": "anna"}, "this is the last admin"),
        ("/accounts/vera/remove", {"typed": "otto"}, "not the account"),
        ("/accounts/vera/tokens/999/revoke", {}, "there is none of this number"),
    ):
        answer = post(anna, path, form)
        assert (answer.status_code, path) == (422, path)
        assert said in answer.text
        assert "<b>" not in answer.text.replace("<b></b>", "")
    assert accounts.listed(centre) == before
    assert post(anna, "/accounts/nobody/disable").status_code == 404
    assert anna.get("/accounts/nobody").status_code == 404


def test_what_is_wrong_is_said_in_the_readers_language(anna: TestClient) -> None:
    anna.headers["accept-language"] = "zh-TW,zh;q=0.9"
    answer = post(anna, "/account/tokens", {"name": "%(x)s", "role": "viewer", "days": "9999"})
    assert answer.status_code == 422
    assert "權杖" in answer.text
    assert "%(x)s" in answer.text
    assert "expected 1 to" not in answer.text


@pytest.mark.parametrize("act", ["disable", "end", "remove"])
def test_what_an_admin_does_counts_at_once(anna: TestClient, chen: TestClient, act: str) -> None:
    assert chen.get("/").status_code == 200
    answer = post(anna, f"/accounts/chen/{act}", {"typed": "chen"})
    assert answer.status_code == 303
    assert 'role="status"' in anna.get(answer.headers["location"]).text
    assert chen.get("/").status_code == 303
    assert (sign_in(chen, "chen").status_code == 303) is (act == "end")


def test_a_changed_role_counts_at_once(anna: TestClient, chen: TestClient) -> None:
    post(anna, "/accounts/chen/role", {"role": "admin"})
    assert chen.get("/accounts").status_code == 200
    post(anna, "/accounts/chen/role", {"role": "viewer"})
    assert chen.get("/accounts").status_code == 403


def test_a_changed_password_signs_every_other_browser_out(chen: TestClient, app: FastAPI) -> None:
    with opened(app) as other:
        sign_in(other, "chen")
        for form, status, said in (
            ({"current": "wrong wrong wrong", "password": BETTER, "again": BETTER}, 422, "not your password"),
            ({"current": PASSWORD, "password": BETTER, "again": "x"}, 422, "not the same"),
            ({"current": PASSWORD, "password": "short", "again": "short"}, 422, "expected 12 to 1024"),
        ):
            answer = post(chen, "/account/password", form)
            assert answer.status_code == status
            assert said in answer.text
        before = chen.cookies["popmi-8080"]
        answer = post(chen, "/account/password", {"current": PASSWORD, "password": BETTER, "again": BETTER})
        assert answer.status_code == 303
        assert chen.cookies["popmi-8080"] != before
        assert chen.get("/account").status_code == 200
        assert other.get("/").status_code == 303
        assert sign_in(other, "chen").status_code == 401
        assert sign_in(other, "chen", BETTER).status_code == 303


def test_who_signs_in_is_not_told_the_servers_paths(chen: TestClient, runs: Path) -> None:
    assert str(runs.parent) not in chen.get("/").text
    assert f'<span class="where">{runs.name}</span>' in chen.get("/account").text


def test_a_try_that_nobody_looked_at_does_not_count(
    chen: TestClient, centre: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crowded(*_: object) -> None:
        raise CrowdedError("too many sign in at this moment. Try again in a few seconds.")

    with monkeypatch.context() as patch:
        patch.setattr(accounts, "sign_in", crowded)
        for _ in range(throttle.FREE_BY_NAME + 2):
            answer = post(chen, "/account/password", {"current": PASSWORD, "password": "x", "again": "x"})
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "3")
    with Session(centre) as session:
        assert session.scalars(select(Attempt.key)).all() == []


def test_the_password_cannot_be_tried_out_in_an_open_browser(chen: TestClient) -> None:
    form = {"current": "wrong wrong wrong", "password": BETTER, "again": BETTER}
    assert [post(chen, "/account/password", form).status_code for _ in range(6)] == [422] * 5 + [429]


def test_my_browsers_are_listed_and_signed_out(chen: TestClient, app: FastAPI, centre: Engine) -> None:
    with opened(app) as other:
        other.headers["user-agent"] = "<script>alert(1)</script>"
        sign_in(other, "chen")
        page = chen.get("/account").text
        assert "&lt;script&gt;" in page
        assert "<script>alert" not in page
        digest = re.search(r'name="session" value="(\w+)"', page)
        assert digest is not None
        post(chen, "/account/sessions/end", {"session": digest[1]})
        assert other.get("/").status_code == 303
        assert chen.get("/").status_code == 200
        sign_in(other, "chen")
        post(chen, "/account/sessions/end-all")
        assert (chen.get("/").status_code, other.get("/").status_code) == (303, 303)
    assert sessions.of_account(centre, accounts.find(centre, "chen"), SessionLimits()) == ()


def test_my_token_is_shown_once_and_may_no_more_than_i(chen: TestClient, centre: Engine) -> None:
    page = post(chen, "/account/tokens", {"name": "<i>ci</i>", "role": "operator", "days": "7"}).text
    secret = re.search(r"popmi_[\w-]{43}", page)
    assert secret is not None
    found = tokens.known(centre, secret[0])
    assert found is not None
    assert (found.role, found.account.name) == ("operator", "chen")
    again = chen.get("/account").text
    assert secret[0] not in again
    assert "&lt;i&gt;ci" in again
    for form, said in (
        ({"name": "x", "role": "admin", "days": "7"}, "is more than account chen may do"),
        ({"name": "x", "role": "viewer", "days": "9999"}, "expected 1 to 365"),
        ({"name": "x", "role": "viewer", "days": "-1"}, "expected 1 to 365"),
        ({"name": "", "role": "viewer", "days": "1"}, "needs a name"),
    ):
        answer = post(chen, "/account/tokens", form)
        assert answer.status_code == 422
        assert said in answer.text
    assert post(chen, "/account/tokens/revoke", {"number": str(found.id)}).status_code == 303
    assert tokens.known(centre, secret[0]) is None
    assert post(chen, "/account/tokens/revoke", {"number": "x"}).status_code == 422


def test_nobody_touches_anothers_session_or_token(chen: TestClient, anna: TestClient, centre: Engine) -> None:
    theirs = accounts.find(centre, "anna")
    token, secret = tokens.make(centre, theirs, "ci", "viewer", 1, BY)
    session = sessions.of_account(centre, theirs, SessionLimits())[0]
    assert post(chen, "/account/tokens/revoke", {"number": str(token.id)}).status_code == 422
    post(chen, "/account/sessions/end", {"session": session.digest})
    assert tokens.known(centre, secret) is not None
    assert anna.get("/").status_code == 200
    assert f"/accounts/anna/tokens/{token.id}/revoke" in anna.get("/accounts").text
    assert post(anna, f"/accounts/anna/tokens/{token.id}/revoke").status_code == 303
    assert tokens.known(centre, secret) is None


def test_every_act_is_told_with_who_did_it(anna: TestClient, centre: Engine) -> None:
    post(anna, "/accounts", {"name": "chen", "role": "viewer"})
    post(anna, "/accounts/chen/role", {"role": "operator"})
    post(anna, "/accounts/chen/remove", {"typed": "chen"})
    told = [(item.event, item.by) for item in unwritten(centre) if item.by.who == "anna"]
    assert told == [
        (f"account.{event}", Doer("anna", "page")) for event in ("signed-in", "added", "invited", "role", "removed")
    ]


def test_errors_of_accounts_end_the_command_line_with_a_code_of_their_own() -> None:
    assert AccessError.exit_code == 11
