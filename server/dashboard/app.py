"""The pages: runs, one run, its curves, live; JSON and CSV of the same.

Bound to this machine, read-only, no cookie, no outside request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request
from fastapi.staticfiles import StaticFiles
from starlette.responses import JSONResponse, Response

from popmi_core.errors import ConfigError, RunError
from server.dashboard import api, metrics
from server.dashboard.access import Refused
from server.dashboard.access.answers import refused
from server.dashboard.catalogue import NotFound, open_catalogue
from server.dashboard.events import Watcher
from server.dashboard.pages import audit as audit_pages
from server.dashboard.pages import models as models_pages
from server.dashboard.pages import runs as runs_pages
from server.dashboard.pages import sites as sites_pages
from server.dashboard.rendering import render
from server.dashboard.security import LocalOnly, require_loopback

STATIC = Path(__file__).parent / "static"


def create_app(runs: str | Path, *, metrics_name: str | None = None) -> FastAPI:
    """Return the application over a folder of runs, one run folder, or a database URL.

    ``metrics_name`` is a further host name under which ``/metrics`` answers.

    Raises:
        ConfigError: If ``runs`` is a file.
    """
    catalogue = open_catalogue(runs)
    watcher = Watcher(catalogue)

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
    app.add_middleware(LocalOnly, metrics_name=metrics_name)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.include_router(api.router)
    app.include_router(metrics.router)
    app.include_router(runs_pages.router)
    app.include_router(models_pages.router)
    app.include_router(audit_pages.router)
    app.include_router(sites_pages.router)
    app.add_exception_handler(NotFound, _unknown)
    app.add_exception_handler(RunError, _unreadable)
    app.add_exception_handler(404, _unknown)
    app.add_exception_handler(Refused, refused)
    return app


def serve(
    runs: str | Path,
    *,
    host: str,
    port: int,
    published_on: str | None = None,
    metrics_name: str | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve the pages until Ctrl-C; ``ready`` is called once the port is taken.

    Args:
        runs: Folder of runs, one run folder, or a database URL.
        host: Address to listen on.
        port: Port to listen on.
        published_on: In a container, the machine's address on which its port is published.
        metrics_name: A further host name under which ``/metrics`` answers.
        ready: Called before the first answer.

    Raises:
        ConfigError: If others than this machine could reach the pages, or ``port`` is taken.
    """
    require_loopback(host, published_on=published_on)
    app = create_app(runs, metrics_name=metrics_name)
    listener = _listen(host, port)
    if ready is not None:
        ready()
    config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=3)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after its own orderly end
        _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Ends the event streams first: uvicorn would wait for them for ever."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        application = self.config.app
        if isinstance(application, FastAPI):
            application.state.watcher.stop()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}. Choose another with --port.") from error
    return listener


def _unknown(request: Request, _: Exception) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": "no such run or table"}, status_code=404)
    return render(request, "message.html", status=404, title="Not found", text="There is no such page or run.")


def _unreadable(request: Request, error: Exception) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": str(error)}, status_code=503)
    return render(request, "message.html", status=503, title="The record cannot be read", text=str(error))
