"""What matching may do to a group-equivariant network: whole fields with shifts, or channels in any order.

    OMP_NUM_THREADS=1 python benchmarks/equivariant_matching.py --out docs/results/equivariant_matching

Pairs of randomly drawn networks with regular fields (two equivariant layers of 6 and 5 fields, float64). The second of
a pair is moved into the basis of the first, by weights or by what the library's activation matching finds on images,
once by moves that commute with the group and once by any order of channels; then both are averaged. Every moved model
alone computes what it did. The figure is the largest change of logits and last features, relative to them, when the
images are turned (and mirrored); below 1e-12 it is rounding. Writes .json (every pair) and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))  # the network of the tests

from field_net import FieldNet, mean_of, unequal, unrestricted, with_weights

from popmi_core.groups import point_group
from popmi_core.matching import Symmetry, apply, describe_model, match
from popmi_core.matching.starts import start_from
from popmi_core.matching.statistics import cross_statistics

IMAGES, SIDE, ROUNDING = 64, 9, 1e-12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="path without ending of the JSON and the table")
    parser.add_argument("--pairs", type=int, default=20)
    options = parser.parse_args()
    rows = [row for name in ("C4", "D4") for pair in range(options.pairs) for row in measure(name, pair)]
    table = as_table(rows)
    print(table)
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")


def measure(name: str, pair: int) -> list[dict[str, str | int | float]]:
    """Return a row for the parents and for every way of matching."""
    first, second = (FieldNet(point_group(name), seed=2 * pair + i) for i in range(2))
    images = torch.randn(IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(pair), dtype=torch.float64)
    fields = describe_model(first, image_size=SIDE)
    errors = {("parents", "-"): max(unequal(first), unequal(second))}
    for order, symmetry in (("fields and shifts", fields), ("any order of channels", unrestricted(fields))):
        for way, moved in moves(first, second, symmetry, images).items():
            fused = with_weights(first, mean_of(first.state_dict(), moved))
            errors[way, order] = unequal(fused)
    return [{"group": name, "pair": pair, "matched": m, "moves": o, "error": e} for (m, o), e in errors.items()]


def moves(first: FieldNet, second: FieldNet, symmetry: Symmetry, images: Tensor) -> dict[str, dict[str, Tensor]]:
    """Return the second model's weights in the first one's basis, by each way of matching."""
    one, other = first.state_dict(), second.state_dict()
    found = start_from(cross_statistics(first, one, other, symmetry, images), symmetry)
    return {
        "by weights": dict(match(other, one, symmetry).state),
        "by activations": apply(other, symmetry, found),
    }


def as_table(rows: list[dict[str, str | int | float]]) -> str:
    """Return a Markdown table, one line a group and way."""
    lines = [
        f"{1 + max(int(row['pair']) for row in rows)} pairs a group, {IMAGES} images of {SIDE}x{SIDE}. Change of "
        "outputs under the group, relative: median (lowest to highest); lost: pairs with more than rounding.",
        "",
        "| group | matched | moves | change under the group | lost |",
        "| --- | --- | --- | ---: | ---: |",
    ]
    for key in dict.fromkeys((row["group"], row["matched"], row["moves"]) for row in rows):
        errors = [float(row["error"]) for row in rows if (row["group"], row["matched"], row["moves"]) == key]
        figures = f"{statistics.median(errors):.1e} ({min(errors):.1e} to {max(errors):.1e})"
        lost = sum(error > ROUNDING for error in errors)
        lines.append(f"| {' | '.join(str(part) for part in key)} | {figures} | {lost} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
