"""The Flower client app of one hospital: join, train, evaluate, and what the server asks between the two."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from client.align import Aligned, align
from client.evaluate import Ensemble, evaluate_images, judge_images
from client.kept import load_kept, save_kept
from client.ledger import Ledger
from client.load import assignment_of, read_data
from client.prior import OwnPrior, class_counts, class_table, prior_shift
from client.privacy import PrivateRound
from client.receive import State, read_tensors, receive_ensemble, receive_model, split_kept
from client.reply import array_record, finite_or_none, guarded, read_instruction, reply, tensor_record
from client.statistics import measure_activations, measure_grams, measure_norms, refuse_bare_statistics
from client.train import TrainReport, train_locally
from client.turning import turn_validation
from popmi_core import __version__
from popmi_core.data import SiteData
from popmi_core.errors import PrivacyError
from popmi_core.limits import MIN_CELL
from popmi_core.metrics.confusions import Told
from popmi_core.models import exchanged_state, load_exchanged, normalise
from popmi_core.protocol import (
    ACTIVATIONS,
    CONTROL,
    CONTROL_CHANGE,
    GRAMS,
    JUDGE,
    MAX_REASON,
    MEASURE_NORMS,
    MODEL,
    NORMS,
    SCORES_PREFIX,
    Assignment,
    Instruction,
    Report,
    derive_seed,
)

app = ClientApp()


@app.query()
@guarded
def join(message: Message, context: Context) -> Message:
    """Tell which site this is and how many images it has, once its data set has been read without error."""
    instruction = read_instruction(message)
    assignment = assignment_of(context, instruction)
    data = read_data(assignment, instruction)
    if instruction.count_classes:
        refuse_bare_statistics(instruction, "counting classes")
    report = Report(
        run=instruction.run,
        server_round=instruction.server_round,
        site=assignment.site,
        num_examples=len(data.train),
        class_counts=class_counts(data.train, len(instruction.classes)) if instruction.count_classes else (),
        # Of a few that the label map leaves out, say, the number would be that of a rare finding.
        skipped_rows=len(data.skipped) if len(data.skipped) >= MIN_CELL else 0,
        phantom=data.phantom,
        split_sizes={"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        popmi=__version__,
        class_table=class_table(data, private=instruction.privacy is not None),
    )
    return reply(message, report)


@app.train()
@guarded
def train(message: Message, context: Context) -> Message:
    """Train the broadcast model on this site's images, match it if asked to, and send what is not to stay here."""
    instruction = read_instruction(message)
    assignment = assignment_of(context, instruction)
    data = read_data(assignment, instruction)
    begun = time.perf_counter()
    # Before the round is paid for: a refused round must cost nothing.
    if instruction.statistics:
        refuse_bare_statistics(instruction, f"a statistic ({', '.join(instruction.statistics)})")
    if instruction.match is not None and instruction.match.uses_images:
        refuse_bare_statistics(instruction, f"matching by {instruction.match.method}")
    model, start = receive_model(message, instruction, kept_parts(assignment, instruction, instruction.server_round))
    trained, change = train_site(message, instruction, assignment, data, model, start)
    aligned = align(model, exchanged_state(model), start, data.train, instruction, assignment.site)
    if aligned is not None:
        load_exchanged(model, aligned.state)
    shared, own = split_kept(exchanged_state(model), instruction.keep_local)
    arrays: dict[str, ArrayRecord] = {MODEL: tensor_record(shared)}
    if change is not None:
        arrays[CONTROL_CHANGE] = tensor_record(change)
    arrays |= statistics_asked(model, start, shared, data, instruction, assignment.site)
    if own:
        save_kept(Path(assignment.state), "personal", instruction.run, instruction.server_round, own)
    report = Report(
        run=instruction.run,
        server_round=instruction.server_round,
        site=assignment.site,
        num_examples=trained.num_examples,
        seconds=time.perf_counter() - begun,
        metrics=finite_or_none({"train.loss": trained.loss}),
        epsilon=trained.epsilon,
        ledger_entries=trained.ledger_entries,
        phantom=data.phantom,
        **matching_told(aligned),
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
    if "train" in instruction.splits:
        refuse_bare_statistics(instruction, "judging training images")
    model = received_to_judge(message, instruction, assignment, data)
    metrics: dict[str, float] = {}
    arrays: dict[str, ArrayRecord] = {}
    tables: dict[str, Told] = {}
    sizes = {split: len(getattr(data, split)) for split in instruction.splits}
    for split in (split for split in instruction.splits if sizes[split]):
        # Of the training images, of which there are most, one pass is enough.
        images, turned = getattr(data, split), split != "train"
        figures, summary, tables[split] = evaluate_images(model, images, turned=turned)
        metrics |= {f"{split}.{name}": value for name, value in figures.items()}
        arrays[SCORES_PREFIX + split] = array_record(summary.to_arrays())
    seed, asked = derive_seed("turning", instruction.seed, assignment.site), instruction.turning
    turning = None if asked is None else turn_validation(model, data.val, asked, seed=seed)
    report = Report(
        run=instruction.run,
        server_round=instruction.server_round,
        site=assignment.site,
        num_examples=sum(sizes.values()),
        split_sizes=sizes,
        seconds=time.perf_counter() - begun,
        metrics=finite_or_none(metrics),
        phantom=data.phantom,
        confusion=tables,
        turned=turning,
    )
    return reply(message, report, arrays)


@app.evaluate(JUDGE)
@guarded
def judge(message: Message, context: Context) -> Message:
    """Tell what a candidate is worth on the validation images: a few figures, in one pass."""
    instruction = read_instruction(message)
    assignment = assignment_of(context, instruction)
    data = read_data(assignment, instruction)
    begun = time.perf_counter()
    figures = judge_images(received_to_judge(message, instruction, assignment, data), data.val)
    report = Report(
        run=instruction.run,
        server_round=instruction.server_round,
        site=assignment.site,
        num_examples=len(data.val),
        seconds=time.perf_counter() - begun,
        metrics=finite_or_none({f"val.{name}": value for name, value in figures.items()}),
        phantom=data.phantom,
    )
    return reply(message, report)


@app.query(MEASURE_NORMS)
@guarded
def norms(message: Message, context: Context) -> Message:
    """Measure the BatchNorm statistics of the fused model on this site's training images (REPAIR)."""
    instruction = read_instruction(message)
    refuse_bare_statistics(instruction, "measuring BatchNorm statistics")
    assignment = assignment_of(context, instruction)
    data = read_data(assignment, instruction)
    begun = time.perf_counter()
    model, _ = receive_model(message, instruction, kept_parts(assignment, instruction, instruction.server_round + 1))
    report = Report(
        run=instruction.run,
        server_round=instruction.server_round,
        site=assignment.site,
        num_examples=len(data.train),
        seconds=time.perf_counter() - begun,
        phantom=data.phantom,
    )
    measured = measure_norms(model, data.train, instruction, assignment.site)
    return reply(message, report, {NORMS: tensor_record(measured)})


def train_site(
    message: Message,
    instruction: Instruction,
    assignment: Assignment,
    data: SiteData,
    model: nn.Module,
    start: dict[str, Tensor],
) -> tuple[TrainReport, dict[str, Tensor] | None]:
    """Train ``model`` in place; also return the change of the control variate that may leave."""
    folder = Path(assignment.state)
    control = load_kept(folder, "control", instruction.run, before=instruction.server_round)
    server_control = read_tensors(message, CONTROL)
    if instruction.keep_local and server_control is not None:
        # A part that stays here has no common direction to be drawn to: its shift c - c_i is zero.
        zero = {name: torch.zeros_like(tensor) for name, tensor in split_kept(start, instruction.keep_local)[1].items()}
        server_control = {**server_control, **zero, **split_kept(control or {}, instruction.keep_local)[1]}
    trained = train_locally(
        model,
        data.train,
        instruction.local,
        num_classes=len(instruction.classes),
        normalise=partial(normalise, model=model),
        seed=derive_seed("train", instruction.seed, assignment.site, instruction.server_round),
        reference=start,
        control=control,
        server_control=server_control,
        privacy=private_round(instruction, assignment.site, folder),
        frozen=instruction.frozen,
    )
    if trained.control is None:
        return trained, None
    save_kept(folder, "control", instruction.run, instruction.server_round, trained.control.control)
    return trained, split_kept(trained.control.change, instruction.keep_local)[0]


def statistics_asked(
    model: nn.Module, start: State, shared: State, data: SiteData, instruction: Instruction, site: str
) -> dict[str, ArrayRecord]:
    """Return what the server's rule needs to know of this site's images, measured on the model that is sent."""
    arrays: dict[str, ArrayRecord] = {}
    if "gram" in instruction.statistics:
        arrays[GRAMS] = tensor_record(measure_grams(model, data.train, instruction, site, names=shared))
    if "activations" in instruction.statistics:
        arrays[ACTIVATIONS] = array_record(measure_activations(model, start, shared, data.train, instruction, site))
    return arrays


def private_round(instruction: Instruction, site: str, folder: Path) -> PrivateRound | None:
    """Return the round as the site's privacy ledger sees it, or None for a run without a privacy budget.

    Raises:
        PrivacyError: If a run without a budget would use images that an earlier run had promised to protect.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # What the server knows of makes a site more careful, never less: the ledger's own witness counts too.
    ledger = Ledger(folder / "privacy-ledger.json", site=site, at_least=instruction.ledger_entries)
    if instruction.privacy is None:
        if ledger.entries():
            raise PrivacyError(
                f"site {site}: these images were trained on under a privacy budget, and this run has none: without "
                "noise the promise would be void. Give the run a budget (--dp-epsilon)."
            )
        return None
    return PrivateRound(instruction.privacy, ledger, instruction.run, instruction.server_round, instruction.rounds)


def kept_parts(assignment: Assignment, instruction: Instruction, before: int) -> dict[str, Tensor] | None:
    """Return the tensors this site kept of the rounds below ``before``; None where it keeps none or has none yet."""
    if not instruction.keep_local:
        return None
    return load_kept(Path(assignment.state), "personal", instruction.run, before=before)


def received_to_judge(message: Message, instruction: Instruction, assignment: Assignment, data: SiteData) -> nn.Module:
    """Return the model, or the ensemble of models, that a message asks to be judged, as it answers at this site."""
    if instruction.num_models > 1:
        return Ensemble(*receive_ensemble(message, instruction))
    model = receive_model(message, instruction, kept_parts(assignment, instruction, instruction.server_round + 1))[0]
    if not instruction.class_counts:
        return model
    own = class_counts(data.train, len(instruction.classes))
    return OwnPrior(model, prior_shift(own, instruction.class_counts))


def matching_told(aligned: Aligned | None) -> dict[str, object]:
    """Return what a report says about matching at the site; nothing where there was none."""
    if aligned is None:
        return {}
    return {
        "gains": finite_or_none(aligned.gains),
        "identity": aligned.identity,
        "match_note": aligned.note[:MAX_REASON],
        "angles": aligned.moves.angles,
        "moved": aligned.moves.moved,
        "units": aligned.moves.units,
    }
