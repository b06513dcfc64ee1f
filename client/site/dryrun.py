"""One local round with the site's own images and the real client app, to see what would be sent. Nothing is sent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from client.app import app
from client.reply import packed, tensor_record, unpacked
from client.site.approval import Approvals, installed_code
from client.site.home import SiteConfig, SiteHome
from popmi_core.asking import EVALUATING, JOINING, JUDGING, MEASURING, TRAINING, Asks
from popmi_core.config import RunConfig
from popmi_core.deployment import code_hash
from popmi_core.errors import SetupError
from popmi_core.models import build_model, exchanged_state
from popmi_core.protocol import (
    ACTIVATIONS,
    CONTROL,
    CONTROL_CHANGE,
    GRAMS,
    INSTRUCTION,
    JSON_KEY,
    MODEL,
    NORMS,
    REPORT,
    SCORES_PREFIX,
    Instruction,
    Report,
    stays_at_site,
)
from popmi_core.records import array_records

NODE, RUN = 1, 1
NAME = "dry-run"
"""Stands for what the server gives: the run's name, a question's number, the name of a candidate."""
WHEN = {
    JOINING: "once, when the site joins",
    TRAINING: "in every round",
    JUDGING: "in every round, for every candidate that the rule or the gate compares",
    MEASURING: "in every round, for the fused model and for every candidate that is compared",
    EVALUATING: "in every round; test and training images in the last one only, turned images as [measure] says",
}
"""How often a question is asked."""
MEANING = {
    MODEL: "the trained model: what training on all images led to",
    CONTROL_CHANGE: "change of the control variate: the mean gradient of the round",
    GRAMS: "second moments of layers' inputs, summed over images",
    ACTIVATIONS: "how this model's activations go with the broadcast one's, summed over images",
    NORMS: "BatchNorm statistics, summed over images",
}
"""What a record's tensors are, by the record's name."""


class SentTensor(BaseModel):
    """One tensor that would leave the site."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


class Step(BaseModel):
    """One question of the server's, and everything in the answer: tensors, and every figure of the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    when: str = Field(description="how often it is asked in a run")
    message_bytes: int
    tensors: tuple[SentTensor, ...]
    figures: dict[str, Any]


class DryRun(BaseModel):
    """What one round would send, and what would stay here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str
    code: str = Field(
        description="hash of the code that was run: this installation's, as `popmi site approve` names it"
    )
    approved: bool
    steps: tuple[Step, ...]
    stays: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes of one answer to every question."""
        return sum(step.message_bytes for step in self.steps)


def dry_run(home: SiteHome, config: RunConfig | None = None) -> DryRun:
    """Join, train and evaluate once, in this process, in a copy of the state folder that is thrown away.

    Args:
        home: The site.
        config: The run; None takes the one that is planned, from the kit.

    Raises:
        SetupError: If the app answers with an error; it says which question it was.
    """
    site, kit = home.config(), home.kit()
    run = config or kit.config
    with tempfile.TemporaryDirectory(prefix="popmi-dry-run-") as scratch:
        state = Path(scratch) / "state"
        if home.state.exists():
            # A copy: what training here costs is charged to it, and the site's own privacy ledger does not move.
            shutil.copytree(home.state, state)
        context = _context(home, site, state)
        start = exchanged_state(build_model(run.model, len(site.classes), seed=run.seed))
        steps = tuple(_asked(Asks.of(run, start), site.classes, start, context))
    stays = tuple(name for name in start if stays_at_site(name, run.personal.keep_local))
    code = code_hash(installed_code())
    return DryRun(site=site.site, code=code, approved=Approvals(home).allows(code), steps=steps, stays=stays)


def as_text(result: DryRun, *, every: bool = False) -> str:
    """Return the list for people; ``every`` names each tensor, else the model's are counted."""
    lines = [f"Site {result.site}: one answer to every question would send {_size(result.bytes)}. Nothing was sent."]
    known = "approved here" if result.approved else "not approved here: `popmi site approve --installed`"
    lines.append(f"Code: {result.code[:12]}, this installation's ({known}). Other code may send something else.")
    for step in result.steps:
        lines += ["", f"Answer to '{step.question}', {step.when}: {_size(step.message_bytes)}"]
        lines += [f"  figure  {name} = {value}" for name, value in step.figures.items()]
        for record in dict.fromkeys(item.record for item in step.tensors):
            items = [item for item in step.tensors if item.record == record]
            size = _size(sum(item.bytes for item in items))
            lines.append(f"  tensors {record}: {len(items)}, {size}; {meaning(record)}")
            shown = items if every or len(items) <= 12 else [*items[:5], *items[-2:]]
            lines += [f"          {item.name}  {list(item.shape)}  {item.dtype}  {item.bytes} bytes" for item in shown]
            if len(shown) < len(items):
                lines.append(f"          ... {len(items) - len(shown)} more; --every or --out lists all")
    lines += ["", f"Stays here (personal.keep_local): {', '.join(result.stays) or 'nothing of the model'}."]
    lines.append("Images, file names, labels of single images and single scores are in none of the answers.")
    return "\n".join(lines)


