"""`popmi server up`: all processes under one supervisor, or one of them in this process, as a container wants it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from popmi_core.deployment.supervise import Supervisor
from popmi_core.errors import SetupError
from server.control.home import ServerHome, ServerSettings
from server.control.operate import prepare
from server.control.superlink import Places, processes, split_address

log = logging.getLogger("popmi.server")


def run_all(home: ServerHome, places: Places) -> None:
    """Start every process and keep it going until SIGTERM or Ctrl-C.

    Raises:
        SetupError: If this is no server's home, or it is up already.
    """
    _log_to_terminal()
    settings = home.settings()
    with home.alone("server"):
        prepare(home, settings)
        home.note("server.up", endpoint=settings.endpoint)
        Supervisor(list(processes(home, settings, places).values()), home.processes).run()
        home.note("server.down")


def run_part(home: ServerHome, part: str, places: Places) -> None:
    """Be one process of the server until SIGTERM or Ctrl-C; Flower's and the pages take this process's place.

    Raises:
        SetupError: If this is no server's home, or the part cannot run.
    """
    _log_to_terminal()
    settings = home.settings()
    if part == "gateway":
        run_gateway(home, settings, places)
    elif part == "keeper":
        run_keeper(home, settings, places)
    else:
        process = processes(home, settings, places)[part]
        try:
            os.execvpe(process.command[0], list(process.command), {**os.environ, **process.env})
        except OSError as error:
            raise SetupError(
                f"cannot start {process.command[0]}: {error.strerror}. Install popmi[server] into this environment."
            ) from error


def run_gateway(home: ServerHome, settings: ServerSettings, places: Places) -> None:
    """Be the gateway.

    Raises:
        SetupError: If its port cannot be taken.
    """
    from server.connections import ConnectionLimits
    from server.control.clocks import CLOCKS_FILE, Clocks
    from server.control.gateway import Gateway, serve, upstream_client
    from server.control.tally import Tally

    port, refused = places.port or split_address(settings.endpoint)[1], places.refused or home.refused
    clocks = Clocks(refused.with_name(CLOCKS_FILE))
    upstream = upstream_client(settings.superlink, home.ca)
    serve(
        Gateway(upstream, counted=Tally(refused).add, heard=clocks.heard),
        host=places.host,
        port=port,
        certificate=home.certificate,
        key=home.key,
        limits=ConnectionLimits(each=settings.connections_per_address),
        started=lambda: log.info("the gateway listens on %s port %d", places.host, port),
    )


def run_keeper(home: ServerHome, settings: ServerSettings, places: Places) -> None:
    """Be the keeper, and the one whom the pages ask.

    Raises:
        SetupError: If there is another.
    """
    from server.control.centreside import at_the_centre
    from server.control.flower import FlowerControl, pack_bundle
    from server.control.keeper import Keeper

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())

    def control() -> FlowerControl:
        return FlowerControl(settings.superlink, home.ca)

    with (
        home.alone("keeper"),
        control() as own,
        at_the_centre(home, ended, control=control, code=lambda: pack_bundle()[1], refused=places.refused),
    ):
        Keeper(home, own, pack=pack_bundle, confirm_from=places.confirm_from, refused=places.refused).run(ended)


def _log_to_terminal() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
