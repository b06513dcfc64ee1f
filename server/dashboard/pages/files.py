"""Tables of pages as files, CSV or JSON: runs, comparisons, orders, accounts and tokens.

The tables of one run are at ``pages.run``, those of sites, models and the audit log at their own pages.
"""

from __future__ import annotations

import json

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.centre import accounts, tokens
from server.centre.orders import OrderRow, history
from server.dashboard.access import allow
from server.dashboard.downloads import table_in
from server.dashboard.pages.compare import Runs, compared
from server.dashboard.pages.signin import centre_of
from server.dashboard.runlines import Choice, RunLine, RunLines

router = APIRouter(include_in_schema=False)
RUN_COLUMNS = (
    "key", "run", "state", "detail", "rounds_done", "rounds_planned", "seconds_left", "strategy", "seed", "data",
    "phantom", "sites", "best_round", "best_validation_auroc", "begun",
)  # fmt: skip
ORDER_COLUMNS = ("number", "kind", "arguments", "who", "via", "created", "state", "answer", "decided")
ACCOUNT_COLUMNS = ("name", "role", "created", "disabled", "invited")
TOKEN_COLUMNS = ("number", "account", "name", "role", "created", "expires", "used", "revoked")
ORDERS_AT_ONCE = 500


@router.get("/runs.{form}")
def runs(
    request: Request, form: str, q: str = "", state: str = "", strategy: str = "", sort: str = "begun",
    order: str = "down",
) -> Response:  # fmt: skip
    """The list of runs, filtered and sorted as on its page, every line."""
    lines: RunLines = request.app.state.lines
    chosen = Choice(q, state, strategy, sort, order).of(lines.all())
    return table_in(form, "runs", RUN_COLUMNS, (_run(line) for line in chosen))


@router.get("/compare/figures.{form}")
def compared_figures(request: Request, form: str, run: Runs = [], split: str | None = None) -> Response:  # noqa: B006
    """The newest figures of some runs, a line a figure and run."""
    found = compared(request, run, split, "")
    rows = (
        [name, label, found.split, item.server_round, item.value, item.best]
        for name, items in found.figures
        for label, item in zip(found.labels, items, strict=True)
    )
    return table_in(form, "compared-figures", ("figure", "run", "split", "round", "value", "best"), rows)


@router.get("/compare/settings.{form}")
def compared_settings(request: Request, form: str, run: Runs = [], split: str | None = None) -> Response:  # noqa: B006
    """What differs between some runs, in their settings and environments."""
    found = compared(request, run, split, "")
    rows = ([name, *texts] for name, texts in (*found.settings, *found.environments))
    return table_in(form, "compared-settings", ("setting", *found.labels), rows)


@router.get("/act/orders.{form}")
def orders(request: Request, form: str) -> Response:
    """Every order, the newest first."""
    centre = centre_of(request)
    rows: list[OrderRow] = []
    before: int | None = None
    while found := history(centre, before=before, limit=ORDERS_AT_ONCE):
        rows += found
        before = found[-1].id
    return table_in(form, "orders", ORDER_COLUMNS, (_order(row) for row in rows))


@router.get("/accounts.{form}")
def all_accounts(request: Request, form: str) -> Response:
    """Every account; for admins."""
    allow(request, "admin")
    rows = ([getattr(row, name) for name in ACCOUNT_COLUMNS] for row in accounts.listed(centre_of(request)))
    return table_in(form, "accounts", ACCOUNT_COLUMNS, rows)


@router.get("/tokens.{form}")
def all_tokens(request: Request, form: str) -> Response:
    """Every API token without its secret, revoked ones too; for admins."""
    allow(request, "admin")
    rows = (
        (row.id, row.account.name, row.name, row.role, row.created, row.expires, row.used, row.revoked)
        for row in tokens.listed(centre_of(request))
    )
    return table_in(form, "tokens", TOKEN_COLUMNS, rows)


def _run(line: RunLine) -> tuple[object, ...]:
    run, best = line.run, line.best or (None, None)
    known = (
        (run.rounds_done, run.rounds_planned, line.left, run.strategy, run.seed, run.data_name, run.phantom,
         len(run.sites), *best, run.created)
        if run is not None
        else (None,) * 11
    )  # fmt: skip
    return (line.key, line.name, str(line.state.word), str(line.state.detail), *known)


def _order(row: OrderRow) -> tuple[object, ...]:
    arguments = json.dumps(row.arguments, ensure_ascii=False)
    return (row.id, row.kind, arguments, row.who, row.via, row.created, row.state, row.answer, row.decided)
