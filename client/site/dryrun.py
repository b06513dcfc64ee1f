"""One local round with the site's own images and the real client app, to see what would be sent. Nothing is sent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity
from pydantic import BaseModel, ConfigDict, Field

from client.app import app
from client.reply import packed, tensor_record, unpacked
from client.site.approval import Approvals, installed_code
from client.site.home import SiteConfig, SiteHome
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
    JUDGE,
    MEASURE_NORMS,
    MODEL,
    NORMS,
    REPORT,
    SCORES_PREFIX,
    Instruction,
    Report,
    stays_at_site,
)

NODE, RUN = 1, 1
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
    message_bytes: int
    tensors: tuple[SentTensor, ...]
    figures: dict[str, object]


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
        """Bytes of a whole round on their way up."""
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
        told, model = instruction(site, run), {MODEL: tensor_record(start)}
        trained = dict(model)
        if run.local.objective == "control_variates":
            trained[CONTROL] = tensor_record({name: 0 * tensor for name, tensor in start.items()})
        questions: list[tuple[str, Mapping[str, ArrayRecord]]] = [("query", {}), ("train", trained)]
        # What is asked between training and evaluation, where the run has such parts.
        questions += [(f"evaluate.{JUDGE}", model)] if run.fuse.gate else []
        questions += [(f"query.{MEASURE_NORMS}", model)] if run.fuse.repair else []
        questions.append(("evaluate", model))
        steps = tuple(_ask(kind, told, arrays, context) for kind, arrays in questions)
    stays = tuple(name for name in start if stays_at_site(name, run.personal.keep_local))
    code = code_hash(installed_code())
    return DryRun(site=site.site, code=code, approved=Approvals(home).allows(code), steps=steps, stays=stays)


def instruction(site: SiteConfig, run: RunConfig) -> Instruction:
    """Return what the server would ask in the first round of the planned run."""
    return Instruction.model_validate(
        {
            "run": "dry-run",
            "server_round": 1,
            "rounds": run.rounds,
            "seed": run.seed,
            "classes": site.classes,
            "model": run.model,
            "local": run.local,
            "privacy": run.privacy,
            "phantom_images": run.data.phantom_images,
            "splits": ("val", "test"),
            "match": run.match if run.match.where == "site" else None,
            "statistics": [
                *(["gram"] if run.fuse.needs_grams else []),
                *(["activations"] if run.fuse.needs_statistics else []),
            ],
            "num_images": run.match.num_images,
            "keep_local": run.personal.keep_local,
            "count_classes": run.personal.class_prior == "own",
        }
    )


def as_text(result: DryRun, *, every: bool = False) -> str:
    """Return the list for people; ``every`` names each tensor, else the model's are counted."""
    lines = [f"Site {result.site}: one round would send {_size(result.bytes)}. Nothing was sent."]
    known = "approved here" if result.approved else "not approved here: `popmi site approve --installed`"
    lines.append(f"Code: {result.code[:12]}, this installation's ({known}). Other code may send something else.")
    for step in result.steps:
        lines += ["", f"Answer to '{step.question}': {_size(step.message_bytes)}"]
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
        return "histograms of the model's scores, counts only"
    return MEANING.get(record, "see docs/site.md")


def _context(home: SiteHome, site: SiteConfig, state: Path) -> Context:
    node_config = {**home.node_config(site), "state": str(state)}
    return Context(run_id=RUN, node_id=NODE, node_config=node_config, state=RecordDict(), run_config={})


def _ask(kind: str, told: Instruction, arrays: Mapping[str, ArrayRecord], context: Context) -> Step:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, NODE
    # Packed, as the server asks: a record then travels as one block, which is opened again below to list what is in it.
    content = packed(RecordDict({INSTRUCTION: ConfigRecord({JSON_KEY: told.model_dump_json()}), **arrays}))
    message = Message(content, NODE, kind)
    message.metadata.__dict__["_message_id"] = "dry-run"
    # As on the wire, so that what is listed is what would have been sent, byte by byte.
    wire = message_to_proto(app(message, context)).SerializeToString()
    reply = message_from_proto(ProtoMessage.FromString(wire))
    report = Report.model_validate_json(str(reply.content.config_records[REPORT][JSON_KEY]))
    if report.error is not None:
        raise SetupError(f"dry run, '{kind}': {report.error} Put it right and run it again; nothing was sent.")
    tensors = tuple(
        SentTensor(record=record, name=name, shape=array.shape, dtype=str(array.dtype), bytes=array.nbytes)
        for record, items in unpacked(reply.content).array_records.items()
        for name, array in ((name, item.numpy()) for name, item in items.items())
    )
    figures = {name: value for name, value in report.model_dump(mode="json").items() if value not in (None, {}, [], "")}
    return Step(question=kind, message_bytes=len(wire), tensors=tensors, figures=figures)


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count} bytes"
