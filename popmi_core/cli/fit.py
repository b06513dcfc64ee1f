"""`popmi fit`: one model trained in one place, with PREA of a group that is named or chosen by validation."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popmi_core import __version__
from popmi_core.cli.barrier import told
from popmi_core.cli.outputs import as_json
from popmi_core.config import ModelConfig, RunConfig, overlay, parse_config
from popmi_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import nn

    from popmi_core.data import SiteData
    from popmi_core.learning.choose import Candidate, Choice
    from popmi_core.learning.fit import FitConfig, Fitted


def fit(
    model: Annotated[str, typer.Option(help="Any timm model by name.")],
    data: Annotated[
        list[str], typer.Option(help="Images: npz, folder, class folders, phantom:<site>; repeat for more sites.")
    ],
    out: Annotated[Path, typer.Option(help="File to write the model to.", dir_okay=False)],
    group: Annotated[str, typer.Option(help="PREA: none, C4, D4, or auto: chosen by validation.")] = "none",
    merge_block: Annotated[
        int | None, typer.Option(min=0, help="PREA merges after this block (default: ViT a quarter, else all).")
    ] = None,
    fields: Annotated[str, typer.Option(help="PREA's: trivial, or regular: channels turn with the image.")] = "trivial",
    free_blocks: Annotated[
        int, typer.Option(min=0, help="So many of the last blocks may see orientation (auto tries 1).")
    ] = 0,
    adapters: Annotated[
        str | None,
        typer.Option(
            help="bottleneck, lifted-conv, lora, joined by +, or none; default bottleneck, none in regular fields."
        ),
    ] = None,
    image_size: Annotated[int, typer.Option(min=8, help="Pixels per side.")] = 64,
    patch_size: Annotated[int | None, typer.Option(min=1, help="Of a ViT.")] = None,
    weights: Annotated[str, typer.Option(help="random, pretrained or a safetensors file.")] = "random",
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="The highest, after the warm-up.")] = 1e-3,
    augment: Annotated[
        str,
        typer.Option(help="Random views: none, shifts, quarter, dihedral, rotations, dihedral+shifts, or by group."),
    ] = "by group",
    choose: Annotated[
        str, typer.Option(help="Best epoch by balanced_accuracy, accuracy or auroc.")
    ] = "balanced_accuracy",
    pilots: Annotated[int, typer.Option(min=1, help="Pilots of every candidate, for auto.")] = 2,
    pilot_epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of one; default a third, 3 at least.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same machine: the same model.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    json_only: Annotated[bool, typer.Option("--json", help="Print the result as JSON only.")] = False,
) -> None:
    """Train one model in one place, and write it with its card."""
    from popmi_core.cli.trained import require_file, save_model, scores_of
    from popmi_core.learning.fit import FitConfig

    started = time.perf_counter()
    require_file("--out", out, [Path(weights)], force=force)
    asked = {"group": group, "merge_block": merge_block, "fields": fields, "free_blocks": free_blocks}
    asked |= {"adapters": adapters}
    wanted = _model(
        {"backbone": model, "image_size": image_size, "patch_size": patch_size, "weights": weights, "adapter": asked}
    )
    config = FitConfig(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed, choose=_figure(choose),
        augment="dihedral+shifts" if augment == "by group" else augment,  # type: ignore[arg-type]
    )  # fmt: skip
    with told(quiet=json_only) as tell:
        job = _read(data, wanted)
        choice = None
        if group == "auto":
            choice = _choose(job, config, pilots=pilots, epochs=pilot_epochs or max(3, epochs // 3), tell=tell)
            job = job.of(choice.chosen)
        if augment == "by group" and (choice is not None or job.model.adapter.free_blocks):
            config = _views(config, job.model)
        trained, fitted = _train(job, config, tell)
        figures = _describe(job, config, fitted, choice)
        figures["scores"] = scores_of({"model": trained}, job.sites)
        figures["seconds"] = round(time.perf_counter() - started, 2)
        figures["sha256"] = save_model(out, trained, {"card": figures}, image_size=image_size)
    if json_only:
        typer.echo(as_json({**figures, "out": str(out)}))
    else:
        _show(figures, out)


@dataclass(frozen=True)
class _Job:
    """What is trained, and on which images."""

    model: ModelConfig
    sites: dict[str, SiteData]
    classes: tuple[str, ...]

    def of(self, candidate: Candidate) -> _Job:
        """Return the same with the candidate's way to treat orientation."""
        return _Job(with_candidate(self.model, candidate), self.sites, self.classes)

    def build(self, seed: int) -> nn.Module:
        """Return a fresh model."""
        from popmi_core.models import build_model

        return build_model(self.model, len(self.classes), seed=seed)


