"""A grid of sites that answer without training, and the rounds of a real server over it.

Each sends the model it was sent, a little changed and, where asked, in a basis of its own. An answer is made when it is
fetched, as over a network, and nothing of it is kept here.
"""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from popmi_core.config import parse_config
from popmi_core.matching import Symmetry, random_element
from popmi_core.matching.elements import apply
from popmi_core.protocol import CONTROL_CHANGE, INSTRUCTION, JSON_KEY, MODEL, REPORT, Instruction, Report, RunPlan
from server.rounds.record import RunRecorder, open_writer
from server.strategy import OpmStrategy
from server.wire import packed, tensor_record, unpacked

SMALL = {"model": {"backbone": "popmi_vit_micro", "image_size": 32}}


class LightSites:
    """Sites ``s01`` and on as nodes 1 and on.

    Attributes:
        symmetry: Where there is one, every site sends its model in a basis of its own.
        told: What each question said, by site, newest last; no tensors.
    """

    def __init__(self, count: int, symmetry: Symmetry | None = None) -> None:
        self.count, self.symmetry = count, symmetry
        self.told: dict[str, list[Instruction]] = {name: [] for name in names(count)}
        self._open: dict[str, Message] = {}
        self._number = 0

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self._number += 1
            key = f"m{self._number}"
            message.metadata.__dict__["_message_id"] = key
            self._open[key] = message
            ids.append(key)
        return ids

    def pull_messages(self, message_ids):
        return [self.answer(self._open.pop(key)) for key in message_ids if key in self._open]

    def get_node_ids(self):
        return list(range(1, self.count + 1))

    def answer(self, message: Message) -> Message:
        """Return what a site says; a test may say something else."""
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        instruction = Instruction.model_validate_json(str(message.content.config_records[INSTRUCTION][JSON_KEY]))
        site = names(self.count)[node - 1]
        self.told[site].append(instruction)
        if kind.startswith("train"):
            arrays = self._trained(message, node, control=instruction.local.objective == "control_variates")
            return said(message, instruction, site, arrays, num_examples=10 + node, **self.figures(site, instruction))
        if kind.startswith("query"):
            return said(message, instruction, site, num_examples=10 + node, phantom=True)
        if kind == "evaluate":
            return said(message, instruction, site, error="no image to judge a model on")
        return said(message, instruction, site, num_examples=50, metrics={"val.nll": 1.0})

    def figures(self, site: str, instruction: Instruction) -> dict[str, object]:
        """Return what else a site reports of its training; a test may let it say more."""
        return {}

    def _trained(self, message: Message, node: int, *, control: bool) -> dict[str, ArrayRecord]:
        source = torch.Generator().manual_seed(node)
        state = unpacked(message.content)[MODEL].to_torch_state_dict()
        state = {
            name: tensor + 0.01 * torch.randn(tensor.shape, generator=source, dtype=tensor.dtype)
            for name, tensor in state.items()
        }
        if self.symmetry is not None:
            state = apply(state, self.symmetry, random_element(self.symmetry, source))
        arrays = {MODEL: packed(tensor_record(state))}
        return {**arrays, CONTROL_CHANGE: packed(tensor_record(state))} if control else arrays


def names(count: int) -> tuple[str, ...]:
    """Return the names of so many sites."""
    return tuple(f"s{number:02d}" for number in range(1, count + 1))


def said(
    message: Message, instruction: Instruction, site: str, arrays: dict[str, ArrayRecord] | None = None, **figures
) -> Message:
    """Return a site's reply with what it tells and the tensors it sends."""
    report = Report(
        run=instruction.run, server_round=instruction.server_round, site=site, nonce=instruction.nonce, **figures
    )
    records = {REPORT: ConfigRecord({JSON_KEY: report.model_dump_json()}), **(arrays or {})}
    return Message(RecordDict(records), reply_to=message)


def light_plan(folder: Path, count: int, *, patience: float = 0.0, resume: bool = False, **parts) -> RunPlan:
    """Return the plan of a real run (its updates wait on the disk) with so many light sites."""
    return RunPlan(
        run="light",
        config=parse_config({"strategy": "fedavg", "rounds": 1, **SMALL, **parts}),
        folder=str(folder),
        data_name="skin",
        phantom=True,
        classes=("mel", "nv"),
        lineup=(),
        resume=resume,
        names=names(count),
        patience=patience,
    )


def run_rounds(plan: RunPlan, *, moved: bool = False, sites: type[LightSites] = LightSites) -> LightSites:
    """Run the plan's rounds to the end; ``moved``: every site's model comes in a basis of its own."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    with open_writer(plan) as writer:
        recorder = RunRecorder.open(plan, writer)
        strategy = OpmStrategy(plan, recorder)
        strategy.restore(*recorder.last_state())
        grid = sites(len(plan.names), strategy.symmetry if moved else None)
        strategy.start(grid, tensor_record(strategy.global_model), num_rounds=plan.config.rounds, timeout=600)
        writer.finish_run("finished")
    return grid
