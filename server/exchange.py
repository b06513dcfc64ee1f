"""Ask sites and take their answers as they come: deadline, quorum, sites that restart, and answers that come late.

One answer after the other is handed on and let go of, so that what the server holds does not grow with the number of
sites. Flower's own loop holds all of them, asks a slow site again every round, and tells neither who was late nor why.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from popmi_core.limits import LimitsConfig
from popmi_core.records import array_records
from server.weighing import Room, at_most
from server.wire import packed

BATCH = 4
"""Answers fetched in one go: more would be held at once."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
WATCH_SECONDS = 5.0
"""How often the list of nodes is looked at while answers are awaited."""
OFFLINE_PATIENCE = 45.0
"""Seconds a node may be off line before it is given up: a line that drops for a moment loses nothing."""
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, AssertionError, DecodeError)
"""What Flower's decoder and protobuf's make of a stranger's bytes; an error of the line is none of these."""
TTL_FACTOR = 2.0
"""A question lives twice as long as its deadline: what comes late is told, and a site still at it is left alone."""


@dataclass(frozen=True)
class Question:
    """One message to one site, as it was first meant to be sent."""

    site: str
    server_round: int
    message: Message


@dataclass(frozen=True)
class Late:
    """An answer after its question was closed: whose, to which round, of what kind, how many seconds too late."""

    site: str
    server_round: int
    kind: str
    seconds: float


@dataclass
class _Asked:
    question: Question
    node: int
    activated: str
    again: int
    deadline: float
    life: float | None
    offline_since: float | None = None
    closed: float | None = None
    expires: float = 0.0
    most_bytes: float = math.inf


@dataclass
class Round:
    """Who was asked (site by message id) and why a site has no answer; both fill while answers are taken.

    ``spoilt``: whoever takes the answers puts sites there whose answer is of no use. They make no quorum. ``room``:
    what an answer may weigh, to be told before the first is taken.
    """

    asked: dict[str, str] = field(default_factory=dict)
    missing: dict[str, tuple[str, str]] = field(default_factory=dict)
    spoilt: set[str] = field(default_factory=set)
    room: Room = field(default_factory=Room)


