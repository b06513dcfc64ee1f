"""What an address answers to a method that it does not take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from server.dashboard.app import create_app

LOCAL = "http://127.0.0.1:8080"


@pytest.fixture
def client(written: Callable[..., Path]) -> TestClient:
    return TestClient(create_app(written(rounds=1)), base_url=LOCAL)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/api/v1/orders", "GET, POST"), ("/api/v1/runs/opm-seed0", "GET"), ("/healthz", "GET")],
)
def test_every_method_of_an_address_is_named(client: TestClient, path: str, allowed: str) -> None:
    answer = client.request("TRACE", path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json() == {"detail": "Method Not Allowed"}


def test_a_page_says_so_in_words(client: TestClient) -> None:
    answer = client.request("DELETE", "/runs/opm-seed0")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert "This address does not take what was sent to it" in answer.text


def test_an_address_that_is_not_there_is_not_found_whatever_the_method(client: TestClient) -> None:
    assert client.request("DELETE", "/nowhere").status_code == 404
