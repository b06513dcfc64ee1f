"""`popmi data`: bring images into the shape of a site's folder, and look at what is there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from popmi_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from popmi_core.data import SiteData
    from popmi_core.data.card import DatasetCard

app = typer.Typer(help="Prepare, fetch, split and check images.", no_args_is_help=True)
prepare = typer.Typer(help="Bring a public data set into the shape of hospitals' folders.", no_args_is_help=True)
fetch = typer.Typer(help="Download public data sets, checked and resumable.", no_args_is_help=True)
app.add_typer(prepare, name="prepare")
app.add_typer(fetch, name="fetch")

FEWEST_SHOWN = 5
To = Annotated[Path, typer.Option("--to", help="Folder to make.", file_okay=False)]


@prepare.callback()
def _prepare() -> None:
    """Bring a public data set into the shape of hospitals' folders."""


@fetch.callback()
def _fetch() -> None:
    """Download public data sets, checked and resumable."""


@prepare.command("dermoscopy")
def prepare_dermoscopy(
    source: Annotated[Path, typer.Option("--from", help="Folder of the three archives and dermoscopy_index.csv.")],
    target: To,
    image_size: Annotated[int, typer.Option(min=8, max=512, help="Pixels per side.")] = 64,
) -> None:
    """Make five sites and the external test set from HAM10000, ISIC 2017 (MSK) and the ISIC 2018 test images."""
    from popmi_core.data import prepare as preparation

    with _progress("images") as progress:
        card = preparation.prepare_dermoscopy(source, target, image_size=image_size, progress=progress)
    _say_made(card, target)


@fetch.command("medmnist")
def fetch_medmnist(
    name: Annotated[str, typer.Argument(help="A MedMNIST set, e.g. dermamnist.")],
    target: To,
    size: Annotated[int, typer.Option(help="Pixels per side: 28, 64, 128 or 224.")] = 28,
    mirror: Annotated[str | None, typer.Option(help="Address of a folder with the official files.")] = None,
) -> None:
    """Download an official MedMNIST file; a broken transfer goes on where it stopped."""
    from popmi_core.data import fetch as fetching
    from popmi_core.data import medmnist_index as index

    with _progress("bytes") as progress:
        path = fetching.fetch_medmnist(name, target, size=size, mirror=mirror or index.RECORD, progress=progress)
    typer.echo(f"{path} is the official file (MD5 checked).")
    typer.echo(f"Licence: {index.MEDMNIST[name].licence}")
    typer.echo(f"Cite: {index.CITATION}")


@app.command()
def split(
    source: Annotated[str, typer.Argument(help="An npz file, class folders, or a folder with labels.csv.")],
    target: To,
    sites: Annotated[int | None, typer.Option(min=2, max=100, help="Number of sites, with --dirichlet.")] = None,
    dirichlet: Annotated[float | None, typer.Option(min=0.001, help="Label skew; small is skewed.")] = None,
    by: Annotated[str | None, typer.Option(help="Column whose values become the sites.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of --dirichlet.")] = 0,
    image_size: Annotated[int | None, typer.Option(min=8, max=512, help="Pixels per side.")] = None,
) -> None:
    """Cut any set of images into sites, by label skew or by a column; no lesion is torn apart."""
    import numpy as np

    from popmi_core.data import cut

    if (dirichlet is None) == (by is None) or (dirichlet is None) != (sites is None):
        raise ConfigError("popmi data split needs either --sites N with --dirichlet ALPHA, or --by COLUMN.")
    pool = cut.read_pool(source, image_size=image_size)
    if by is not None:
        assignment, recipe = cut.by_column(pool, by), f"split-1: by column {by}"
    else:
        rng = np.random.default_rng(seed)
        assignment = cut.by_dirichlet(pool, num_sites=sites or 0, alpha=dirichlet or 0.0, rng=rng)
        recipe = f"split-1: {sites} sites, Dirichlet({dirichlet:g}), seed {seed}"
    with _progress("images") as progress:
        card = cut.write_sites(pool, assignment, target, recipe=recipe, progress=progress)
    _say_made(card, target)


