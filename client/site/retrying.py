"""After what a node asks again: a connection that broke off inside TLS, a heartbeat that was not taken.

Flower 1.41 takes every error whose text holds "ssl" or "tls" for a handshake that can never succeed, and gives up: a
look for a question then ends the node, and an answer is thrown away. But a gateway that is killed, or too busy to
shake hands in time, ends a connection with just such a text. And a heartbeat that is answered with another status than
502, 503 or 504 ends the thread that sends them: the node works on, and is off line for the server from then on.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable

import httpx
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.retry import RetryInvoker
from flwr.supernode import fleet_http_connection as connection

from popmi_core.errors import SetupError

log = logging.getLogger("popmi.node")
_flowers_invoker: Callable[[], RetryInvoker] = vars(connection)["make_simple_http_retry_invoker"]
BROKEN_OFF = ("eof occurred", "unexpected_eof", "timed out", "connection reset", "broken pipe")
"""What the texts hold of a connection that ended in the middle; a certificate that does not fit reads otherwise."""


def ask_again() -> None:
    """Have this process's node ask again as described above.

    Raises:
        SetupError: If this version of Flower does it elsewhere.
    """
    names = vars(connection)
    if "HeartbeatSender" not in names:
        raise SetupError("this version of Flower sends heartbeats elsewhere, expected flwr 1.41. Install popmi[site].")
    names.update(make_simple_http_retry_invoker=asking_again, HeartbeatSender=LastingHeartbeats)


def asking_again() -> RetryInvoker:
    """Return Flower's way of asking again, which here also counts a connection that broke off inside TLS."""
    invoker = _flowers_invoker()
    given_up = invoker.should_giveup
    assert given_up is not None

    def should_giveup(error: Exception) -> bool:
        if isinstance(error, httpx.TransportError) and any(word in str(error).lower() for word in BROKEN_OFF):
            return False
        return given_up(error)

    invoker.should_giveup = should_giveup
    return invoker


class LastingHeartbeats(HeartbeatSender):
    """Flower's, which here outlasts an answer that it does not expect; a node the server does not know is ended.

    Args:
        beat: Sends one heartbeat; returns whether it was taken.
    """

    def __init__(self, beat: Callable[[], bool]) -> None:
        super().__init__(lambda: self._sent(beat))

    def _sent(self, beat: Callable[[], bool]) -> bool:
        try:
            return beat()
        except httpx.HTTPStatusError as error:
            # After a refused key (401) Flower has told the process to end.
            log.warning("a heartbeat was answered with %d and is sent again", error.response.status_code)
        except RuntimeError as error:
            # The next node signs in anew; this one would stay off line.
            log.warning("the node ends: %s", error)
            os.kill(os.getpid(), signal.SIGINT)
        return False
