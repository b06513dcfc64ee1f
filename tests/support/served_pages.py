"""The pages behind a real port, in a thread of the test."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import signing_in
from sqlalchemy.engine import Engine

from server.connections import ConnectionLimits
from server.dashboard import serving
from server.dashboard.access.binding import Binding


@contextmanager
def served(
    centre: Engine | None, runs: Path, *, binding: Binding | None = None, connections: Any = None, **more: Any
) -> Iterator[Binding]:
    """Serve until the block ends; hands out where."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = replace(binding or Binding(), port=port)
    app = signing_in.app_of(centre, runs, binding=place, **more)
    server = serving._Server(serving._config(app, place), connections or ConnectionLimits())
    listener = serving._listen(place)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield place
    finally:
        app.state.watcher.stop()
        server.should_exit = True
        thread.join(timeout=30)


@contextmanager
def reader(binding: Binding, **more: Any) -> Iterator[httpx.Client]:
    """Open a browser at the port."""
    with httpx.Client(base_url=binding.address(), timeout=30, **more) as client:
        yield client
