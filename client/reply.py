"""Put a site's answer into a message, and let no exception text leave the hospital."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from client.load import assignment_of
from popmi_core.data.spec import SiteSpec
from popmi_core.errors import PopmiError, PrivacyError, UpdateError
from popmi_core.packing import PACKED, pack, unpack
from popmi_core.protocol import INSTRUCTION, JSON_KEY, MAX_REASON, REPORT, Instruction, Report
from popmi_core.records import array_records, config_record

log = logging.getLogger("popmi.site")
Handler = Callable[[Message, Context], Message]


def read_instruction(message: Message) -> Instruction:
    """Return what the server asks for.

    Raises:
        UpdateError: If the message brings no instruction.
    """
    record = config_record(message.content, INSTRUCTION)
    if record is None:
        raise UpdateError("the server's message holds no instruction. Check that it runs the same POPMI version.")
    return Instruction.model_validate_json(str(record[JSON_KEY]))


def reply(message: Message, report: Report, arrays: Mapping[str, ArrayRecord] | None = None) -> Message:
    """Answer ``message`` with a report and, if given, named array records; the question's nonce goes back with it."""
    report = report.model_copy(update={"nonce": read_instruction(message).nonce})
    records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
        REPORT: ConfigRecord({JSON_KEY: report.model_dump_json()})
    }
    return Message(RecordDict({**records, **(arrays or {})}), reply_to=message)


def tensor_record(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Return tensors by name as one array record."""
    return ArrayRecord({name: Array(tensor.detach().cpu().numpy()) for name, tensor in state.items()})


def array_record(arrays: Mapping[str, npt.NDArray[np.generic]]) -> ArrayRecord:
    """Return arrays by name as one array record."""
    # Not ascontiguousarray: it would make a list of one out of a lone number.
    return ArrayRecord({name: Array(np.asarray(array, order="C")) for name, array in arrays.items()})


def is_packed(message: Message) -> bool:
    """Return whether a message's arrays came as one block a record."""
    return any(list(record) == [PACKED] for record in array_records(message.content).values())


def packed(content: RecordDict) -> RecordDict:
    """Return a message's content with the arrays of every record as one block."""
    blocks = {
        name: pack({key: array.numpy() for key, array in record.items()})
        for name, record in array_records(content).items()
    }
    records = {
        name: ArrayRecord({PACKED: Array(dtype="uint8", shape=(len(block),), stype=PACKED, data=block)})
        for name, block in blocks.items()
    }
    return RecordDict({**content, **records})


def unpacked(content: RecordDict) -> RecordDict:
    """Return a message's content with the arrays of packed records by their own names.

    Raises:
        UpdateError: If a block cannot be decoded.
    """
    records = {
        name: ArrayRecord({key: Array(array) for key, array in unpack(record[PACKED].data).items()})
        for name, record in array_records(content).items()
        if list(record) == [PACKED]
    }
    return RecordDict({**content, **records})


def finite_or_none(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Return the figures with undefined ones (a class is missing) as None, which JSON can carry."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def guarded(handler: Handler) -> Handler:
    """Answer with a failure report instead of raising, and packed if the question came packed.

    Flower sends an exception's text to the server as it is; a library's text can quote a file name and so a
    patient. POPMI's own errors are written to be shown; of any other only type and place are told.
    """

    @functools.wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        stopped, packs = False, is_packed(message)
        try:
            message.content = unpacked(message.content)
            answered = handler(message, context)
            if packs:
                answered.content = packed(answered.content)
            return answered
        except PopmiError as error:
            told = _without_places(f"{type(error).__name__}: {error}", context)
            # A promise that cannot be kept now cannot be kept later: the site fails closed.
            stopped = isinstance(error, PrivacyError)
        except Exception as error:
            told = f"{type(error).__name__} at {_place(error)}. The full text is in this site's own log only."
            log.exception("a handler failed")
        instruction = read_instruction(message)
        report = Report(
            run=instruction.run,
            server_round=instruction.server_round,
            site=_site(context, instruction),
            error=told[:MAX_REASON],
            stopped=stopped,
        )
        return reply(message, report)

    return answer


def _site(context: Context, instruction: Instruction) -> str:
    try:
        return assignment_of(context, instruction).site
    except PopmiError:
        return f"node {context.node_id}"


def _without_places(told: str, context: Context) -> str:
    """Return a text without the places this site's own description names: folders are named by people."""
    described = (str(context.node_config.get(name, "")) for name in ("data", "state"))
    places = {part for text in described for line in text.split("\n") for part in _places(line)}
    # The longest first: a folder's name begins the names of what lies in it.
    for place in sorted(places, key=len, reverse=True):
        told = told.replace(place, "(a place at this site)")
    return told


def _places(specification: str) -> list[str]:
    spec = SiteSpec.parse(specification)
    return [str(path) for path in (spec.path, spec.label_map) if path is not None and len(path.parts) > 1]


def _place(error: Exception) -> str:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return "an unknown place"
    code = frame.tb_frame.f_code
    return f"{code.co_filename.rsplit('/', 1)[-1]}:{frame.tb_lineno} in {code.co_name}"
