"""`popmi fuse`: several models of one architecture become one, with no federation and no configuration."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popmi_core import __version__
from popmi_core.cli.barrier import told
from popmi_core.cli.outputs import as_json, require_writable
from popmi_core.errors import ConfigError

if TYPE_CHECKING:
    from popmi_core.cli.fusing import Job, Outcome

REFERENCES = ("first", "in-turn", "medoid", "mean")
LINEAGE = "lineage"


def fuse(
    models: Annotated[list[Path], typer.Argument(help="Safetensors files of one architecture, two or more.")],
    model: Annotated[str | None, typer.Option(help="timm's name; POPMI's own files know theirs.")] = None,
    model_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for timm, such as img_size=64.")] = None,
    adapter: Annotated[str | None, typer.Option(help="PREA inside: C4 or D4 (C4:2: merged after block 2).")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Low-rank adapters are scaled by this / rank.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="Fusion rule: opm (default), opm-soup, average; docs/fuse.md lists all.")
    ] = None,
    gate: Annotated[str | None, typer.Option(help="Rules with commas between; the best on validation wins.")] = None,
    match: Annotated[
        str, typer.Option(help="OPM rules match by weights, permutations, probes, activations or learned.")
    ] = "weights",
    reference: Annotated[str, typer.Option(help="Whose basis: first, in-turn, medoid, mean, or a file.")] = "first",
    starts: Annotated[
        int,
        typer.Option(min=1, max=32, help="Descents by weights, of which the closest counts: 4 for nets without heads."),
    ] = 1,
    weights: Annotated[str | None, typer.Option(help="Numbers of examples, with commas; default: all equal.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Images: npz, folder, class folders, phantom:<site>; repeat for more sites."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=8, help="Pixels per side, where the model takes any.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Measure BatchNorm statistics anew on the images.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write the fused model to.", dir_okay=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    json_only: Annotated[bool, typer.Option("--json", help="Print the result as JSON only.")] = False,
) -> None:
    """Put models of one architecture into one basis and fuse them into one plain timm checkpoint."""
    _check_out(out, [*models, *([Path(reference)] if _is_file(reference) else [])], force=force)
    counts = _weights(weights, len(models))
    from popmi_core.cli.fusing import perform
    from popmi_core.cli.parents import check_loads

    started = time.perf_counter()
    with told(quiet=json_only) as tell:
        job = _read(
            models, model=model, model_arg=model_arg or [], adapter=adapter, rule=rule, gate=gate,
            lora_alpha=lora_alpha, match=match, reference=reference, weights=counts, data=data or [],
            image_size=image_size, repair=repair, starts=starts,
        )  # fmt: skip
        outcome = perform(job, tell)
        check_loads(outcome.fused.state, job.architecture)
        figures = {**describe(job, outcome), "seconds": round(time.perf_counter() - started, 2)}
        figures["sha256"] = _save(out, outcome, figures) if out is not None else None
    if json_only:
        typer.echo(as_json({**figures, "out": None if out is None else str(out)}))
        return
    show(job, outcome, out)


def describe(job: Job, outcome: Outcome) -> dict[str, Any]:
    """Return what was done and what came of it, for JSON and for the file's lineage; no folder is named."""
    from popmi_core.cli.fuse_tables import motion
    from popmi_core.cli.sites import SPLITS

    architecture, fused = job.architecture, outcome.fused
    figures = {
        "parents": [{"file": parent.file, "sha256": parent.sha256} for parent in job.parents],
        "model": architecture.name,
        "model_arguments": architecture.arguments,
        "adapter": architecture.adapter,
        "merge_block": architecture.merge_block,
        "fields": architecture.fields,
        "lora": None if architecture.low_rank is None else architecture.low_rank.to_json(),
        "classes": architecture.classes,
        "class_names": architecture.class_names,
        "image_size": architecture.image_size,
        "rule": outcome.rule,
        "gate": list(job.rules) if job.gate else None,
        "match": job.match if outcome.moves else None,
        "starts": job.starts if outcome.moves else None,
        "repaired": job.repair,
        "images": {site: {split: len(getattr(data, split)) for split in SPLITS} for site, data in job.sites.items()},
        "reference": outcome.basis.told,
        "reference_sha256": outcome.basis.sha256,
        "weights": fused.weights,
        "matching": {label: [asdict(move) for move in moves] for label, moves in outcome.moves.items()},
        "motion": motion(outcome),
        "distances": {label: list(pair) for label, pair in outcome.distances.items()},
        "validation_losses": fused.scores,
        "regret": fused.regret,
        "notes": fused.notes,
        "loads_strictly": True,
        "version": __version__,
    }
    if outcome.scores:
        scores = {name: {"loss": loss, "accuracy": hit} for name, (loss, hit) in outcome.scores.items()}
        figures["judged"] = {"split": outcome.split, "images": outcome.images, "scores": scores}
    return figures


