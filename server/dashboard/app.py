"""The pages as one application: runs, sites, models and the audit log, live; JSON and CSV of the same.

Where there is a centre, people sign in; where there is none, everybody on this machine may look. No outside request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, Response

from popmi_core.errors import RunError
from server.centre.reaching import CentreAway, CentreRefuses
from server.centre.sessions import SessionLimits, alive
from server.dashboard import api, federation_api, metrics, orders_api
from server.dashboard.access import Refused
from server.dashboard.access.answers import away, refused
from server.dashboard.access.binding import Binding
from server.dashboard.access.described import describe
from server.dashboard.access.guard import Guard
from server.dashboard.access.unforeseen import Unforeseen
from server.dashboard.catalogue import NotFound, open_catalogue
from server.dashboard.events import Watcher
from server.dashboard.language import N_
from server.dashboard.methods import not_so
from server.dashboard.pages import account, accounts, act, act_confirm, act_start, files, signin
from server.dashboard.pages import audit as audit_pages
from server.dashboard.pages import compare as compare_pages
from server.dashboard.pages import models as models_pages
from server.dashboard.pages import run as run_pages
from server.dashboard.pages import runs as runs_pages
from server.dashboard.pages import sites as sites_pages
from server.dashboard.rendering import render
from server.dashboard.runlines import RunLines
from server.dashboard.sections import RunSections
from server.dashboard.security import Hardened

STATIC = Path(__file__).parent / "static"
_UNREADABLE = N_("The record cannot be read")
_NO_DATABASE = N_("The server's database cannot be used")
_NOTHING = N_("There is nothing at this address: no page, run, site, model or order of this name is known here.")
_NOTHING_API = "there is nothing of this name: see /api/v1/openapi.json"
_MISSPELT = N_("The address asks for something in a form that these pages do not know. Go back, and follow a link.")


def create_app(
    runs: str | Path,
    *,
    binding: Binding | None = None,
    centre: Engine | None = None,
    runs_folder: Path | None = None,
    limits: SessionLimits | None = None,
) -> FastAPI:
    """Return the application over a folder of runs, one run folder, or a database URL.

    Args:
        runs: Where the records are.
        binding: Where the pages listen; default: this machine only.
        centre: The centre, with the accounts; None: nobody signs in, and nobody can act.
        runs_folder: Folder with the runs' model files; None: beside their records, where those are files.
        limits: How long a session lasts.

    Raises:
        ConfigError: If ``runs`` is a file.
    """
    catalogue, limits, binding = open_catalogue(runs), limits or SessionLimits(), binding or Binding()

    def let_in(sessions: Collection[str]) -> Collection[str]:
        return sessions if centre is None else alive(centre, sessions, limits)

    watcher = Watcher(catalogue, let_in)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(watcher.run())
        yield
        task.cancel()

    # FastAPI's own documentation pages load scripts from elsewhere; the OpenAPI file itself stays.
    app = FastAPI(
        title="POPMI runs", docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json", lifespan=lifespan
    )
    app.state.catalogue, app.state.watcher = catalogue, watcher
    app.state.sections, app.state.lines = RunSections(catalogue), RunLines(catalogue)
    app.state.binding, app.state.centre, app.state.limits = binding, centre, limits
    app.state.runs_folder = runs_folder
    # The last one added is the first one asked. Event streams are not packed, nor what was packed once for many.
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=4)
    app.add_middleware(Guard, binding=binding, centre=centre, limits=limits)
    app.add_middleware(Unforeseen)
    app.add_middleware(Hardened, binding=binding)
    app.mount("/static", StaticFiles(directory=STATIC))
    _add_routes(app)
    _add_answers(app)
    describe(app)
    return app


def _add_routes(app: FastAPI) -> None:
    for module in (api, federation_api, orders_api, metrics):
        app.include_router(module.router)
    for module in (files, runs_pages, run_pages, compare_pages, models_pages, audit_pages, sites_pages):
        app.include_router(module.router)
    for module in (signin, account, accounts):
        app.include_router(module.router)
    # A run and an enrolment have pages of their own, which come before the page of any act.
    for module in (act_start, act_confirm, act):
        app.include_router(module.router)


def _add_answers(app: FastAPI) -> None:
    app.add_exception_handler(NotFound, _unknown)
    app.add_exception_handler(RunError, _unreadable)
    app.add_exception_handler(404, _unknown)
    app.add_exception_handler(405, not_so)
    app.add_exception_handler(RequestValidationError, _misspelt)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(SQLAlchemyError, away)


def _unknown(request: Request, error: Exception) -> Response:
    if request.url.path.startswith("/api/"):
        said = error.detail if isinstance(error, HTTPException) and error.detail != "Not Found" else _NOTHING_API
        return JSONResponse({"detail": said}, status_code=404)
    return render(request, "message.html", status=404, title=N_("Not found"), text=_NOTHING)


def _misspelt(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if request.url.path.startswith("/api/"):
        # Without what was sent: half a letter or an infinity of it could not be sent back.
        told = [{**item, "loc": [_plain(part) for part in item["loc"]]} for item in error.errors()]
        detail = [{key: item[key] for key in ("type", "loc", "msg")} for item in told]
        return JSONResponse({"detail": detail}, status_code=422)
    return render(request, "message.html", status=422, title=N_("Not understood"), text=_MISSPELT)


def _plain(part: str | int) -> str | int:
    return part.encode("utf-8", "replace").decode() if isinstance(part, str) else part


def _unreadable(request: Request, error: Exception) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": str(error)}, status_code=503)
    title = _NO_DATABASE if isinstance(error, CentreAway | CentreRefuses) else _UNREADABLE
    return render(request, "message.html", status=503, title=title, text=str(error))
