"""`popmi geometry`: at which image sizes a backbone is exact, merge block by merge block."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popmi_core.cli.outputs import as_json
from popmi_core.errors import ModelError

if TYPE_CHECKING:
    from popmi_core.adapters.geometry import Geometry

# Classes change nothing about the geometry.
_CLASSES = 2


def geometry(
    backbone: Annotated[str, typer.Argument(help="timm's name.")],
    image_size: Annotated[int, typer.Option(min=4, help="Pixels per side.")],
    group: Annotated[str, typer.Option(help="C4 (quarter turns) or D4 (and mirror images).")] = "C4",
    merge_block: Annotated[int | None, typer.Option(help="Only this k; all of them by default.")] = None,
    model_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for timm, such as window_size=8.")] = None,
    json_only: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON only.")] = False,
) -> None:
    """Say for every merge block whether the model is exact at an image size: if not, why, how much, and what size is.

    Nothing is downloaded: only the shape of the network counts. The error is that of a copy with tied random weights,
    max |f(gx) - f(x)| over the spread of logits between images.
    """
    found = _check(backbone, image_size, group, merge_block, model_arg or [])
    if json_only:
        verdicts = [{**asdict(one), "reasons": [str(reason) for reason in one.reasons]} for one in found]
        typer.echo(as_json({"backbone": backbone, "image_size": image_size, "group": group, "verdicts": verdicts}))
        return
    _show(backbone, image_size, group, found)


def _check(
    backbone: str, image_size: int, group: str, merge_block: int | None, model_arg: list[str]
) -> tuple[Geometry, ...]:
    import torch

    from popmi_core.adapters.geometry import check_all
    from popmi_core.cli.parents import parse_arguments
    from popmi_core.invariance.network import InvariantNet
    from popmi_core.models.build import create_sized, known_backbone
    from popmi_core.models.octic import OcticVit

    name, arguments = known_backbone(backbone), parse_arguments(model_arg)

    def make(size: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return create_sized(name, _CLASSES, {"img_size": size}, **arguments)[0].eval()

    try:
        model = make(image_size)
    except (TypeError, ValueError, AssertionError, ZeroDivisionError, RuntimeError) as error:
        raise ModelError(
            f"timm cannot make {name} at {image_size} pixels: {error}. Change --image-size or --model-arg."
        ) from error
    if isinstance(model, InvariantNet | OcticVit):
        raise ModelError(
            f"{name} turns with the image by its own layers, there is nothing for PREA to merge. The sizes it takes "
            "are checked when it is made; popmi certify measures a trained one."
        )
    blocks = None if merge_block is None else (merge_block,)
    return check_all(model, image_size, group=group, merge_blocks=blocks)


def _show(backbone: str, image_size: int, group: str, found: tuple[Geometry, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{backbone} at {image_size} px under {group}: merged after block k", title_justify="left")
    for heading in ("k", "verdict", "error", "nearest exact size", "why"):
        table.add_column(heading, no_wrap=heading != "why", overflow="fold")
    for one in found:
        first = str(one.reasons[0]) if one.reasons else ""
        more = f"; and {len(one.reasons) - 1} more" if len(one.reasons) > 1 else ""
        error = "" if one.error is None else f"{one.error:.2g}"
        nearest = "none near" if one.nearest_exact is None else str(one.nearest_exact)
        table.add_row(str(one.merge_block), one.verdict, error, nearest, first + more)
    Console().print(table)
