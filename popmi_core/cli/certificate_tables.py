"""The certificate as tables for the screen and the page."""

from __future__ import annotations

from rich.table import Table

from popmi_core.cli.certifying import Certificate, total

_SHOWN = 12


def all_tables(found: Certificate) -> list[Table]:
    """Return the tables of all parts; the JSON has every row."""
    tables = [weights_table(found), *([layers_table(found)] if found.telescopes else []), sites_table(found)]
    if found.algebra.reasons:
        tables.insert(1, geometry_table(found))
    return tables


def weights_table(found: Certificate) -> Table:
    """Return the constrained weights that are furthest off, in proportion to their size."""
    ranked = sorted(found.algebra.residues, key=lambda one: -one.relative)
    title = f"1. Weights under {found.algebra.group}: {found.algebra.verdict}"
    table = _table(title, "tensor", "kind", "max |rho W - W rho|", "max |W|", "share")
    for one in ranked[:_SHOWN]:
        table.add_row(one.tensor, one.kind, f"{one.error:.3g}", f"{one.size:.3g}", f"{one.relative:.2g}")
    if len(ranked) > _SHOWN:
        table.add_row(f"and {len(ranked) - _SHOWN} more, none further off", "", "", "", "")
    if not ranked:
        table.add_row("no weight sees places after the merge", "", "", "", "")
    return table


def geometry_table(found: Certificate) -> Table:
    """Return the steps that do not fit the grid evenly."""
    table = _table("1. Geometry: steps that cannot commute with a turn", "module", "what", "how much")
    for reason in found.algebra.reasons[:_SHOWN]:
        table.add_row(reason.module, reason.what, reason.how_much)
    return table


def layers_table(found: Certificate) -> Table:
    """Return the size of every layer's term, in logits (root mean square), at the angles that were taken apart."""
    angles = [f"{one.angle:g}°" for one in found.telescopes]
    table = _table("2. What the change comes from: terms of the telescoping sum (RMS, logits)", "layer", *angles)
    sizes = [one.sizes() for one in found.telescopes]
    for layer in found.telescopes[0].layers:
        table.add_row(layer, *(f"{size[layer]:.3g}" for size in sizes))
    table.add_row("whole change", *(f"{total(one):.3g}" for one in found.telescopes))
    table.add_row("sum of terms less whole", *(f"{one.remainder:.1e}" for one in found.telescopes))
    return table


def sites_table(found: Certificate) -> Table:
    """Return the bound of every site."""
    table = _table(
        "3. Bound on the change by turning (total variation, worst of the angles)",
        "site", "calibration", "level", "bound", "held for", "of", "level for sure", "median", "worst seen",
    )  # fmt: skip
    for site in found.sites:
        held = "-" if site.coverage is None else f"{site.coverage:.1%}"
        table.add_row(
            site.site, str(site.images), f"{site.level:g}", f"{site.bound:.3g}", held, str(site.tested),
            f"{site.surely:.3f}", f"{site.median:.3g}", f"{site.worst:.3g}",
        )  # fmt: skip
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right", overflow="fold")
    return table
