"""The pages' own process: the port, TLS, the link by which the first admin is made, an orderly end."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from popmi_core.errors import ConfigError
from server.centre import onetime, open_centre
from server.centre.sessions import SessionLimits
from server.connections import BoundedServer, ConnectionLimits, PromptH11
from server.dashboard.access.binding import Binding, check
from server.dashboard.app import create_app

HEADER_BYTES = 32 * 1024
PROXY_CONNECTIONS = 4_000
"""Everybody comes from a proxy's one address."""


@dataclass(frozen=True)
class Opened:
    """What the terminal is told once the pages answer: their address, and the first admin's link where one is due."""

    address: str
    first_admin: str | None


def serve(
    runs: str | Path,
    binding: Binding,
    *,
    centre: str | Path | None = None,
    runs_folder: Path | None = None,
    limits: SessionLimits | None = None,
    ready: Callable[[Opened], None] | None = None,
) -> None:
    """Serve the pages until Ctrl-C.

    Args:
        runs: Folder of runs, one run folder, or a database URL.
        binding: Where to listen, and by which names.
        centre: The centre's file or database URL, with the accounts; None: nobody signs in.
        runs_folder: Folder with the runs' model files, where it is not ``runs``.
        limits: How long a session lasts.
        ready: Called once the port is taken, before the first answer.

    Raises:
        ConfigError: If others could reach the pages without TLS or without signing in, or the port is taken.
        RunError: If the centre cannot be reached.
    """
    check(binding, login=centre is not None)
    engine = None if centre is None else open_centre(centre)
    app = create_app(runs, binding=binding, centre=engine, runs_folder=runs_folder, limits=limits)
    listener = _listen(binding)
    secret = None if engine is None else onetime.first_admin(engine)
    if ready is not None:
        ready(Opened(binding.address(), secret and f"{binding.address()}/first?key={secret}"))
    config = _config(app, binding)
    each = PROXY_CONNECTIONS if binding.behind_proxy is not None else ConnectionLimits.each
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after its own orderly end
        _Server(config, ConnectionLimits(each=each)).run(sockets=[listener])
    if engine is not None:
        engine.dispose()


class _Server(BoundedServer):
    """Ends the event streams first: uvicorn would wait for them for ever."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        application = self.config.app
        if isinstance(application, FastAPI):
            application.state.watcher.stop()


def _config(app: FastAPI, binding: Binding) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=PromptH11,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        # Whom to believe about where a request came from is the guard's matter.
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=HEADER_BYTES,
        ssl_certfile=binding.certificate,
        ssl_keyfile=binding.key,
        ssl_keyfile_password="" if binding.key is not None else None,
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    # Where the address is private, what was asked for is nobody's business: no log holds it.
    logging.getLogger("uvicorn.access").disabled = True
    return config


def _listen(binding: Binding) -> socket.socket:
    host, port = binding.host, binding.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}. Choose another with --port.") from error
    return listener
