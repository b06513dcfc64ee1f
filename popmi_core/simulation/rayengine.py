"""The same apps on Flower's own simulation engine, Ray: one process per worker."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, cast

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from popmi_core.errors import ConfigError


def run_ray(
    server_app: ServerApp, client_app: ClientApp, *, num_sites: int, run_config: Mapping[str, Any], cpus_per_site: int
) -> None:
    """Run a whole federated run on Ray; nodes are numbered, so the server sends the lineup along.

    Raises:
        ConfigError: If Ray is not installed.
        KeyboardInterrupt: If it was stopped; the server app has closed its record by then.
        Whatever the server app raises.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--engine ray needs the package ray. Install popmi[ray] or use --engine inprocess."
        ) from error
    # Before Flower's engine starts: neither it nor Ray shall call home.
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    configured, stopping = ServerApp(), threading.Event()

    @configured.main()
    def main(grid: Grid, context: Context) -> None:
        # The engine hands over an empty run configuration; the deployed one does not.
        context.run_config.update(run_config)
        # Once the server app has ended, the engine ends in order; the main thread then goes on with the interrupt.
        with suppress(KeyboardInterrupt):
            server_app(cast(Grid, _Stoppable(grid, stopping)), context)

    with _signals_set(stopping):
        run_simulation(
            server_app=configured,
            client_app=client_app,
            num_supernodes=num_sites,
            backend_config={
                "client_resources": {"num_cpus": cpus_per_site, "num_gpus": 0.0},
                "init_args": {"include_dashboard": False, "log_to_driver": False},
            },
        )
    if stopping.is_set():
        raise KeyboardInterrupt


@contextmanager
def _signals_set(stopping: threading.Event) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM set ``stopping``; a second one interrupts at once.

    Raised in the main thread, KeyboardInterrupt would leave the engine's workers and the server app waiting for each
    other in their own threads: the record would never be closed and the process never end.
    Ray's own handler takes SIGTERM over once it runs and aborts, as a kill would: such a run can be resumed as well.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            # A shell's background job ignores Ctrl-C, and goes on doing so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stoppable:
    """A grid whose waiting ends in KeyboardInterrupt once ``stopping`` is set."""

    def __init__(self, grid: Grid, stopping: threading.Event) -> None:
        self._grid, self._stopping = grid, stopping

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there; whoever waits for some comes here again and again.

        Raises:
            KeyboardInterrupt: If the run was stopped meanwhile.
        """
        if self._stopping.is_set():
            raise KeyboardInterrupt
        return self._grid.pull_messages(message_ids)
