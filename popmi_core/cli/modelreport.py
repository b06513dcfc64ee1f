"""What the commands on one model share: what was looked at, the screen, and a folder with JSON, page and pictures."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from popmi_core.cli.outputs import require_writable
from popmi_core.errors import ConfigError, RunError

if TYPE_CHECKING:
    from rich.table import Table

    from popmi_core.cli.opened import Opened


def require_place(out: Path, figures_file: str, *, what: str, force: bool) -> None:
    """Find out before the work whether a report can be drawn and written into the folder.

    Raises:
        ConfigError: If there is nothing to draw with, nothing can be written, or a report is there, unforced.
    """
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--out draws pictures with the package '{error.name}', which is not installed. "
            "Install popmi[analysis], or leave --out away for the tables alone."
        ) from error
    require_writable(out, out)
    if (out / figures_file).exists() and not force:
        raise ConfigError(
            f"--out {out}: there is {what} in it already. Choose another folder, or replace it with --force."
        )


def about(opened: Opened, split: str) -> dict[str, Any]:
    """Return what was looked at; the model by its file's name without folders, and by its sha256."""
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
            "fields": made.fields,
            "image_size": made.image_size,
            **({"method": opened.method} if opened.method else {}),
        },
        "split": split,
    }


def show(tables: Iterable[Table], words: Sequence[str], paths: Sequence[Path]) -> None:
    """Print the tables, then what they say in words, then where the files are."""
    from rich.console import Console

    console = Console()
    for table in tables:
        console.print(table)
    for line in words:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for path in paths:
        typer.echo(str(path))


def write_texts(out: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write files into the folder, each in one step, and return their paths.

    Raises:
        RunError: If the folder cannot be written.
    """
    from popmi_core.atomic import replace_atomically

    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            replace_atomically(out / name, text.encode())
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror}. Choose another folder with --out.") from error
    return [out / name for name in texts]