@app.command()
def check(
    source: Annotated[str, typer.Argument(help="auto, phantom, or a path.")] = "auto",
    image_size: Annotated[int, typer.Option(min=8, max=512, help="Pixels per side.")] = 64,
    exact: Annotated[bool, typer.Option("--exact", help="Show small counts too; for eyes inside the site.")] = False,
) -> None:
    """Read every site as a run would, and show images per class and split, and what was left out and why.

    Ends with status 3 if a site cannot be used.
    """
    from popmi_core.data import load_site, locate

    with _progress("images") as progress:
        found = locate(source, image_size=image_size, progress=progress)
    specs = {**found.sites, **({"external": found.external} if found.external else {})}
    read: list[SiteData] = []
    broken: list[str] = []
    for site, spec in specs.items():
        try:
            read.append(
                load_site(site, spec, image_size=image_size, phantom_images=600, seed=0, to_train=site in found.sites)
            )
        except DataError as error:
            broken.append(str(error))
    _show(found.name, read, found.classes, exact=exact)
    for data in read:
        for entry in data.skipped[:20]:
            typer.echo(f"{data.site}, row {entry.row}: skipped, {entry.reason}")
        if len(data.skipped) > 20:
            typer.echo(f"{data.site}: {len(data.skipped) - 20} more rows skipped")
    if broken:
        raise DataError("\n".join(broken))


@app.command()
def compose(
    folder: Annotated[Path, typer.Argument(help="Prepared data set, with dataset.json.")],
    sites: Annotated[str, typer.Option(help="Which sites, with commas between; all where not named.")] = "",
) -> None:
    """Print the file `.env` that lets `docker compose up` take a prepared data set's sites for its hospitals."""
    from popmi_core.deployment import compose as composing

    chosen = [site.strip() for site in sites.split(",") if site.strip()]
    settings = composing.compose_settings(folder, chosen)
    for line in composing.env_lines(settings):
        typer.echo(line)
    if (last := f"SITE_{composing.MOST_SITES}") in settings:
        typer.echo(f"{last} takes part with `docker compose --profile extra up` only.", err=True)


def _show(name: str, sites: list[SiteData], classes: tuple[str, ...], *, exact: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    phantom = any(site.phantom for site in sites)
    table = Table(title=f"{name}{' (phantom: no image shows a patient)' if phantom else ''}: images per site and class")
    for heading in ("site", "images", *classes, "train", "val", "test", "external", "skipped"):
        table.add_column(heading, justify="left" if heading == "site" else "right", no_wrap=True)
    for site in sites:
        sets = (site.train, site.val, site.test, site.external)
        per_class = [sum(int(part.counts(len(classes))[index]) for part in sets) for index in range(len(classes))]
        shown = [*_cells(per_class, exact=exact), *_cells([len(part) for part in sets], exact=exact)]
        table.add_row(site.site, str(sum(per_class)), *shown, str(len(site.skipped)))
    # Piped output must not be cut at 80 columns.
    Console(width=None if sys.stdout.isatty() else max(120, 14 * len(classes) + 80)).print(table)
    if not exact:
        typer.echo(f"<{FEWEST_SHOWN}: 1 to {FEWEST_SHOWN - 1} images; *: hidden beside such a one. --exact shows all.")


def _cells(counts: list[int], *, exact: bool) -> list[str]:
    """Hide counts from 1 to 4; if that hides only one, also the next larger, or the sum would give it away."""
    small = [index for index, count in enumerate(counts) if 0 < count < FEWEST_SHOWN]
    cells = [str(count) for count in counts]
    if exact or not small:
        return cells
    larger = sorted((count, index) for index, count in enumerate(counts) if count >= FEWEST_SHOWN)
    for _, index in larger[: 1 if len(small) == 1 else 0]:
        cells[index] = "*"
    for index in small:
        cells[index] = f"<{FEWEST_SHOWN}"
    return cells


def _say_made(card: DatasetCard, target: Path) -> None:
    typer.echo(f"{target}: {card.name}, {card.image_size} pixels, sites {', '.join(card.sites)}")
    if card.external:
        typer.echo(f"External test set, never trained on: {card.external}")
    typer.echo(f"Licence: {card.licence}")
    for source in card.citation:
        typer.echo(f"Cite: {source}")
    typer.echo(f"Use it: POPMI_DATA={target}")


@contextmanager
def _progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, all) that draws a bar on a terminal and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(unit, total=0)
        yield lambda done, total: bar.update(task, completed=done, total=total)
