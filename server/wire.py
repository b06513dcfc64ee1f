"""Put a round's instruction and tensors into messages, and the tensors of each record into one block for the way."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from popmi_core.packing import PACKED, pack, unpack
from popmi_core.protocol import INSTRUCTION, JSON_KEY, Instruction


def tensor_record(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Return tensors by name as one array record."""
    return ArrayRecord({name: Array(tensor.detach().cpu().numpy()) for name, tensor in state.items()})


def ask(node_id: int, kind: str, instruction: Instruction, arrays: Mapping[str, ArrayRecord]) -> Message:
    """Return the message that hands ``instruction`` and the named array records to one node."""
    records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
        INSTRUCTION: ConfigRecord({JSON_KEY: instruction.model_dump_json()}),
        **arrays,
    }
    return Message(RecordDict(records), node_id, kind, group_id=str(instruction.server_round))


def packed(record: ArrayRecord) -> ArrayRecord:
    """Return a record whose one array holds all of ``record``'s."""
    block = pack({name: array.numpy() for name, array in record.items()})
    return ArrayRecord({PACKED: Array(dtype="uint8", shape=(len(block),), stype=PACKED, data=block)})


def unpacked(content: RecordDict) -> RecordDict:
    """Return a message's content with the arrays of packed records by their own names; other records as they are.

    Raises:
        UpdateError: If a block cannot be decoded.
    """
    return RecordDict(
        {
            name: ArrayRecord({key: Array(array) for key, array in unpack(record[PACKED].data).items()})
            if isinstance(record, ArrayRecord) and list(record) == [PACKED]
            else record
            for name, record in content.items()
        }
    )
