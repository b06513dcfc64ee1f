"""The Flower client app of one hospital: join, train, evaluate."""

from __future__ import annotations

import time
from functools import lru_cache, partial
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from client.control import load_control, save_control
from client.evaluate import evaluate_images
from client.ledger import Ledger
from client.load import assignment_of, read_data
from client.privacy import PrivateRound
from client.reply import array_record, finite_or_none, guarded, read_instruction, reply, tensor_record
from client.train import train_locally
from popmi_core.config import ModelConfig
from popmi_core.errors import PrivacyError, UpdateError
from popmi_core.models import build_model, exchanged_state, load_exchanged, normalise
from popmi_core.protocol import CONTROL, CONTROL_CHANGE, MODEL, SCORES_PREFIX, Instruction, Report, derive_seed

app = ClientApp()


@app.query()
@guarded
def join(message: Message, context: Context) -> Message:
    """Tell which site this is and how many images it has, once its data set has been read without error."""
    instruction = read_instruction(message)
    assignment = assignment_of(context, instruction)
    data = read_data(assignment, instruction)
    report = Report(
        run=instruction.run,
        server_round=instruction.server_round,
        site=assignment.site,
        num_examples=len(data.train),
        skipped_rows=len(data.skipped),
        phantom=data.phantom,
        split_sizes={"train": len(data.train), "val": len(data.val), "test": len(data.test)},
    )
    return reply(message, report)


@app.train()
@guarded
def train(message: Message, context: Context) -> Message:
    """Train the broadcast model on this site's images and send it back."""
    instruction = read_instruction(message)
    assignment = assignment_of(context, instruction)
    data = read_data(assignment, instruction)
    begun = time.perf_counter()
    model, received = receive_model(message, instruction)
    state_folder = Path(assignment.state)
    trained = train_locally(
        model,
        data.train,
        instruction.local,
        num_classes=len(instruction.classes),
        normalise=partial(normalise, model=model),
        seed=derive_seed("train", instruction.seed, assignment.site, instruction.server_round),
        reference=received,
        control=load_control(state_folder, instruction.run, instruction.server_round),
        server_control=_tensors(message, CONTROL),
        privacy=private_round(instruction, assignment.site, state_folder),
    )
    arrays: dict[str, ArrayRecord] = {MODEL: tensor_record(exchanged_state(model))}
    if trained.control is not None:
        save_control(state_folder, instruction.run, instruction.server_round, trained.control.control)
        arrays[CONTROL_CHANGE] = tensor_record(trained.control.change)
    report = Report(
        run=instruction.run,
        server_round=instruction.server_round,
        site=assignment.site,
        num_examples=trained.num_examples,
        seconds=time.perf_counter() - begun,
        metrics=finite_or_none({"train.loss": trained.loss}),
        epsilon=trained.epsilon,
        phantom=data.phantom,
    )
    return reply(message, report, arrays)


@app.evaluate()
@guarded
def evaluate(message: Message, context: Context) -> Message:
    """Judge the broadcast model on this site's images; single patients' scores stay here."""
    instruction = read_instruction(message)
    assignment = assignment_of(context, instruction)
    data = read_data(assignment, instruction)
    begun = time.perf_counter()
    model, _ = receive_model(message, instruction)
    metrics: dict[str, float] = {}
    arrays: dict[str, ArrayRecord] = {}
    sizes = {split: len(getattr(data, split)) for split in instruction.splits}
    for split in (split for split in instruction.splits if sizes[split]):
        figures, summary = evaluate_images(model, getattr(data, split))
        metrics |= {f"{split}.{name}": value for name, value in figures.items()}
        arrays[SCORES_PREFIX + split] = array_record(summary.to_arrays())
    report = Report(
        run=instruction.run,
        server_round=instruction.server_round,
        site=assignment.site,
        num_examples=sum(sizes.values()),
        split_sizes=sizes,
        seconds=time.perf_counter() - begun,
        metrics=finite_or_none(metrics),
        phantom=data.phantom,
    )
    return reply(message, report, arrays)


def private_round(instruction: Instruction, site: str, folder: Path) -> PrivateRound | None:
    """Return the round as the site's privacy ledger sees it, or None for a run without a privacy budget.

    Raises:
        PrivacyError: If a run without a budget would use images that an earlier run had promised to protect.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder / "privacy-ledger.json", site=site)
    if instruction.privacy is None:
        if ledger.entries():
            raise PrivacyError(
                f"site {site}: these images were trained on under a privacy budget, and this run has none: without "
                "noise the promise would be void. Give the run a budget (--dp-epsilon)."
            )
        return None
    return PrivateRound(instruction.privacy, ledger, instruction.run, instruction.server_round, instruction.rounds)


def receive_model(message: Message, instruction: Instruction) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the run's model with the broadcast tensors in it, and those tensors.

    Raises:
        UpdateError: If the message brings no model.
        ModelError: If it does not fit this site's model.
    """
    received = _tensors(message, MODEL)
    if received is None:
        raise UpdateError("the server's message holds no model. Check that it runs the same POPMI version.")
    model = _built_once(instruction.model, len(instruction.classes), instruction.seed)
    load_exchanged(model, received)
    return model, received


def _tensors(message: Message, record: str) -> dict[str, Tensor] | None:
    arrays = message.content.array_records.get(record)
    return None if not arrays else dict(arrays.to_torch_state_dict())


@lru_cache(maxsize=2)
def _built_once(config: ModelConfig, num_classes: int, seed: int) -> nn.Module:
    # Frozen weights do not travel, so every site builds them from the same description and seed.
    return build_model(config, num_classes, seed=seed)
