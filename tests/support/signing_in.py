"""A browser, as far as a test client is one, that signs in on the pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response
from sqlalchemy.engine import Engine

from server.centre import accounts, passwords
from server.centre.people import Doer
from server.dashboard.access.binding import Binding
from server.dashboard.app import create_app

LOCAL = "http://127.0.0.1:8080"
PASSWORD = "correct horse battery"
BY = Doer("root", "terminal")
PEOPLE = {"vera": "viewer", "otto": "operator", "anna": "admin"}
"""One account of each role; all have the password ``PASSWORD``."""


def make_cheap(monkeypatch: Any) -> None:
    """Keep passwords with the least work."""
    monkeypatch.setattr(passwords, "_HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    passwords._nobodys.cache_clear()


def add_people(centre: Engine) -> None:
    """Make one account of each role."""
    for name, role in PEOPLE.items():
        accounts.add(centre, name, role, PASSWORD, BY)


@contextmanager
def browser(app: FastAPI, base: str = LOCAL) -> Iterator[TestClient]:
    """Open a browser that follows no redirect by itself."""
    with TestClient(app, base_url=base, follow_redirects=False) as client:
        yield client


def app_of(centre: Engine | None, runs: Path, **more: Any) -> FastAPI:
    """Return the pages with a centre."""
    return create_app(runs, centre=centre, **({"binding": Binding()} | more))


def secret_of(page: str) -> str:
    """Return what the first form of a page carries."""
    found = re.search(r'name="csrf" value="([^"]*)"', page)
    assert found is not None, page[:2000]
    return found[1]


def sign_in(client: TestClient, name: str, password: str = PASSWORD, **form: str) -> Response:
    """Fill in the form to sign in."""
    secret = secret_of(client.get("/login").text)
    return client.post("/login", data={"name": name, "password": password, "csrf": secret, **form})


def post(client: TestClient, path: str, data: dict[str, str] | None = None, *, page: str = "/account") -> Response:
    """Send a form as a page of ours does that has one."""
    return client.post(path, data={"csrf": secret_of(client.get(page).text), **(data or {})})