def show(job: Job, outcome: Outcome, out: Path | None) -> None:
    """Print the moves of every model, the scores, the notes and where the result lies."""
    from rich.console import Console

    from popmi_core.cli import fuse_tables as tables

    console = Console()
    for label, moves in outcome.moves.items():
        if tables.moved(moves):
            console.print(tables.moves_table(label, moves, outcome))
        else:
            console.print(f"{label}: in the basis of {outcome.basis.told} already; nothing moved", markup=False)
    if line := tables.motion(outcome):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if outcome.fused.scores:
        console.print(tables.gate_table(outcome.fused))
    if outcome.scores:
        console.print(tables.scores_table(outcome))
    for line in tables.plain_words(job, outcome, out):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _read(
    models: list[Path], *, model: str | None, model_arg: list[str], adapter: str | None, rule: str | None,
    gate: str | None, lora_alpha: float | None,
    match: str, reference: str, weights: tuple[int, ...], data: list[str], image_size: int | None, repair: bool,
    starts: int,
) -> Job:  # fmt: skip
    from popmi_core.cli.fusing import Job
    from popmi_core.cli.parents import architecture_of, fitted, parse_arguments, read_parents
    from popmi_core.cli.ruleinputs import require_matching, rules_of
    from popmi_core.cli.sites import read_sites

    rules = rules_of(rule, gate, match=match, has_data=bool(data), models=len(models))
    if repair and not data:
        raise ConfigError("--repair measures BatchNorm statistics on images: give them with --data.")
    if reference not in REFERENCES and not _is_file(reference):
        raise ConfigError(f"--reference {reference}: expected {', '.join(REFERENCES)} or a safetensors file.")
    for option, asked in (("--reference in-turn", reference == "in-turn"), (f"--starts {starts}", starts > 1)):
        if asked:
            require_matching(option, rules, gate=gate is not None)
    arguments, parents = parse_arguments(model_arg), read_parents(models)
    architecture = architecture_of(
        parents, name=model, arguments=arguments, adapter=adapter, image_size=image_size, lora_alpha=lora_alpha
    )
    if "lowrank" in rules and architecture.low_rank is None:
        raise ConfigError(
            "rule lowrank averages low-rank adapters as products, and the models have none. Take average."
        )
    sites = read_sites(
        data, image_size=architecture.image_size, classes=architecture.classes, names=architecture.class_names
    )
    whole = fitted(parents, architecture)
    return Job(whole, architecture, rules, gate is not None, match, reference, weights, sites, repair, starts)


def _check_out(out: Path | None, models: list[Path], *, force: bool) -> None:
    if out is None:
        return
    require_writable(out, out.parent)
    try:
        if not out.exists():
            return
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}. Choose another name.") from error
    if any(path.exists() and path.samefile(out) for path in models):
        raise ConfigError(f"--out {out} is one of the models that are read. Choose another file.")
    if not out.is_file():
        raise ConfigError(f"--out {out} is a folder or a device, expected a file's name. Choose another.")
    if not force:
        raise ConfigError(f"--out {out} is there already. Choose another file, or write over it with --force.")


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:
        # Too long for a file's name.
        return False


def _weights(text: str | None, models: int) -> tuple[int, ...]:
    if text is None:
        return (1,) * models
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != models or not all(part.isdecimal() for part in parts) or not any(map(int, parts)):
        raise ConfigError(f"--weights {text}: expected {models} whole numbers with commas between, not all 0.")
    return tuple(map(int, parts))


def _save(out: Path, outcome: Outcome, figures: dict[str, Any]) -> str:
    from popmi_core.checkpoints import save_state

    lineage = {key: value for key, value in figures.items() if key not in ("seconds", "loads_strictly")}
    return save_state(out, outcome.fused.state, {LINEAGE: as_json(dict(sorted(lineage.items())), indent=None)})
