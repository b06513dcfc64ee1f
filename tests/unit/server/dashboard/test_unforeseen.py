"""Errors that nobody foresaw are answered as everything is: hardened, in words, and logged (access/unforeseen.py)."""

from __future__ import annotations

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from signing_in import post, sign_in
from starlette.responses import Response, StreamingResponse

HARD = ("Content-Security-Policy", "X-Content-Type-Options", "X-Frame-Options", "Cache-Control")
DEEP = "[" * 100_000


@pytest.fixture
def broken(app: FastAPI) -> FastAPI:
    """Pages of which three are broken."""

    def breaks() -> Response:
        raise LookupError("a secret of the machine")

    def breaks_off() -> Response:
        def pieces():
            yield b"half"
            raise LookupError("in the middle")

        return StreamingResponse(pieces())

    app.get("/login/broken")(breaks)
    app.get("/api/v1/broken")(breaks)
    app.get("/broken-off")(breaks_off)
    return app


def test_a_page_that_breaks_says_so_and_carries_what_every_answer_carries(broken, browser, caplog) -> None:
    sign_in(browser, "vera")
    answer = browser.get("/login/broken?key=abc")
    assert answer.status_code == 500
    assert "These pages made a mistake" in answer.text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert all(name in answer.headers for name in HARD)
    assert "secret of the machine" not in answer.text
    assert "LookupError: a secret of the machine" in caplog.text
    assert "key=abc" not in caplog.text
    told = browser.get("/api/v1/broken")
    assert (told.status_code, "error in these pages" in told.json()["detail"]) == (500, True)
    assert told.headers["X-Content-Type-Options"] == "nosniff"


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(broken, browser) -> None:
    sign_in(browser, "vera")
    with pytest.raises(LookupError, match="in the middle"):
        browser.get("/broken-off")


@pytest.mark.parametrize("number", ["9" * 30, str(2**31), "-1"])
def test_a_number_that_no_token_or_order_has_is_refused(browser: TestClient, number: str) -> None:
    sign_in(browser, "anna")
    assert post(browser, f"/accounts/vera/tokens/{number}/revoke").status_code == 422
    assert post(browser, f"/act/orders/{number}/withdraw").status_code == 422
    assert browser.get(f"/act/orders/{number}").status_code == 404
    assert browser.get(f"/act?before={number}").status_code == (422 if number == "-1" else 200)


@pytest.mark.parametrize(
    "form",
    [
        {"toml": "a=" + "[" * 3000 + "]" * 3000},
        {"toml": ".".join("a" * 5000) + "=1"},
        {"toml": "a = " + "{a=" * 15 + "1" + "}" * 15},
    ],
)
def test_a_description_that_lies_too_deep_within_itself_is_refused(browser: TestClient, form: dict[str, str]) -> None:
    sign_in(browser, "otto")
    answer = post(browser, "/act/start", form)
    assert answer.status_code == 422
    assert "within one another" in answer.text


@pytest.mark.parametrize("config", [DEEP, '{"a":' * 900 + "1" + "}" * 900])
def test_an_order_that_lies_too_deep_within_itself_is_refused(browser: TestClient, config: str) -> None:
    sign_in(browser, "otto")
    assert post(browser, "/act/start/order", {"name": "deep", "config": config}).status_code == 422
    said = '{"kind": "start", "arguments": {"name": "deep", "config": ' + config + "}}"
    csrf = browser.get("/").text.partition('name="csrf" content="')[2].partition('"')[0]
    headers = {"X-CSRF-Token": csrf, "Content-Type": "application/json"}
    assert browser.post("/api/v1/orders", content=said, headers=headers).status_code in (400, 422)
    assert json.loads(browser.get("/api/v1/orders").text) == []
