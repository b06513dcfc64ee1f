"""`popmi evaluate`: how good a model is, how it takes turned images, and which layers make it change."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popmi_core.cli.barrier import told
from popmi_core.cli.modelreport import about, require_place, show, write_texts
from popmi_core.cli.outputs import as_json

if TYPE_CHECKING:
    from popmi_core.cli.evaluation import Evaluation

FIGURES_FILE = "evaluation.json"
PAGE_FILE = "evaluation.html"


def evaluate(
    model_file: Annotated[Path, typer.Argument(metavar="MODEL", help="The model's safetensors file.")],
    data: Annotated[
        list[str],
        typer.Option(help="Images to judge on: npz, folder, class folders, phantom:<site>; repeat for more sites."),
    ],
    model: Annotated[str | None, typer.Option(help="timm's name; POPMI's own files know theirs.")] = None,
    model_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for timm, such as img_size=64.")] = None,
    adapter: Annotated[str | None, typer.Option(help="PREA inside: C4 or D4 (C4:2: merged after block 2).")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Low-rank adapters are scaled by this / rank.")] = None,
    image_size: Annotated[int | None, typer.Option(min=8, help="Pixels per side, where the model takes any.")] = None,
    method: Annotated[
        str | None, typer.Option(help="Answer over the turns of an image: tta, equitune-logits, posthoc-mean, ...")
    ] = None,
    method_group: Annotated[str, typer.Option(help="The turns of --method: C4, D4, C8, ...")] = "C4",
    split: Annotated[str, typer.Option(help="train, val, test or external.")] = "test",
    rotations: Annotated[bool, typer.Option("--rotations", help="Turn every image by 0 to 350 degrees.")] = False,
    lee: Annotated[bool, typer.Option("--lee", help="Local equivariance error, end to end and by layer.")] = False,
    limit: Annotated[int | None, typer.Option(min=2, help="At most so many images, one a site at least.")] = None,
    lee_images: Annotated[int, typer.Option(min=2, help="Images for --lee, drawn at random (seed 0).")] = 32,
    samples: Annotated[int, typer.Option(min=0, help="Images shown at their worst angle; 0 shows none.")] = 6,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, page and pictures.", file_okay=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an evaluation that is in the folder.")] = False,
    json_only: Annotated[bool, typer.Option("--json", help="Print the figures as JSON only.")] = False,
) -> None:
    """Judge one model: accuracy, calibration; with --rotations and --lee, how far it is from equivariant."""
    if out is not None:
        require_place(out, FIGURES_FILE, what="an evaluation", force=force)
    from popmi_core.cli import evaluation
    from popmi_core.cli import evaluation_tables as tables
    from popmi_core.cli.opened import open_model
    from popmi_core.cli.orbiting import around

    started = time.perf_counter()
    with told(quiet=json_only) as tell:
        opened = open_model(
            model_file, model=model, model_arg=model_arg or [], adapter=adapter, lora_alpha=lora_alpha,
            image_size=image_size,
        )  # fmt: skip
        if method is not None:
            opened = around(opened, method, method_group)
        tell("reading images")
        parts = evaluation.read_parts(
            data, image_size=opened.architecture.image_size, classes=opened.architecture.classes,
            names=opened.architecture.class_names, split=split, limit=limit, native=rotations,
        )  # fmt: skip
        found = evaluation.evaluate_model(
            opened, parts, rotations=rotations, lee=lee_images if lee else 0, samples=samples if out else 0, tell=tell
        )
        figures = {**about(opened, split), **found.to_json(), "seconds": round(time.perf_counter() - started, 2)}
        paths = _write(found, figures, out, tell) if out is not None else []
    if json_only:
        typer.echo(as_json(figures))
        return
    show(tables.all_tables(found), tables.plain_words(found), paths)


def _write(found: Evaluation, figures: dict[str, Any], out: Path, tell: Any) -> list[Path]:
    from popmi_core.cli import evaluation_pictures as pictures
    from popmi_core.cli.evaluation_page import page

    tell("drawing")
    drawn = pictures.draw_all(found, out)
    texts = {FIGURES_FILE: as_json(figures) + "\n", PAGE_FILE: page(found, figures, [p.name for p in drawn])}
    return [*write_texts(out, texts), *drawn]
