"""`popmi distill`: a PREA model taught to one that costs what the plain backbone does, without labels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popmi_core import __version__
from popmi_core.cli.barrier import told
from popmi_core.cli.outputs import as_json
from popmi_core.errors import ConfigError

if TYPE_CHECKING:
    from popmi_core.adapters import Prea
    from popmi_core.cli.opened import Opened
    from popmi_core.data import SiteData
    from popmi_core.learning.distill import DistillConfig, Distilled


def distill(
    teacher: Annotated[Path, typer.Argument(help="The teacher's safetensors file: a model under PREA, merged late.")],
    data: Annotated[
        list[str],
        typer.Option(
            help="Images to distil on (their labels are not read): npz, folder, class folders, phantom:<site>."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write the student to.", dir_okay=False)],
    fold: Annotated[
        Path | None, typer.Option(help="Write the plain timm checkpoint here, too.", dir_okay=False)
    ] = None,
    model: Annotated[str | None, typer.Option(help="timm's name; POPMI's own files know theirs.")] = None,
    model_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for timm, such as img_size=64.")] = None,
    adapter: Annotated[str | None, typer.Option(help="PREA inside: C4 or D4 (C4:2: merged after block 2).")] = None,
    group: Annotated[
        str | None, typer.Option(help="For a teacher without PREA: its orbit average under C4 or D4 teaches.")
    ] = None,
    merge_block: Annotated[int, typer.Option(min=0, help="The student merges after this block; 0 costs nothing.")] = 0,
    adapters: Annotated[
        str, typer.Option(help="The student's: none, lora, bottleneck, lifted-conv, joined by +.")
    ] = "none",
    rank: Annotated[int, typer.Option(min=1, help="Of these.")] = 8,
    fields: Annotated[
        str, typer.Option(help="The student's: trivial, or regular (channels turn with the image).")
    ] = "trivial",
    allow_approximate: Annotated[
        bool, typer.Option("--allow-approximate", help="Take a student that is only nearly exact at this image size.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="The highest, after the warm-up.")] = 1e-3,
    temperature: Annotated[float, typer.Option(help="Softens both sides' probabilities.")] = 2.0,
    features: Annotated[
        float | None, typer.Option(help="Weight of the feature term; 1, or 0 with regular fields.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same machine: the same student.")] = 0,
    score: Annotated[bool, typer.Option("--score", help="Score both on the labelled val and test images.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    json_only: Annotated[bool, typer.Option("--json", help="Print the result as JSON only.")] = False,
) -> None:
    """Teach a model under PREA to a student without copies, on images without labels."""
    from popmi_core.cli.trained import require_file, save_model
    from popmi_core.learning.distill import DistillConfig
    from popmi_core.learning.fit import FitConfig

    started = time.perf_counter()
    targets = [("--out", out)] + ([("--fold", fold)] if fold is not None else [])
    for option, path in targets:
        require_file(option, path, [teacher], force=force)
    if fold is not None and (merge_block != 0 or adapters not in ("none", "lora")):
        raise ConfigError("--fold writes a plain network: take --merge-block 0 and --adapters none or lora.")
    training = FitConfig(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed, augment="shifts", choose="nll"
    )
    if features is None:
        features = 0.0 if fields == "regular" else 1.0
    config = DistillConfig(fit=training, temperature=temperature, features=features)
    wanted = {
        "merge_block": merge_block, "adapters": adapters, "rank": rank, "fields": fields,
        "allow_approximate": allow_approximate,
    }  # fmt: skip
    with told(quiet=json_only) as tell:
        job = _read(
            teacher, data, model=model, model_arg=model_arg or [], adapter=adapter, group=group, score=score,
            allow_approximate=allow_approximate,
        )  # fmt: skip
        done = _teach(job, config, wanted, tell)
        figures = _describe(job, done, config, score=score) | {"seconds": round(time.perf_counter() - started, 2)}
        size = job.opened.architecture.image_size
        figures["sha256"] = save_model(out, done.student, {"lineage": _lineage(job, done, figures)}, image_size=size)
        if fold is not None:
            from popmi_core.adapters import fold as folded

            plain = {**_lineage(job, done, figures), "adapter": "none", "merge_block": None, "fields": "trivial"}
            figures["fold_sha256"] = save_model(fold, folded(done.student), {"lineage": plain}, image_size=size)
    paths = {option.removeprefix("--"): str(path) for option, path in targets}
    if json_only:
        typer.echo(as_json({**figures, **paths}))
    else:
        _show(figures, paths)


@dataclass(frozen=True)
class _Job:
    opened: Opened
    teacher: Prea
    sites: dict[str, SiteData]


@dataclass(frozen=True)
class _Done:
    student: Prea
    found: Distilled


def _read(
    teacher: Path, data: list[str], *, model: str | None, model_arg: list[str], adapter: str | None,
    group: str | None, score: bool, allow_approximate: bool,
) -> _Job:  # fmt: skip
    from popmi_core.adapters import Prea, attach
    from popmi_core.adapters.trunk import depth
    from popmi_core.cli.opened import open_model
    from popmi_core.cli.sites import read_sites

    opened = open_model(teacher, model=model, model_arg=model_arg, adapter=adapter)
    whole = opened.model
    if isinstance(whole, Prea) == (group is not None):
        problem = (
            "is under PREA already: leave --group out" if group else "is not under PREA: say with --group C4 or D4"
        )
        raise ConfigError(f"{opened.parent.file} {problem}.")
    if not isinstance(whole, Prea):
        size = opened.architecture.image_size
        whole = attach(
            whole, group=str(group), merge_block=depth(whole), adapters="none", image_size=size,
            allow_approximate=allow_approximate,
        ).eval()  # fmt: skip
    architecture = opened.architecture
    # Without --score nothing depends on the labels, so that other classes, or none, are fine.
    classes = architecture.classes if score else None
    names, size = architecture.class_names, architecture.image_size
    return _Job(opened, whole, read_sites(data, image_size=size, classes=classes, names=names))


def _teach(job: _Job, config: DistillConfig, wanted: dict[str, Any], tell: Any) -> _Done:
    from popmi_core.cli.trained import images_of
    from popmi_core.learning.distill import distill as teach
    from popmi_core.learning.distill import student_of

    size = job.opened.architecture.image_size
    student = student_of(job.teacher, **wanted, seed=config.fit.seed, image_size=size)

    def on_epoch(epoch: Any) -> None:
        tell(
            f"epoch {epoch.number} of {config.fit.epochs}: loss {epoch.loss:.4f}, "
            f"agreement {epoch.figures['agreement']:.3f}"
        )

    return _Done(student, teach(job.teacher, student, images_of(job.sites, "train").images, config, on_epoch=on_epoch))


def _describe(job: _Job, done: _Done, config: DistillConfig, *, score: bool) -> dict[str, Any]:
    from popmi_core.adapters import detach
    from popmi_core.cli.trained import cost_of, scores_of

    best, found = done.found.fitted.best, done.found
    models = {"teacher": job.teacher, "student": done.student}
    figures: dict[str, Any] = {
        "group": job.teacher.group.name,
        "teacher_merge_block": job.teacher.merge_block,
        "merge_block": done.student.merge_block,
        "fields": done.student.fields,
        "images": {"train": found.images[0], "held_out": found.images[1]},
        "epoch": best.number,
        "before": found.before,
        **dict(best.figures),
        "temperature": config.temperature,
        "features": config.features,
        "cost": cost_of({**models, "plain": detach(job.teacher)}, job.opened.architecture.image_size),
        "history": [{"loss": epoch.loss, **epoch.figures} for epoch in found.fitted.history],
    }
    return figures | ({"scores": scores_of(models, job.sites)} if score else {})


def _lineage(job: _Job, done: _Done, figures: dict[str, Any]) -> dict[str, Any]:
    from popmi_core.cli.lowranks import low_rank_of
    from popmi_core.cli.parents import Parent

    architecture, student = job.opened.architecture, done.student
    low_rank = low_rank_of([Parent("student", "student", "", student.state_dict(), {})], [{}], None)
    return {
        "parents": [{"file": job.opened.parent.file, "sha256": job.opened.parent.sha256}],
        "made_by": "distill",
        "model": architecture.name,
        "model_arguments": architecture.arguments,
        "adapter": student.group.name,
        "lora": None if low_rank is None else low_rank.to_json(),
        "classes": architecture.classes,
        "class_names": architecture.class_names,
        "image_size": architecture.image_size,
        "version": __version__,
        **{key: value for key, value in figures.items() if key != "group"},
    }


def _show(figures: dict[str, Any], paths: dict[str, str]) -> None:
    from rich.console import Console

    console = Console()
    cost, speed = figures["cost"]["ratio"], figures["cost"]["images_per_second"]
    merged = "in regular fields" if figures["fields"] == "regular" else f"merged at block {figures['merge_block']}"
    lines = [
        f"teacher: {figures['group']}, merged after block {figures['teacher_merge_block']}; "
        f"cost x{cost['teacher']:.2f} of the plain backbone, {speed['teacher']:.0f} images/s",
        f"student: {figures['group']}, {merged}; cost x{cost['student']:.2f}, {speed['student']:.0f} images/s",
        f"same answer on {figures['agreement']:.1%} of {figures['images']['held_out']} held-out images "
        f"(before: {figures['before']['agreement']:.1%}); divergence {figures['divergence']:.4f} nats "
        f"(before: {figures['before']['divergence']:.4f}); epoch {figures['epoch']}",
    ]
    for split, scored in figures.get("scores", {}).items():
        for who in ("teacher", "student"):
            told_of = ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in scored[who].items())
            lines.append(f"{split} ({scored['images']} images), {who}: {told_of}")
    for line in [*lines, *(f"{what}: {path}" for what, path in paths.items())]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _shown(value: float) -> str:
    return "undefined" if value != value else f"{value:.4f}"
