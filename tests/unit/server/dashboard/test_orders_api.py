"""Orders over the API, and who may give them through the real guard (server/dashboard/orders_api.py)."""

from __future__ import annotations

import pytest
from argon2 import PasswordHasher
from fastapi.testclient import TestClient

from server.centre import accounts, passwords, sessions, tokens
from server.centre.orders import decide, find, history
from server.centre.people import Doer
from server.centre.sessions import SessionLimits
from server.dashboard.app import create_app

LOCAL = "http://127.0.0.1:8080"
BY = Doer("root", "terminal")


@pytest.fixture
def pages(federation, monkeypatch):
    """The pages with their guard, and the federation's centre."""
    monkeypatch.setattr(passwords, "_HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    with TestClient(create_app(federation.runs, centre=federation.centre), base_url=LOCAL) as client:
        client.follow_redirects = False
        yield client


def account(centre, role):
    return accounts.add(centre, f"a-{role}", role, "a long enough sentence", BY)


def bearer(centre, role):
    _, secret = tokens.make(centre, account(centre, role), "ci", role, 1, BY)
    return {"Authorization": f"Bearer {secret}"}


def signed_in(pages, centre, role):
    """Give the browser a session of this role; return the secret of its forms."""
    opened = sessions.begin(centre, account(centre, role), address="", agent="", limits=SessionLimits())
    pages.cookies.set("popmi-8080", opened.secret)
    return opened.csrf


STOP = {"kind": "stop", "arguments": {"run": "melanoma-3"}}


def test_a_program_gives_an_order_and_asks_what_became_of_it(pages, federation):
    key = bearer(federation.centre, "operator")
    given = pages.post("/api/v1/orders", json=STOP, headers=key)
    assert given.status_code == 202
    told = given.json()
    assert (told["state"], told["who"], told["via"], told["answer"]) == ("waiting", "a-operator", "api", None)
    decide(federation.centre, told["id"], "done", "it rests")
    assert pages.get(f"/api/v1/orders/{told['id']}", headers=key).json()["answer"] == "it rests"
    listed = pages.get("/api/v1/orders", headers=key, params={"state": "done", "limit": 1}).json()
    assert [item["id"] for item in listed] == [told["id"]]
    assert pages.get("/api/v1/orders", headers=key, params={"before": told["id"]}).json() == []


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"kind": "format", "arguments": {}}, "Input should be 'start'"),
        ({"kind": "stop", "arguments": {}}, "run: Field required"),
        ({"kind": "pin", "arguments": {"run": "a", "round": 0}}, "round: Input should be greater"),
        ({"kind": "stop"}, "Field required"),
        ({**STOP, "more": 1}, "Extra inputs"),
        ([], "valid"),
    ],
)
def test_what_is_no_order_is_told(pages, federation, sent, said):
    answer = pages.post("/api/v1/orders", json=sent, headers=bearer(federation.centre, "operator"))
    assert answer.status_code == 422
    assert said in answer.text
    assert history(federation.centre) == ()


@pytest.mark.parametrize(
    "body",
    [
        b'{"kind": "\\ud800", "arguments": {}}',
        b'{"kind": "exclude", "arguments": {"site": "a", "reason": "\\ud800"}}',
        b'{"kind": "exclude", "arguments": {"\\ud800": 1}}',
        b'{"kind": "start", "arguments": {"name": "a", "config": {"strategy": "\\ud800"}}}',
        b'{"kind": "pin", "arguments": {"run": "a", "round": 1e400}}',
        b"{",
        b"\xff",
    ],
)
def test_half_a_letter_and_broken_json_are_refused_and_break_nothing(pages, federation, body):
    headers = bearer(federation.centre, "operator") | {"Content-Type": "application/json"}
    answer = pages.post("/api/v1/orders", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert history(federation.centre) == ()


def test_a_viewer_s_token_reads_orders_and_gives_none(pages, federation):
    key = bearer(federation.centre, "viewer")
    assert pages.post("/api/v1/orders", json=STOP, headers=key).status_code == 403
    assert pages.get("/api/v1/orders", headers=key).json() == []
    assert pages.get("/api/v1/orders/5", headers=key).status_code == 404
    assert pages.get("/api/v1/orders/0", headers=key).status_code == 422
    assert history(federation.centre) == ()


def test_nobody_who_is_not_signed_in_orders_or_reads_anything(pages, federation):
    assert pages.post("/api/v1/orders", json=STOP).status_code in (401, 403)
    assert pages.get("/api/v1/orders").status_code == 401
    assert pages.post("/act/stop", data={"run": "melanoma-3"}).status_code in (303, 401, 403)
    assert pages.get("/act").headers["location"].startswith("/login")
    assert history(federation.centre) == ()


def test_a_form_counts_only_with_its_session_s_secret(pages, federation):
    csrf = signed_in(pages, federation.centre, "operator")
    form = {"run": "melanoma-3"}
    for wrong in (form, form | {"csrf": "guessed"}):
        assert pages.post("/act/stop", data=wrong).status_code == 403
        assert pages.post("/act/start", data=wrong).status_code == 403
    assert pages.post("/api/v1/orders", json=STOP).status_code == 403
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert pages.post("/act/stop", data=form | {"csrf": csrf}, headers=elsewhere).status_code == 403
    assert history(federation.centre) == ()
    answer = pages.post("/act/stop", data=form | {"csrf": csrf})
    assert answer.status_code == 303
    assert find(federation.centre, int(answer.headers["location"].rpartition("/")[2])).who == "a-operator"
    by_header = pages.post("/api/v1/orders", json=STOP, headers={"X-CSRF-Token": csrf})
    assert (by_header.status_code, by_header.json()["via"]) == (202, "page")


def test_a_file_s_form_carries_the_secret_too(pages, federation):
    csrf = signed_in(pages, federation.centre, "operator")
    file = {"file": ("a.json", b"{}", "application/json")}
    assert pages.post("/act/confirm", files=file).status_code == 403
    assert pages.post("/act/confirm", files=file, data={"csrf": csrf}).status_code == 422


def test_a_viewer_s_session_orders_nothing_even_with_a_good_form(pages, federation):
    csrf = signed_in(pages, federation.centre, "viewer")
    for path in ("/act/stop", "/act/revoke", "/act/start", "/act/start/order", "/act/confirm", "/act/confirm/order"):
        assert pages.post(path, data={"csrf": csrf, "run": "a", "site": "msk"}).status_code == 403
    assert history(federation.centre) == ()


def test_without_a_server_behind_the_pages_nothing_is_ordered(federation):
    with TestClient(create_app(federation.runs), base_url=LOCAL) as client:
        assert client.post("/api/v1/orders", json=STOP).status_code == 403
        assert client.get("/api/v1/orders").status_code == 404