class Exchange:
    """Questions over one grid for a whole run.

    Args:
        grid: Over which messages go. One whose ``answers_at_once`` is true is asked site by site.
        timeout: Seconds from the question to its deadline.
        limits: Quorum, grace, and how often a restarted site is asked anew.
        late: Hears of every answer that comes after its question was closed.
        clock: Seconds, growing; ``pause`` waits for as many.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        timeout: float,
        limits: LimitsConfig,
        late: Callable[[Late], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.grid, self.timeout, self.limits, self.late = grid, timeout, limits, late
        self._clock, self._pause = clock, pause
        self._open: dict[str, _Asked] = {}
        self._closed: dict[str, _Asked] = {}
        self._suspects: set[str] = set()
        self._watched = -WATCH_SECONDS

    @property
    def busy(self) -> dict[str, int]:
        """Sites still at an earlier question, with its round."""
        now = self._clock()
        self._closed = {key: item for key, item in self._closed.items() if item.expires > now}
        return {item.question.site: item.question.server_round for item in self._closed.values()}

    def hear(self) -> None:
        """Take what comes late, outside of any question, and forget questions that their node has forgotten."""
        if self._closed:
            self._forget_restarted(self._nodes())
            for _ in self._take(Round()):
                pass

    def ask(
        self, questions: Sequence[Question], round_: Round, *, timeout: float | None = None, life: float | None = None
    ) -> Iterator[Message]:
        """Send, and yield every answer once, in the order they come; errors are answers, too.

        ``life``: seconds in which a site may go on working at its question, ``TTL_FACTOR`` times the time to its
        deadline where None.

        ``round_`` is filled on the way. Ends when all have answered, at the deadline, or ``limits.grace`` seconds after
        ``limits.quorum`` sites have given one of use: what fails comes fastest, and must not close the question.
        """
        begun = self._clock()
        deadline = begun + (self.timeout if timeout is None else timeout)
        activated = self._nodes()
        self._forget_restarted(activated)
        if getattr(self.grid, "answers_at_once", False):
            for question in questions:
                self._send(question, activated, round_, deadline, again=0)
                yield from self._take(round_)
            # Nothing comes later on such a grid.
            round_.missing |= {item.question.site: ("unreachable", "no answer") for item in self._open.values()}
            self._open = {}
            return
        for question in for_the_way(questions):
            self._send(question, activated, round_, deadline, again=self.limits.again, life=life)
        yield from self._until_closed(round_, deadline)
        self._close(round_, self._clock() - begun)

    def _until_closed(self, round_: Round, deadline: float) -> Iterator[Message]:
        answered, enough, pause = set[str](), None, FIRST_PAUSE
        while self._open:
            came = 0
            for message in self._take(round_):
                came += 1
                if not message.has_error():
                    answered.add(round_.asked[message.metadata.reply_to_message_id])
                yield message
            now = self._clock()
            if (
                self.limits.quorum is not None
                and len(answered - round_.spoilt) >= self.limits.quorum
                and enough is None
            ):
                enough = now + self.limits.grace
            if now >= deadline or (enough is not None and now >= enough):
                return
            pause = FIRST_PAUSE if came else min(2 * pause, LONGEST_PAUSE)
            if self._open:
                self._watch(round_, deadline)
                self._pause(min(pause, max(deadline - now, 0.0)))

    def _send(
        self,
        question: Question,
        activated: dict[int, str],
        round_: Round,
        deadline: float,
        *,
        again: int,
        life: float | None = None,
    ) -> None:
        message, node = question.message, question.message.metadata.dst_node_id
        ttl = TTL_FACTOR * max(deadline - self._clock(), 1.0) if life is None else life
        fresh = Message(
            message.content, node, message.metadata.message_type, ttl=ttl, group_id=message.metadata.group_id
        )
        found = next(iter(self.grid.push_messages([fresh])), None)
        if not found:
            round_.asked[f"unsent {question.site}"] = question.site
            round_.missing[question.site] = ("unreachable", "the question could not be handed to Flower's SuperLink")
            return
        round_.asked[found] = question.site
        expires = self._clock() + ttl
        self._open[found] = _Asked(
            question, node, activated.get(node, ""), again, deadline, life, expires=expires,
            most_bytes=round_.room.most_bytes,
        )  # fmt: skip

    def _take(self, round_: Round) -> Iterator[Message]:
        waiting = [key for key, item in [*self._open.items(), *self._closed.items()] if item.offline_since is None]
        for keys in self._batches(waiting):
            for message in self._pulled(keys, round_):
                key = message.metadata.reply_to_message_id
                if key in self._closed:
                    self._tell_late(self._closed.pop(key), message)
                elif key in self._open:
                    item = self._open.pop(key)
                    if _has_crashed(message) and item.again > 0 and self._clock() < item.deadline:
                        # The node is there and lives: what was killed beside it is up again by now.
                        activated = {item.node: item.activated}
                        self._send(
                            item.question, activated, round_, item.deadline, again=item.again - 1, life=item.life
                        )
                    else:
                        yield message

    def _batches(self, waiting: Sequence[str]) -> Iterator[list[str]]:
        items = {**self._open, **self._closed}
        apart = [key for key in waiting if items[key].question.site in self._suspects]
        together = [key for key in waiting if key not in apart]
        yield from ([key] for key in apart)
        yield from (together[begin : begin + BATCH] for begin in range(0, len(together), BATCH))

    def _pulled(self, keys: list[str], round_: Round) -> Iterable[Message]:
        """Return the answers to these questions; those that Flower itself cannot open end as ``quarantined``.

        It names none of what it fetched together, and hands nothing out twice: all of them are lost for this question,
        and from then on each is fetched by itself.
        """
        items = {**self._closed, **self._open}
        most = max((items[key].most_bytes for key in keys if key in items), default=math.inf)
        try:
            with at_most(most):
                return self.grid.pull_messages(keys)
        except UNREADABLE as error:
            self._closed = {key: item for key, item in self._closed.items() if key not in keys}
            sites = sorted({self._open.pop(key).question.site for key in keys if key in self._open})
            self._suspects.update(sites)
            whose = "its answer" if len(sites) == 1 else f"an answer of {', '.join(sites)}"
            why = f"{whose} is no message that Flower can open ({type(error).__name__}). Look who wrote the site's node"
            round_.missing |= dict.fromkeys(sites, ("quarantined", why))
            return ()

    def _tell_late(self, item: _Asked, message: Message) -> None:
        # An error here is only Flower's word that a question has expired.
        if not message.has_error() and item.closed is not None:
            question = item.question
            kind = question.message.metadata.message_type
            self.late(Late(question.site, question.server_round, kind, self._clock() - item.closed))

    def _watch(self, round_: Round, deadline: float) -> None:
        now = self._clock()
        if now - self._watched < WATCH_SECONDS or not hasattr(self.grid, "get_nodes"):
            return
        self._watched, activated = now, self._nodes()
        for key, item in list(self._open.items()):
            if item.node not in activated:
                item.offline_since = now if item.offline_since is None else item.offline_since
                if now - item.offline_since >= OFFLINE_PATIENCE:
                    del self._open[key]
                    why = f"off line for {now - item.offline_since:.0f} s. Look at the site's network and its node"
                    round_.missing[item.question.site] = ("unreachable", why)
                continue
            item.offline_since = None
            if activated[item.node] != item.activated:
                del self._open[key]
                self._ask_again(item, activated, round_, deadline)

    def _ask_again(self, item: _Asked, activated: dict[int, str], round_: Round, deadline: float) -> None:
        # A node that was started anew has forgotten what it was asked: its reply would never come.
        if item.again > 0 and self._clock() < deadline:
            self._send(item.question, activated, round_, deadline, again=item.again - 1, life=item.life)
        else:
            times = self.limits.again - item.again + 1
            why = f"the site's node restarted {times} time(s) before it answered. Look at its log and its memory"
            round_.missing[item.question.site] = ("failed", why)

    def _close(self, round_: Round, seconds: float) -> None:
        now = self._clock()
        for key, item in self._open.items():
            site = item.question.site
            if item.offline_since is not None:
                round_.missing[site] = ("unreachable", f"off line when the question was closed after {seconds:.0f} s")
            else:
                round_.missing[site] = ("late", f"no answer when the question was closed after {seconds:.0f} s")
                # Without what it carried: a model for every site that is late would stay here.
                empty = _empty(item.question.message)
                self._closed[key] = replace(item, closed=now, question=replace(item.question, message=empty))
        self._open = {}

    def _forget_restarted(self, activated: dict[int, str]) -> None:
        self._closed = {
            key: item
            for key, item in self._closed.items()
            if activated.get(item.node, item.activated) == item.activated
        }

    def _nodes(self) -> dict[int, str]:
        """Return the nodes that are on line, each with when it was started last (empty where nobody knows)."""
        if not hasattr(self.grid, "get_nodes"):
            return dict.fromkeys(self.grid.get_node_ids(), "")
        nodes: Iterable[Any] = self.grid.get_nodes()
        return {node.node_id: str(node.last_activated_at) for node in nodes}


def _has_crashed(message: Message) -> bool:
    """Return whether a message is the node's word that what worked at its question ended without an answer."""
    return message.has_error() and message.error.code == ErrorCode.CLIENT_APP_CRASHED


def _empty(message: Message) -> Message:
    told = message.metadata
    return Message(RecordDict(), told.dst_node_id, told.message_type, group_id=told.group_id)


def for_the_way(questions: Sequence[Question]) -> Iterator[Question]:
    """Yield the questions with their tensors packed; what many sites are sent is packed once."""
    blocks: dict[int, ArrayRecord] = {}
    for question in questions:
        content = RecordDict(dict(question.message.content))
        for name, record in array_records(content).items():
            if id(record) not in blocks:
                blocks[id(record)] = packed(record)
            content[name] = blocks[id(record)]
        told = question.message.metadata
        sent = Message(content, told.dst_node_id, told.message_type, ttl=told.ttl, group_id=told.group_id)
        yield replace(question, message=sent)
