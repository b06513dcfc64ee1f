"""What a broken site sends.

The drill puts this file into a bundle as ``client/broken_site.py``; every site approves the bundle, and two of them
send one fault after the other, one a round.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
from flwr.app import Array, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from client.reply import packed, unpacked
from popmi_core.protocol import INSTRUCTION, JSON_KEY, MODEL, REPORT, Instruction, Report

BROKEN = ("phantom_ruler", "phantom_polarised")
"""The first sends faults 1, 3, 5, ... in rounds 1, 2, 3, ..., the second faults 2, 4, 6, ..."""
ALL_FAIL, SLOW = "all-fail", "slow"
"""Runs of these names: every site raises; every site takes three seconds more to train."""
Change = Callable[[Message, Instruction], object]


def spoiled(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Return a fault that changes the first tensor."""

    def fault(reply: Message, asked: Instruction) -> None:
        record = reply.content.array_records[MODEL]
        name = sorted(record)[0]
        record[name] = Array(change(record[name].numpy()))

    return fault


def raw(change: Callable[[Array], Array]) -> Change:
    """Return a fault that changes the first tensor as it travels."""

    def fault(reply: Message, asked: Instruction) -> None:
        record = reply.content.array_records[MODEL]
        name = sorted(record)[0]
        record[name] = change(record[name])

    return fault


def told(**changes: object) -> Change:
    """Return a fault that changes the report."""

    def fault(reply: Message, asked: Instruction) -> None:
        report = Report.model_validate_json(str(reply.content.config_records[REPORT][JSON_KEY]))
        text = report.model_copy(update=changes).model_dump_json()
        reply.content.config_records[REPORT] = ConfigRecord({JSON_KEY: text})

    return fault


def not_a_number(reply: Message, asked: Instruction) -> None:
    """Tell NaN images."""
    text = str(reply.content.config_records[REPORT][JSON_KEY])
    before, _, rest = text.partition('"num_examples":')
    changed = f'{before}"num_examples":NaN{rest[len(rest) - len(rest.lstrip("0123456789")) :]}'
    reply.content.config_records[REPORT] = ConfigRecord({JSON_KEY: changed})


def poisoned(array: np.ndarray) -> np.ndarray:
    """Return a copy with three values that are no numbers."""
    copy = array.copy()
    copy.flat[:3] = np.nan
    return copy


def missing(reply: Message, asked: Instruction) -> None:
    """Leave a layer out."""
    del reply.content.array_records[MODEL]["head.weight"]


def extra(reply: Message, asked: Instruction) -> None:
    """Send a layer too many."""
    reply.content.array_records[MODEL]["backdoor.weight"] = Array(np.zeros(3, np.float32))


def pickled(array: Array) -> Array:
    """Return the tensor as a pickle that would run a command when it is opened."""

    class Opened:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, ("__import__('os').system('touch /tmp/popmi-pickle-was-opened')",)

    out = io.BytesIO()
    np.save(out, np.array([Opened()], dtype=object), allow_pickle=True)
    return Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=out.getvalue())


def truncated(array: Array) -> Array:
    """Return the tensor without its last bytes."""
    return Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=array.data[:-40])


def flipped(array: Array) -> Array:
    """Return the tensor with its first bytes turned around."""
    data = bytes(byte ^ 0xFF for byte in array.data[:16]) + array.data[16:]
    return Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=data)


def block(change: Callable[[bytes], bytes]) -> Change:
    """Return a fault that changes the whole model as it travels, packed."""

    def fault(reply: Message, asked: Instruction) -> None:
        reply.content = packed(reply.content)
        ((name, array),) = reply.content.array_records[MODEL].items()
        data = change(array.data)
        reply.content.array_records[MODEL][name] = Array(dtype="uint8", shape=(len(data),), stype=name, data=data)

    return fault


def stale(reply: Message, asked: Instruction) -> None:
    """Answer the round before."""
    told(server_round=asked.server_round - 1)(reply, asked)


FAULTS: tuple[tuple[str, str, Change], ...] = (
    ("1", "three NaN in a layer", spoiled(poisoned)),
    ("2", "a layer moved by 1e8", spoiled(lambda array: array + np.float32(1e8))),
    ("3", "a shape that would broadcast", spoiled(lambda array: array[None])),
    ("4", "a layer is missing", missing),
    ("4", "a layer too many", extra),
    ("5", "float64 for float32", spoiled(lambda array: array.astype(np.float64))),
    ("6", "no images (num_examples 0)", told(num_examples=0)),
    ("6", "NaN images", not_a_number),
    ("6", "more images than when it joined", told(num_examples=1_000_000)),
    ("7", "a pickle in the place of a tensor", raw(pickled)),
    ("8", "20 MB for a few kB", spoiled(lambda array: np.zeros(5_000_000, np.float32))),
    ("9", "a tensor without its last 40 bytes", raw(truncated)),
    ("9", "the first 16 bytes of a tensor flipped", raw(flipped)),
    ("9", "a packed model without its last 40 bytes", block(lambda data: data[:-40])),
    (
        "9",
        "the first 16 bytes of a packed model flipped",
        block(lambda data: bytes(b ^ 0xFF for b in data[:16]) + data[16:]),
    ),
    ("10", "an answer that says it is to the round before", stale),
    ("11", "an earlier answer sent once more (its nonce)", told(nonce="0123456789abcdef")),
)
"""Case, what is sent, and how."""


def place_of(site: str, server_round: int) -> int | None:
    """Return which fault a site sends in a round; None where it sends none."""
    place = 2 * (server_round - 1) + BROKEN.index(site) if site in BROKEN else len(FAULTS)
    return place if place < len(FAULTS) else None


class Broken(ClientApp):
    """The client app of a site that is broken."""

    def __init__(self, whole: ClientApp) -> None:
        super().__init__()
        self.whole = whole

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the whole one would, and spoil it."""
        asked = Instruction.model_validate_json(str(message.content.config_records[INSTRUCTION][JSON_KEY]))
        # Asked plainly, the whole app answers plainly: its tensors lie open to be spoiled.
        message.content = unpacked(message.content)
        training = message.metadata.message_type == "train"
        if training and asked.run == ALL_FAIL:
            raise ValueError("IMG_4711_meier.png cannot be opened")
        reply = self.whole(message, context)
        if training and asked.run.startswith(SLOW):
            time.sleep(3.0)
        place = place_of(str(context.node_config["site"]), asked.server_round)
        if training and asked.run == "payloads" and place is not None:
            FAULTS[place][2](reply, asked)
        return reply
