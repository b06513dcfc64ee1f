"""What a request may send: so much, in so much time, and nothing that becomes a header or a path."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from signing_in import post, secret_of, sign_in

from server.dashboard.access import bodies
from server.dashboard.access.bodies import BODY_BYTES, UPLOAD_BYTES, BodyRefused, read_body

FORM = "application/x-www-form-urlencoded"


def scope(**headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": "/", "headers": pairs}


class Line:
    """A connection on which pieces come, each after a while."""

    def __init__(self, *pieces: bytes, pause: float = 0.0, leaves: bool = False) -> None:
        self.pieces, self.pause, self.leaves = list(pieces), pause, leaves

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(self.pause)
        if self.leaves and not self.pieces:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self.pieces.pop(0), "more_body": bool(self.pieces) or self.leaves}


def test_a_body_in_pieces_is_put_together() -> None:
    assert asyncio.run(read_body(scope(), Line(b"a", b"", b"bc").receive)) == b"abc"


@pytest.mark.parametrize(
    ("headers", "line", "status"),
    [
        ({"content_length": str(BODY_BYTES + 1)}, Line(b""), 413),
        ({"content_length": "9" * 400}, Line(b""), 413),
        ({"content_length": "-1"}, Line(b""), 400),
        ({"content_length": "1e3"}, Line(b""), 400),
        ({"content_type": FORM}, Line(b"x" * BODY_BYTES, b"x"), 413),
        ({"content_type": "multipart/form-data; boundary=a"}, Line(b"x" * UPLOAD_BYTES, b"x"), 413),
        ({}, Line(b"x", leaves=True), 400),
    ],
)
def test_a_body_that_is_too_large_or_broken_is_refused(headers: dict[str, str], line: Line, status: int) -> None:
    with pytest.raises(BodyRefused, match=str(status)):
        asyncio.run(read_body(scope(**headers), line.receive))


def test_an_upload_may_be_larger_than_a_form() -> None:
    line = Line(b"x" * UPLOAD_BYTES)
    assert len(asyncio.run(read_body(scope(content_type="multipart/form-data; boundary=a"), line.receive))) > BODY_BYTES


def test_a_body_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
    with pytest.raises(BodyRefused, match="408"):
        asyncio.run(read_body(scope(), Line(*[b"x"] * 100, pause=0.01).receive))


def test_a_refused_body_is_told_and_the_connection_closed(browser: TestClient) -> None:
    answer = browser.post("/login", content=b"x" * (BODY_BYTES + 1), headers={"Content-Type": FORM})
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    assert "more than these pages take" in answer.text
    answer = browser.post("/api/v1/orders", content=b"x" * (BODY_BYTES + 1), headers={"Content-Type": FORM})
    assert "more than these pages take" in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=a", FORM, "text/plain", ""])
@pytest.mark.parametrize("body", [b"", b"--a\r\nbroken", b"csrf", b"%", b"\xff\xfe", b"&&==&" * 1000])
def test_a_broken_form_is_refused_and_breaks_nothing(browser: TestClient, kind: str, body: bytes) -> None:
    sign_in(browser, "anna")
    answer = browser.post("/account/tokens", content=body, headers={"Content-Type": kind})
    assert answer.status_code in (400, 403)
    assert browser.get("/").status_code == 200


def test_a_page_gets_the_body_that_was_looked_at(app: FastAPI, browser: TestClient) -> None:
    @app.post("/echo")
    async def echo(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    sign_in(browser, "anna")
    header = {"X-CSRF-Token": secret_of(browser.get("/account").text), "Content-Type": "text/plain"}
    assert browser.post("/echo", content=b"x" * 12345, headers=header).json() == {"bytes": 12345}
    assert browser.post("/echo", content=(b"x" for _ in range(99)), headers=header).json() == {"bytes": 99}


@pytest.mark.parametrize("name", ["a\r\nSet-Cookie: evil=1", "a\nLocation: https://evil.example", "\x00", "%0d%0aX: y"])
def test_nothing_that_is_typed_becomes_a_header(browser: TestClient, name: str) -> None:
    for answer in (
        sign_in(browser, name, "wrong wrong wrong", next=name),
        sign_in(browser, "anna", next="/" + name),
        post(browser, "/accounts", {"name": name}),
        browser.get("/login", params={"next": name, "language": name}),
        browser.get("/account", params={"done": name}),
    ):
        assert "evil" not in str([value for key, value in answer.headers.multi_items() if key != "location"])
        assert not any(letter in answer.headers.get("location", "") for letter in "\r\n\x00")
        assert answer.headers.get("location", "/").startswith("/")


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2f..%2fcentre/passwords.py", "/static/..%5capp.py",
     "/accounts/..%2f..%2fetc%2fpasswd", "/accounts/%2e%2e", "/static//etc/passwd", "/%00"],
)  # fmt: skip
def test_paths_that_lead_out_lead_nowhere_for_an_admin_too(browser: TestClient, path: str) -> None:
    sign_in(browser, "anna")
    answer = browser.get(path)
    assert answer.status_code in (404, 307)
    assert "argon2" not in answer.text
    assert "root:" not in answer.text
    assert not answer.headers.get("location", "/").startswith("//")
