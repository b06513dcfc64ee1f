"""The page of the audit log: what was done and what went wrong, found by filters, verified, exported."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Engine
from starlette.responses import Response, StreamingResponse

from popmi_core.errors import RunError
from server.centre.trail import Filter, TrailLine, Verified, Verifier, count_trail, events_of, trail, whole_trail
from server.dashboard.catalogue import NotFound
from server.dashboard.downloads import disposition, table_row
from server.dashboard.keeping import Told, told
from server.dashboard.language import N_
from server.dashboard.rendering import render_live

router = APIRouter(include_in_schema=False)
LINES_A_PAGE = 100
COLUMNS = ("number", "time", "event", "who", "run", "site", "details", "digest")
Asked = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
Day = Annotated[str, Field(max_length=10, json_schema_extra={"anyOf": [{"format": "date"}, {"maxLength": 0}]})]


class Search(BaseModel):
    """What the form holds, as it was typed: days are in UTC, an empty field asks for everything."""

    model_config = ConfigDict(frozen=True)

    event: Asked = ""
    who: Asked = ""
    run: Asked = ""
    site: Asked = ""
    since: Day = ""
    until: Day = ""
    text: Asked = ""
    before: Annotated[int | None, Field(ge=1, le=2**31 - 1)] = None
    limit: Annotated[int, Field(ge=1, le=1000)] = LINES_A_PAGE

    def query(self) -> str:
        """Return the fields that are filled in, for a link."""
        return urlencode({name: value for name, value in self.model_dump(exclude={"before", "limit"}).items() if value})

    def filter(self) -> Filter:
        """Return what is asked for.

        Raises:
            ValueError: If a day is none.
        """
        return Filter(
            event=self.event or None,
            who=self.who or None,
            run=self.run or None,
            site=self.site or None,
            since=_day(self.since) if self.since else None,
            # The whole of the last day too.
            until=_day(self.until, later=timedelta(days=1)) if self.until else None,
            text=self.text or None,
        )


def verified(request: Request, centre: Engine) -> Verified:
    """Return whether the log's chain is whole; verified by one for all who look."""
    state = request.app.state
    if not hasattr(state, "verifier"):
        state.verifier = Verifier()
    found: Verified = state.verifier.look(centre)
    return found


def centre_of(request: Request) -> Engine | None:
    """Return the centre, None where these pages have none."""
    found: Engine | None = getattr(request.app.state, "centre", None)
    return found


@router.get("/audit")
def audit_page(request: Request, search: Annotated[Search, Query()]) -> Response:
    """The log, newest line first."""
    before = search.before
    centre = centre_of(request)
    known: dict[str, Any] = {
        "search": search, "lines": (), "number": 0, "events": (), "chain": None, "trouble": "",
        "older": None, "copying": Told(), "before": before,
    }  # fmt: skip
    if centre is None:
        return render_live(request, "audit", **known)
    try:
        wanted = search.filter()
    except ValueError:
        said = N_("A day is written like 2026-11-30. Correct the day and ask again.")
        return render_live(request, "audit", status=400, **(known | {"trouble": said}))
    try:
        lines = trail(centre, wanted, before=before, limit=LINES_A_PAGE + 1)
        known |= {
            "lines": lines[:LINES_A_PAGE],
            "number": count_trail(centre, wanted),
            "events": events_of(centre),
            "chain": verified(request, centre),
            "copying": told(request, "audit"),
            "older": lines[LINES_A_PAGE - 1].number if len(lines) > LINES_A_PAGE else None,
        }
    except RunError as error:
        return render_live(request, "audit", status=503, **(known | {"trouble": str(error)}))
    return render_live(request, "audit", **known)


@router.get("/audit.{kind}")
def audit_file(request: Request, kind: str, search: Annotated[Search, Query()]) -> Response:
    """The lines that the filters find, oldest first, as CSV or as they stand in the log (JSON lines)."""
    centre = centre_of(request)
    if centre is None or kind not in ("csv", "jsonl"):
        raise NotFound(f"audit.{kind}")
    try:
        wanted = search.filter()
    except ValueError as error:
        raise NotFound(f"audit.{kind}") from error
    rest = whole_trail(centre, wanted)
    # The first one before anything is sent: a centre that is away is told as everywhere.
    lines = chain(tuple(islice(rest, 1)), rest)
    headers = {"Content-Disposition": disposition(f"audit.{kind}")}
    if kind == "csv":
        return StreamingResponse(_csv(lines), media_type="text/csv; charset=utf-8", headers=headers)
    whole = (f"{line.line}\n" for line in lines)
    return StreamingResponse(whole, media_type="application/jsonl; charset=utf-8", headers=headers)


def _csv(lines: Iterable[TrailLine]) -> Iterator[str]:
    yield table_row(COLUMNS)
    for line in lines:
        moment = datetime.fromtimestamp(line.time, UTC).isoformat()
        details = json.dumps(line.details, ensure_ascii=False)
        yield table_row((line.number, moment, line.event, line.who, line.run, line.site, details, line.digest))


def _day(text: str, *, later: timedelta = timedelta()) -> float:
    try:
        return (datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC) + later).timestamp()
    except OverflowError as error:
        raise ValueError(f"the day after {text} is none") from error
