"""`popmi certify`: the certificate of equivariance of one model for its sites' images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popmi_core.cli.barrier import told
from popmi_core.cli.modelreport import about, require_place, show, write_texts
from popmi_core.cli.outputs import as_json
from popmi_core.errors import ConfigError

if TYPE_CHECKING:
    from popmi_core.cli.certifying import Certificate

FIGURES_FILE, PAGE_FILE = "certificate.json", "certificate.html"


def certify(
    model_file: Annotated[Path, typer.Argument(metavar="MODEL", help="The model's safetensors file.")],
    data: Annotated[
        list[str],
        typer.Option(help="Images: npz, folder, class folders, phantom:<site>; repeat for more sites."),
    ],
    model: Annotated[str | None, typer.Option(help="timm's name; POPMI's own files know theirs.")] = None,
    model_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for timm, such as img_size=64.")] = None,
    adapter: Annotated[str | None, typer.Option(help="PREA inside: C4 or D4 (C4:2: merged after block 2).")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Low-rank adapters are scaled by this / rank.")] = None,
    image_size: Annotated[int | None, typer.Option(min=8, help="Pixels per side, where the model takes any.")] = None,
    group: Annotated[str | None, typer.Option(help="C4, D4, ...; by default the model's own, else C4.")] = None,
    alpha: Annotated[float, typer.Option(help="The statistical bound may fail for this share of images.")] = 0.1,
    split: Annotated[
        str, typer.Option(help="train, val, test or external; none that training or choices saw.")
    ] = "test",
    limit: Annotated[int, typer.Option(min=2, help="At most so many images, drawn at random (seed 0).")] = 400,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, page and pictures.", file_okay=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a certificate that is in the folder.")] = False,
    json_only: Annotated[bool, typer.Option("--json", help="Print the certificate as JSON only.")] = False,
) -> None:
    """Say what turning can do to a model's answers: proved by its weights, taken apart by layer, bounded by site."""
    if not 0 < alpha < 1:
        raise ConfigError(f"--alpha {alpha:g}: expected a share between 0 and 1, such as 0.1.")
    if out is not None:
        require_place(out, FIGURES_FILE, what="a certificate", force=force)
    from popmi_core.cli import certifying
    from popmi_core.cli.certificate_tables import all_tables
    from popmi_core.cli.evaluation import read_parts
    from popmi_core.cli.opened import open_model

    started = time.perf_counter()
    with told(quiet=json_only) as tell:
        opened = open_model(
            model_file, model=model, model_arg=model_arg or [], adapter=adapter, lora_alpha=lora_alpha,
            image_size=image_size,
        )  # fmt: skip
        tell("reading images")
        parts = read_parts(
            data, image_size=opened.architecture.image_size, classes=opened.architecture.classes,
            names=opened.architecture.class_names, split=split, limit=limit, native=True,
        )  # fmt: skip
        found = certifying.certify_model(opened, parts, group=group, alpha=alpha, tell=tell)
        figures = {**about(opened, split), **found.to_json(), "seconds": round(time.perf_counter() - started, 2)}
        paths = _write(found, figures, out, tell) if out is not None else []
    if json_only:
        typer.echo(as_json(figures))
        return
    show(all_tables(found), certifying.plain_words(found), paths)


def _write(found: Certificate, figures: dict[str, Any], out: Path, tell: Any) -> list[Path]:
    from popmi_core.cli.certificate_page import page
    from popmi_core.cli.certificate_pictures import draw_all

    tell("drawing")
    drawn = draw_all(found, out)
    texts = {FIGURES_FILE: as_json(figures) + "\n", PAGE_FILE: page(found, figures, [path.name for path in drawn])}
    return [*write_texts(out, texts), *drawn]
