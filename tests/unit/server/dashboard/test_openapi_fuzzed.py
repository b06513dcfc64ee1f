"""Every operation of ``/api/v1`` under questions nobody foresaw: as a viewer, as an operator, and by nobody known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import believable_federation
import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy.engine import Engine
from starlette.types import ASGIApp, Receive, Scope, Send

from server.centre import accounts, open_centre, tokens
from server.centre.people import Doer
from server.dashboard.app import create_app

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis (popmi[dev])")
DOCUMENT = "/api/v1/openapi.json"
BY = Doer("root", "terminal")
# The same questions every time, as many as fit in some seconds an operation; a slow machine is no fault of the pages.
BOUNDED = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


class AsLocal:
    """The pages of the moment, asked under a name they answer to."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            kept = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope = {**scope, "headers": [*kept, (b"host", b"127.0.0.1:8080")]}
        await self.app(scope, receive, send)


# The description is the same whatever there is to show; those who are asked are put behind it by `pages`.
ASKED = AsLocal(create_app("no such folder"))
schema = schemathesis.openapi.from_asgi(DOCUMENT, ASKED)


class Pages:
    """The pages of a server, and a token of every role."""

    def __init__(self, folder: Path) -> None:
        runs, database = believable_federation.build(folder, time.time())
        self.centre: Engine = open_centre(database)
        self.app = create_app(runs, centre=self.centre, runs_folder=runs)
        self.tokens = {}
        for role in ("viewer", "operator"):
            account = accounts.add(self.centre, role, role, f"the {role} walks along the river", BY)
            self.tokens[role] = tokens.make(self.centre, account, "fuzz", role, 1, BY)[1]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    made = Pages(tmp_path_factory.mktemp("fuzzed"))
    before, ASKED.app = ASKED.app, made.app
    yield made
    ASKED.app = before
    made.centre.dispose()


@schema.parametrize()
@BOUNDED
def test_every_answer_to_a_viewer_is_as_described(case: Any, pages: Pages) -> None:
    case.call_and_validate(headers={"Authorization": f"Bearer {pages.tokens['viewer']}"})


@schema.parametrize()
@BOUNDED
def test_every_answer_to_an_operator_is_as_described(case: Any, pages: Pages) -> None:
    # What an order must be told depends on its kind, and a run's settings on one another: no schema tells all of it.
    left = [schemathesis.checks.positive_data_acceptance] if case.method == "POST" else []
    case.call_and_validate(headers={"Authorization": f"Bearer {pages.tokens['operator']}"}, excluded_checks=left)


@schema.parametrize()
@BOUNDED
def test_nobody_unknown_gets_an_answer(case: Any, pages: Pages) -> None:
    answer = case.call()
    assert answer.status_code in ((200, 405) if case.path == "/healthz" else (401, 405))
