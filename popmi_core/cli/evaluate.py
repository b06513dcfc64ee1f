"""`popmi evaluate`: how good a model is, how it takes turned images, and which layers make it change."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popmi_core.cli.barrier import told
from popmi_core.cli.outputs import as_json, require_writable
from popmi_core.errors import ConfigError, RunError

if TYPE_CHECKING:
    from popmi_core.cli.evaluation import Evaluation
    from popmi_core.cli.opened import Opened

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
    split: Annotated[str, typer.Option(help="train, val, test or external.")] = "test",
    rotations: Annotated[bool, typer.Option("--rotations", help="Turn every image by 0 to 350 degrees.")] = False,
    lee: Annotated[bool, typer.Option("--lee", help="Local equivariance error, end to end and by layer.")] = False,
    limit: Annotated[int | None, typer.Option(min=2, help="At most so many images, drawn at random (seed 0).")] = None,
    lee_images: Annotated[int, typer.Option(min=2, help="Images for --lee, drawn at random (seed 0).")] = 32,
    samples: Annotated[int, typer.Option(min=0, help="Images shown at their worst angle; 0 shows none.")] = 6,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, page and pictures.", file_okay=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an evaluation that is in the folder.")] = False,
    json_only: Annotated[bool, typer.Option("--json", help="Print the figures as JSON only.")] = False,
) -> None:
    """Judge one model: accuracy, calibration; with --rotations and --lee, how far it is from equivariant."""
    if out is not None:
        _require_pictures()
        _require_place(out, force=force)
    from popmi_core.cli import evaluation
    from popmi_core.cli.opened import open_model

    started = time.perf_counter()
    with told(quiet=json_only) as tell:
        opened = open_model(
            model_file, model=model, model_arg=model_arg or [], adapter=adapter, lora_alpha=lora_alpha,
            image_size=image_size,
        )  # fmt: skip
        tell("reading images")
        parts = evaluation.read_parts(
            data, image_size=opened.architecture.image_size, classes=opened.architecture.classes, split=split,
            limit=limit, native=rotations,
        )  # fmt: skip
        found = evaluation.evaluate_model(
            opened, parts, rotations=rotations, lee=lee_images if lee else 0, samples=samples if out else 0, tell=tell
        )
        figures = {**_about(opened, split), **found.to_json(), "seconds": round(time.perf_counter() - started, 2)}
        paths = _write(found, figures, out, tell) if out is not None else []
    if json_only:
        typer.echo(as_json(figures))
        return
    _show(found)
    for path in paths:
        typer.echo(str(path))


def _about(opened: Opened, split: str) -> dict[str, Any]:
    """Return what was judged; the model by its file's name without folders."""
    from popmi_core import __version__

    made = opened.architecture
    return {
        "popmi": __version__,
        "model": {
            "file": opened.parent.file,
            "sha256": opened.parent.sha256,
            "backbone": made.name,
            "adapter": made.adapter,
            "merge_block": made.merge_block,
            "image_size": made.image_size,
        },
        "split": split,
    }


def _show(found: Evaluation) -> None:
    from rich.console import Console

    from popmi_core.cli import evaluation_tables as tables

    console = Console()
    for table in tables.all_tables(found):
        console.print(table)
    for line in tables.plain_words(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _write(found: Evaluation, figures: dict[str, Any], out: Path, tell: Any) -> list[Path]:
    from popmi_core.checkpoints import replace_atomically
    from popmi_core.cli import evaluation_pictures as pictures
    from popmi_core.cli.evaluation_page import page

    tell("drawing")
    drawn = pictures.draw_all(found, out)
    texts = {FIGURES_FILE: as_json(figures) + "\n", PAGE_FILE: page(found, figures, [p.name for p in drawn])}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            replace_atomically(out / name, text.encode())
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror}. Choose another folder with --out.") from error
    return [*(out / name for name in texts), *drawn]


def _require_place(out: Path, *, force: bool) -> None:
    require_writable(out, out)
    if (out / FIGURES_FILE).exists() and not force:
        raise ConfigError(
            f"--out {out}: there is an evaluation in it already. Choose another folder, or replace it with --force."
        )


def _require_pictures() -> None:
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--out draws pictures with the package '{error.name}', which is not installed. "
            "Install popmi[analysis], or leave --out away for the tables alone."
        ) from error