def with_candidate(model: ModelConfig, candidate: Candidate) -> ModelConfig:
    """Return the model's description with the candidate's group and free blocks."""
    changed = {"group": candidate.group, "free_blocks": candidate.free_blocks}
    if candidate.group == "none":
        changed |= {"merge_block": None, "fields": "trivial"}
    return model.model_copy(update={"adapter": model.adapter.model_copy(update=changed)})


def _model(described: dict[str, Any]) -> ModelConfig:
    kept = {key: value for key, value in described.items() if value is not None}
    kept["adapter"] = {key: value for key, value in described["adapter"].items() if value is not None}
    run: RunConfig = parse_config(overlay({}, {"model": kept}), source="the command line")
    return run.model


def _figure(name: str) -> Any:
    from popmi_core.learning.choose import SHARES

    if name not in SHARES:
        raise ConfigError(f"--choose {name}: expected one of {', '.join(SHARES)}.")
    return name


def _read(specs: list[str], model: ModelConfig) -> _Job:
    from popmi_core.cli.sites import read_sites

    sites = read_sites(specs, image_size=model.image_size, classes=None)
    lists = {data.classes for data in sites.values()}
    if len(lists) > 1:
        raise ConfigError(
            f"the sites have different classes ({'; '.join(', '.join(names) for names in sorted(lists))}). Give sites "
            "of one list of classes."
        )
    classes = next(iter(lists))
    if len(classes) < 2:
        raise DataError(
            f"all images are of one class ({', '.join(classes)}), expected two classes or more. "
            "There is nothing to tell apart: give more images."
        )
    return _Job(model, sites, classes)


def _choose(job: _Job, config: FitConfig, *, pilots: int, epochs: int, tell: Any) -> Choice:
    from dataclasses import replace

    from popmi_core.cli.trained import images_of
    from popmi_core.learning.choose import candidates_for, choose_group

    return choose_group(
        lambda candidate, seed: job.of(candidate).build(seed),
        images_of(job.sites, "train"),
        images_of(job.sites, "val"),
        replace(config, epochs=epochs),
        candidates=candidates_for(job.model.adapter),
        seeds=pilots,
        on_pilot=lambda candidate, seed, figure: tell(f"pilot {candidate.name}, seed {seed}: {figure:.3f}"),
    )


def _views(config: FitConfig, model: ModelConfig) -> FitConfig:
    """Return the config with views that the group allows: an exact model gains nothing from turns of its own."""
    from dataclasses import replace

    adapter = model.adapter
    return replace(config, augment="dihedral+shifts" if adapter.group == "D4" and not adapter.free_blocks else "shifts")


def _train(job: _Job, config: FitConfig, tell: Any) -> tuple[nn.Module, Fitted]:
    from popmi_core.cli.trained import images_of
    from popmi_core.learning.fit import fit as train

    model = job.build(config.seed)

    def on_epoch(epoch: Any) -> None:
        tell(
            f"epoch {epoch.number} of {config.epochs}: loss {epoch.loss:.4f}, {epoch.figures.get(config.choose, 0):.3f}"
        )

    fitted = train(model, images_of(job.sites, "train"), images_of(job.sites, "val"), config, on_epoch=on_epoch)
    return model, fitted


def _describe(job: _Job, config: FitConfig, fitted: Fitted, choice: Choice | None) -> dict[str, Any]:
    from dataclasses import asdict

    from popmi_core.adapters.soft import softness

    return {
        "model": job.model.model_dump(mode="json"),
        "made_by": "fit",
        "classes": list(job.classes),
        "phantom": any(data.phantom for data in job.sites.values()),
        "sites": {site: len(data.train) for site, data in job.sites.items()},
        "training": asdict(config),
        "epoch": fitted.best.number,
        "validation": dict(fitted.best.figures),
        "history": [{"loss": epoch.loss, **epoch.figures} for epoch in fitted.history],
        "images_per_second": round(max(epoch.images_per_second for epoch in fitted.history), 1),
        "choice": None if choice is None else choice.to_json(),
        "softness": softness(fitted.state),
        "version": __version__,
    }


def _show(figures: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    console = Console()
    adapter = figures["model"]["adapter"]
    free = f", {adapter['free_blocks']} free blocks" if adapter.get("free_blocks") else ""
    free += " in regular fields" if adapter.get("fields") == "regular" else ""
    lines = [f"group chosen: {figures['choice']['sentence']}"] if figures["choice"] else []
    lines.append(
        f"{figures['model']['backbone']}, PREA {adapter['group']}{free}; best epoch {figures['epoch']} of "
        f"{len(figures['history'])}, {figures['images_per_second']:.0f} images/s"
    )
    for split, scored in figures["scores"].items():
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scored["model"].items())
        lines.append(f"{split} ({scored['images']} images): {shown}")
    if figures["phantom"]:
        lines.append("these images are phantoms, drawn by the computer: the figures say nothing about patients")
    for line in [*lines, f"model: {out}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
