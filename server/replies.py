"""Replies of a round, whatever they answer: whose they are, and whether they belong to this round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import ArrayRecord, Message
from flwr.common.constant import ErrorCode
from torch import Tensor

from popmi_core.equivariance.certificate import Promise
from popmi_core.errors import UpdateError
from popmi_core.matching import Symmetry
from popmi_core.matching.statistics import numbers_told
from popmi_core.protocol import JSON_KEY, MAX_EXAMPLES, REPORT, Report, Split, parse_report
from popmi_core.records import config_record
from server.results import SiteOutcome
from server.weighing import Room, refusal
from server.wire import unpacked

GONE = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE)
"""Flower's words for a node that is not there (any more)."""
SPARE_BYTES = 4_000_000
"""What a reply may weigh beyond the tensors asked for: report, figures, and the arrays' own headers."""
Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class Expected:
    """What a valid update of this round looks like; ``asked`` names the site behind each message id.

    ``control`` and ``grams``: whether control variates and Gram matrices must come along. ``kept`` stands in for the
    tensors that stay at the sites, so that every update is a whole model. ``seen``: the symmetries by which statistics
    of activations must come along; None where none are asked for. ``promise``: the group the model promises to respect,
    which every update is checked for. ``missing``: outcome and reason of sites without an answer. ``nonce``: what the
    answer must repeat. ``enrolled``: training images each site told of when it joined. ``max_change``: largest norm of
    a change against ``reference``, in norms of the reference. ``spoilt`` hears of sites whose answer is of no use.
    """

    run: str
    server_round: int
    layout: Layout
    asked: Mapping[str, str]
    control: bool = False
    grams: bool = False
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    seen: Symmetry | None = None
    promise: Promise | None = None
    missing: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    nonce: str = ""
    enrolled: Mapping[str, Mapping[Split, int]] = field(default_factory=dict)
    max_change: float = math.inf
    reference: Mapping[str, Tensor] = field(default_factory=dict)
    spoilt: set[str] = field(default_factory=set)
    model: bool = True
    scores: int = 0
    room: Room = field(default_factory=Room)

    @property
    def most_bytes(self) -> int:
        """Bytes a reply may hold: what it must hold by the layout, and ``SPARE_BYTES``."""
        shapes = {name: shape for name, (shape, _) in self.layout.items()}
        one = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.layout.values())
        # A control variate's change weighs as much as the model; Gram matrices and statistics are float64 at most.
        copies = (1 + self.control) if self.model else 0
        widths = [math.prod(shape[1:]) for name, shape in shapes.items() if name.endswith(".weight")]
        grams = 8 * sum(width**2 for width in widths) if self.grams else 0
        statistics = 8 * numbers_told(self.seen) if self.seen is not None else 0
        return copies * one + grams + statistics + self.scores + SPARE_BYTES

    def check_count(self, site: str, split: Split, count: float, where: str, *, least: int = 0) -> None:
        """Refuse a number of images that the site did not have when it joined.

        Raises:
            UpdateError: If it is below ``least`` or above what the site told of this split.
        """
        most = min(self.enrolled.get(site, {}).get(split, MAX_EXAMPLES), MAX_EXAMPLES)
        if not least <= count <= most:
            raise UpdateError(
                f"{where}: num_examples is {count:.0f}, expected {least} to {most}, what the site told of its {split} "
                "images when it joined. Check the site's data; after it has grown, restart the run."
            )


def layout_of(state: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and dtype of every tensor."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def open_replies(
    replies: Iterable[Message], expected: Expected, handle: Callable[[str, Message], SiteOutcome]
) -> list[SiteOutcome]:
    """Hand every site's first answer to ``handle`` as it comes; return one outcome for every site that was asked.

    A killed site's error comes back under the server's own node id, so a reply is known by the message it answers. A
    second answer of a site, and one that nobody asked for, are let go of.
    """
    outcomes: dict[str, SiteOutcome] = {}
    expected.room.most_bytes = expected.most_bytes
    for message in replies:
        site = expected.asked.get(message.metadata.reply_to_message_id)
        if site is None or site in outcomes:
            continue
        outcomes[site] = _opened(site, message, expected, handle)
        if outcomes[site].outcome != "ok":
            expected.spoilt.add(site)
    for site in expected.asked.values():
        if site not in outcomes:
            outcome, why = expected.missing.get(site, ("unreachable", "no reply before the deadline"))
            outcomes[site] = SiteOutcome(site, outcome, why)
    return sorted(outcomes.values(), key=lambda item: item.site)


def _opened(
    site: str, message: Message, expected: Expected, handle: Callable[[str, Message], SiteOutcome]
) -> SiteOutcome:
    where = f"site {site}, round {expected.server_round}"
    if message.has_error():
        why = message.error.reason or "no reason"
        if heavy := refusal(why):
            return SiteOutcome(site, "quarantined", f"{where}: its answer was let go of: {heavy}")
        outcome = "unreachable" if message.error.code in GONE else "failed"
        return SiteOutcome(site, outcome, f"the site's app ended: {why}")
    size = payload_bytes(message)
    try:
        # Before it is unpacked, which takes several times its room.
        if size > expected.most_bytes:
            raise UpdateError(
                f"the reply holds {size} bytes, expected at most {expected.most_bytes}. Check that the site runs the "
                "same backbone."
            )
        message.content = unpacked(message.content)
    except UpdateError as error:
        return SiteOutcome(site, "quarantined", f"{where}: {error}", bytes_up=size)
    return handle(site, message)


def read_report(message: Message, site: str, expected: Expected) -> Report:
    """Return the report of a reply, checked against the round it should belong to.

    Raises:
        UpdateError: If there is none, or it answers another run or round.
    """
    record = config_record(message.content, REPORT)
    report = parse_report(record.get(JSON_KEY) if record is not None else None, site=site)
    if (report.run, report.server_round) != (expected.run, expected.server_round):
        raise UpdateError(
            f"site {site}: the reply belongs to run {report.run}, round {report.server_round}; expected run "
            f"{expected.run}, round {expected.server_round}. A late or repeated reply is not counted."
        )
    if report.nonce != expected.nonce:
        raise UpdateError(
            f"site {site}, round {report.server_round}: the reply repeats number {report.nonce or 'none'!r}, expected "
            f"{expected.nonce!r}: it is a copy of an earlier one and is not counted. Look who sent it."
        )
    return report


def payload_bytes(message: Message) -> int:
    """Return the bytes of a message's tensors, figures and texts."""
    return sum(record.count_bytes() for record in message.content.values())


def decode_array(record: ArrayRecord, name: str, where: str) -> Tensor:
    """Return one array of a record as a tensor that owns its memory.

    Raises:
        UpdateError: If the bytes are no array.
    """
    try:
        # Copied: the decoded array can be read-only, and the average must own its memory.
        return torch.from_numpy(np.array(record[name].numpy()))
    except Exception as error:
        # Whatever a stranger's bytes make of the decoder (a zip, a header of petabytes) is that site's fault alone.
        raise UpdateError(f"{where}: '{name}' cannot be decoded as an array. The payload is damaged.") from error