def meaning(record: str) -> str:
    """Return in words what a record's tensors are."""
    if record.startswith(SCORES_PREFIX):
        return "histograms of the model's scores, counts only; how many cells they have depends on the scores"
    return MEANING.get(record, "see docs/site.md")


def _asked(asks: Asks, classes: tuple[str, ...], start: Mapping[str, Tensor], context: Context) -> Iterator[Step]:
    """Ask what the server would ask in the first and last round of the planned run, in its order."""
    model = {MODEL: tensor_record(start)}
    trained = dict(model)
    if asks.control:
        trained[CONTROL] = tensor_record({name: 0 * tensor for name, tensor in start.items()})
    fields: dict[str, dict[str, Any]] = {
        JOINING: asks.joining(),
        TRAINING: asks.training(),
        JUDGING: {"candidate": NAME},
        EVALUATING: asks.evaluating(final=True),
    }
    counts: tuple[int, ...] = ()
    for kind in asks.questions:
        told = asks.instruction(
            run=NAME,
            server_round=0 if kind == JOINING else 1,
            classes=classes,
            nonce=NAME,
            class_counts=counts,
            **fields.get(kind, {}),
        )
        step = _ask(kind, told, {JOINING: {}, TRAINING: trained}.get(kind, model), context)
        # As in a run, where all sites' counts together go back to each.
        counts = counts or tuple(step.figures.get("class_counts", ()))
        yield step


def _context(home: SiteHome, site: SiteConfig, state: Path) -> Context:
    node_config = {**home.node_config(site), "state": str(state)}
    return Context(run_id=RUN, node_id=NODE, node_config=node_config, state=RecordDict(), run_config={})


def _ask(kind: str, told: Instruction, arrays: Mapping[str, ArrayRecord], context: Context) -> Step:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, NODE
    # Packed, as the server asks: a record then travels as one block, which is opened again below to list what is in it.
    content = packed(RecordDict({INSTRUCTION: ConfigRecord({JSON_KEY: told.model_dump_json()}), **arrays}))
    message = Message(content, NODE, kind)
    message.metadata.__dict__["_message_id"] = NAME
    # As on the wire, so that what is listed is what would have been sent, byte by byte.
    wire = message_to_proto(app(message, context)).SerializeToString()
    reply = message_from_proto(ProtoMessage.FromString(wire))
    report = Report.model_validate_json(str(reply.content[REPORT][JSON_KEY]))
    if report.error is not None:
        raise SetupError(f"dry run, '{kind}': {report.error} Put it right and run it again; nothing was sent.")
    tensors = tuple(
        SentTensor(record=record, name=name, shape=array.shape, dtype=str(array.dtype), bytes=array.nbytes)
        for record, items in array_records(unpacked(reply.content)).items()
        for name, array in ((name, item.numpy()) for name, item in items.items())
    )
    figures = {name: value for name, value in report.model_dump(mode="json").items() if value not in (None, {}, [], "")}
    return Step(question=kind, when=WHEN[kind], message_bytes=len(wire), tensors=tensors, figures=figures)


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count} bytes"
