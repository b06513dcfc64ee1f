"""Call something every few seconds beside the work."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Heartbeat:
    """Calls ``beat`` every ``seconds`` in its own thread, from :meth:`start` to :meth:`stop`; 0 means never."""

    def __init__(self, beat: Callable[[], None], seconds: float) -> None:
        self._beat = beat
        self._seconds = seconds
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; a second call changes nothing."""
        if self._seconds > 0 and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="popmi-record-heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End, and wait for a beat under way."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            self._beat()
