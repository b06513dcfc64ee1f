"""The keeper's side of the centre: two threads of its own, so that a centre that is away never holds the keeper up.

One carries out orders, one tells the pages how the server is. Both act as another process would: through the home's
locks and a connection to the SuperLink of their own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from sqlalchemy.engine import Engine

from popmi_core.errors import PopmiError
from server.centre import centre_database, open_centre
from server.control.carrying import Carrier
from server.control.contract import Control
from server.control.home import ServerHome
from server.control.telling import Teller

log = logging.getLogger("popmi.keeper")
LOOK_SECONDS = 1.0
LAST_SECONDS = 10.0
"""Seconds that an act which is going on may take when the keeper ends; its order waits for the next one then."""


class OpenControl(Control, Protocol):
    """A control plane with a connection to be closed."""

    def close(self) -> None:
        """Close it."""
        ...


class _Worker(Protocol):
    def look(self) -> None: ...


@contextmanager
def at_the_centre(
    home: ServerHome,
    ended: threading.Event,
    *,
    control: Callable[[], OpenControl],
    code: Callable[[], str],
    refused: Path | None = None,
    every: float = LOOK_SECONDS,
) -> Iterator[None]:
    """Carry out orders and tell the pages while the block lasts, until ``ended`` is set.

    Args:
        home: The server's home.
        ended: Set when the keeper ends.
        control: Opens a connection to the SuperLink.
        code: Returns the hash of the code that is installed.
        refused: Where the gateway counts what it refuses; by default in the home.
        every: Seconds between two looks.
    """

    def carry(engine: Engine, stack: ExitStack) -> _Worker:
        carrier = Carrier(home, _opened(control, stack), engine)
        stack.callback(carrier.close)
        return carrier

    def tell(engine: Engine, stack: ExitStack) -> _Worker:
        return Teller(home, _opened(control, stack), engine, code=code, refused=refused)

    threads = [
        threading.Thread(target=_look_after, args=(name, home, ended, make, every), name=name, daemon=True)
        for name, make in (("orders", carry), ("board", tell))
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(LAST_SECONDS)


def _look_after(
    name: str,
    home: ServerHome,
    ended: threading.Event,
    make: Callable[[Engine, ExitStack], _Worker],
    every: float,
) -> None:
    said = ""
    with ExitStack() as stack:
        worker: _Worker | None = None
        while not ended.is_set():
            try:
                if worker is None:
                    engine = open_centre(centre_database(home.folder))
                    stack.callback(engine.dispose)
                    worker = make(engine, stack)
                worker.look()
                if said:
                    log.warning("%s: well again", name)
                said = ""
            except PopmiError as error:
                # Once for each trouble: it is looked at again every second.
                if str(error) != said:
                    log.warning("%s: %s", name, error)
                said = str(error)
            except Exception as error:
                if (told := f"unexpected {type(error).__name__}: {error}") != said:
                    log.exception("%s", name)
                said = told
            ended.wait(every)


def _opened(control: Callable[[], OpenControl], stack: ExitStack) -> OpenControl:
    opened = control()
    stack.callback(opened.close)
    return opened
