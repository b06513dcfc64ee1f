"""`popmi onnx`: one trained model as ONNX, for programs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from popmi_core.cli.barrier import told
from popmi_core.cli.outputs import as_json


def onnx(
    model_file: Annotated[Path, typer.Argument(metavar="MODEL", help="The model's safetensors file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The ONNX file to write.", dir_okay=False)],
    model: Annotated[str | None, typer.Option(help="timm's name; POPMI's own files know theirs.")] = None,
    model_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for timm, such as img_size=64.")] = None,
    adapter: Annotated[str | None, typer.Option(help="PREA inside: C4 or D4 (C4:2: merged after block 2).")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Low-rank adapters are scaled by this / rank.")] = None,
    image_size: Annotated[int | None, typer.Option(min=8, help="Pixels per side, where the model takes any.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    json_only: Annotated[bool, typer.Option("--json", help="Print what the file is as JSON only.")] = False,
) -> None:
    """Write a model as ONNX, and beside it (OUT.json) what it is and how near its answers are to torch's."""
    from popmi_core.cli.opened import open_model
    from popmi_core.cli.trained import require_file
    from popmi_core.models.onnx_file import to_onnx, write_onnx

    require_file("OUT", out, [model_file], force=force)
    with told(quiet=json_only) as tell:
        opened = open_model(
            model_file, model=model, model_arg=model_arg or [], adapter=adapter, lora_alpha=lora_alpha,
            image_size=image_size,
        )  # fmt: skip
        tell("writing ONNX, and comparing")
        made_of: dict[str, Any] = {"file": opened.parent.file, "sha256": opened.parent.sha256}
        names = opened.architecture.class_names
        if names is not None:
            made_of["classes"] = list(names)
        made = to_onnx(opened.model, opened.architecture.image_size, {"source": as_json(made_of, indent=None)})
        sheet = write_onnx(out, made, made_of)
    if json_only:
        typer.echo(as_json({**sheet, "file": out.name}))
        return
    typer.echo(f"{out}: opset {sheet['opset']}, sha256 {sheet['sha256']}")
    typer.echo(
        f"logits differ from torch's by at most {made.difference:.2g}; the largest is {made.scale:.2g} "
        f"(compared with {made.compared_with})"
    )
