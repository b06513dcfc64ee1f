"""`popmi barrier`: how far two models are apart, before and after matching."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popmi_core.cli.outputs import as_json, require_writable
from popmi_core.errors import ConfigError, RunError

if TYPE_CHECKING:
    from popmi_core.cli.likeness import Likeness

PICTURE_PACKAGES = ("matplotlib", "sklearn")
# Points of the bound shown on the screen; the JSON has all.
SHOWN = 9


def barrier(
    first: Annotated[Path, typer.Argument(help="A model's safetensors file.")],
    second: Annotated[Path, typer.Argument(help="Another one of the same architecture; it is matched to the first.")],
    data: Annotated[
        list[str],
        typer.Option(help="Images to judge on: npz, folder, class folders, phantom:<site>; repeat for more sites."),
    ],
    model: Annotated[str | None, typer.Option(help="timm's name; POPMI's own files know theirs.")] = None,
    model_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for timm, such as img_size=64.")] = None,
    adapter: Annotated[str | None, typer.Option(help="PREA inside: C4 or D4 (C4:2: merged after block 2).")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Low-rank adapters are scaled by this / rank.")] = None,
    image_size: Annotated[int | None, typer.Option(min=8, help="Pixels per side, where the model takes any.")] = None,
    match: Annotated[str, typer.Option(help="weights, permutations, probes, activations or learned.")] = "weights",
    points: Annotated[int, typer.Option(min=3, help="Points of the line, both ends included.")] = 25,
    split: Annotated[str, typer.Option(help="train, val, test or external.")] = "test",
    images: Annotated[int, typer.Option(min=2, help="At most so many images, drawn at random (seed 0).")] = 1000,
    out: Annotated[Path | None, typer.Option(help="Folder for barrier.json and the pictures.", file_okay=False)] = None,
    json_only: Annotated[bool, typer.Option("--json", help="Print the figures as JSON only.")] = False,
) -> None:
    """Walk from one model to another in weights, before and after matching: loss, accuracy, heads, features, bound."""
    if out is not None:
        _require_pictures()
        require_writable(out, out)
    from popmi_core.cli import likeness

    started = time.perf_counter()
    with told(quiet=json_only) as tell:
        inputs = likeness.read(
            (first, second), model=model, model_arg=model_arg or [], adapter=adapter, image_size=image_size,
            lora_alpha=lora_alpha, match=match, data=data, split=split, images=images, tell=tell,
        )  # fmt: skip
        found = likeness.measure(inputs, points=points, tell=tell)
        figures = {**found.to_json(), "seconds": round(time.perf_counter() - started, 2)}
        pictures = _write(found, figures, out, tell) if out is not None else []
    if json_only:
        typer.echo(as_json(figures))
    else:
        show(found)
        for path in pictures:
            typer.echo(str(path))


@contextmanager
def told(*, quiet: bool) -> Iterator[Any]:
    """Yield ``tell(text)``, which says on a terminal what is going on; nothing is said elsewhere or if quiet."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda text: None
        return
    with console.status("reading the models") as status:
        yield status.update


def show(found: Likeness) -> None:
    """Print the path, the barriers, the likeness of heads and layers, and the bound."""
    from rich.console import Console

    from popmi_core.cli import likeness_tables as tables

    console = Console()
    console.print(tables.path_table(found))
    console.print(tables.summary_table(found))
    if found.heads_before:
        console.print(tables.heads_table(found))
    console.print(tables.layers_table(found))
    if found.bounds is not None:
        for table in tables.bound_tables(found, shown=SHOWN):
            console.print(table)
    for line in tables.plain_words(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _write(found: Likeness, figures: dict[str, Any], out: Path, tell: Any) -> list[Path]:
    from popmi_core.atomic import replace_atomically
    from popmi_core.cli import pictures
    from popmi_core.cli.embedding import feature_maps

    table = out / "barrier.json"
    try:
        replace_atomically(table, (as_json(figures) + "\n").encode())
    except OSError as error:
        raise RunError(f"cannot write {table}: {error.strerror}. Choose another folder with --out.") from error
    tell("drawing")
    paths = [table, *pictures.draw_line(found.before, found.after, out)]
    if found.heads_before:
        paths += pictures.draw_heads(found.heads_before, found.heads_after, out)
    paths += pictures.draw_layers(found.layers, out)
    if found.bounds is not None:
        paths += pictures.draw_bounds(found.after, found.bounds, out)
    tell("t-SNE of the features")
    return paths + pictures.draw_features(feature_maps(found), out)


def _require_pictures() -> None:
    for package in PICTURE_PACKAGES:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"--out draws pictures with the package '{error.name}', which is not installed. "
                "Install popmi[analysis], or leave --out away for the tables alone."
            ) from error
