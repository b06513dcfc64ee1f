"""Put a round's instruction and tensors into messages."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

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
