"""What sites measured beside single figures: checked when it comes, pooled over the sites, ready for the record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from popmi_core.errors import UpdateError
from popmi_core.limits import MIN_CELL
from popmi_core.measure import TurnedShares, TurnedTold, TurningAsk, even_angles
from popmi_core.metrics import ScoreSummary
from popmi_core.metrics.confusions import MOST_CLASSES, Told, pool_confusions
from popmi_core.metrics.pooling import calibration_of
from popmi_core.metrics.reliability import ReliabilityBin
from popmi_core.protocol import Report, Split
from server.results import Evaluation

HINT = "Check that the site runs the server's POPMI version."
DIGITS = 5
"""Of what is drawn bin by bin, for every site in every round: a record of a thousand rounds stays small."""
SHARES = ("total_variation", "flips", "accuracy")


class Detail(NamedTuple):
    """One row of the record's details: whose, of which images, what it is, and the thing itself, ready for JSON."""

    scope: str
    split: str
    kind: str
    value: Mapping[str, Any]


def check_turned(told: TurnedTold | None, ask: TurningAsk | None, report: Report, where: str) -> None:
    """Refuse what a site tells of turned images if it was not asked, or asked otherwise.

    Raises:
        UpdateError: If lists are not one number an angle, or it speaks of more images than asked or than it has.
    """
    if told is None:
        return
    if ask is None:
        raise UpdateError(f"{where}: figures of turned images came, expected none: nobody asked. {HINT}")
    for shares in (told.figures, told.floor):
        for name in SHARES:
            if len(values := getattr(shares, name)) != ask.angles:
                raise UpdateError(
                    f"{where}: {name} of turned images has {len(values)} numbers, expected {ask.angles}, one an angle. "
                    f"{HINT}"
                )
    has = report.split_sizes.get("val", 0)
    if told.num_images > min(ask.images, has) or told.lee_images > min(ask.lee_images, has):
        raise UpdateError(
            f"{where}: {told.num_images} images were turned and {told.lee_images} looked at layer by layer, expected "
            f"at most {min(ask.images, has)} and {min(ask.lee_images, has)}. {HINT}"
        )
    if bool(told.layers) != (told.lee_images >= MIN_CELL):
        raise UpdateError(
            f"{where}: LEE of {len(told.layers)} layers over {told.lee_images} images, expected at least {MIN_CELL} "
            f"images where there are layers, and none where there are not. {HINT}"
        )


def check_table(table: Told | None, summary: ScoreSummary, split: Split, where: str) -> None:
    """Refuse a confusion table that is of other classes, tells too small a cell, or more than its score summary does.

    Raises:
        UpdateError: If so.
    """
    if not table:
        return
    size = summary.num_classes
    if size > MOST_CLASSES or len(table) != size or any(len(row) != size for row in table):
        raise UpdateError(
            f"{where}: the confusion table of split {split} has rows of {sorted({len(row) for row in table})} cells, "
            f"expected {size} rows of {size}. {HINT}"
        )
    for told, row, positive in zip(summary.told.tolist(), table, summary.positive, strict=True):
        cells = [cell for cell in row if cell is not None]
        if any(cell < MIN_CELL for cell in cells) or sum(cells) > (positive.total if told else 0):
            raise UpdateError(
                f"{where}: the confusion table of split {split} has a row of cells {cells[:5]}, expected cells of at "
                f"least {MIN_CELL} that add up to no more than the {positive.total} images its scores tell of. {HINT}"
            )


def check_classes(report: Report, num_classes: int) -> str:
    """Return what is wrong with the numbers of images by class that a site told on joining; empty if nothing is."""
    for split, counts in report.class_table.items():
        told = [count for count in counts if count is not None]
        size = report.split_sizes.get(split, 0)
        if len(counts) != num_classes or any(count < MIN_CELL for count in told) or sum(told) > size:
            return (
                f"it told of {len(counts)} classes with {sum(told)} of {size} {split} images, expected {num_classes} "
                f"classes, each of at least {MIN_CELL} images or hidden. Give the site the server's POPMI version."
            )
    return ""


def round_details(evaluation: Evaluation, classes: Sequence[str]) -> dict[str, list[Detail]]:
    """Return what an evaluation tells beside single figures, by scope."""
    found: dict[str, list[Detail]] = {}
    parts = (
        *(
            split_details(split, summaries, evaluation.tables[split], classes)
            for split, summaries in evaluation.summaries.items()
        ),
        turned_details(evaluation.turned),
    )
    for detail in (one for part in parts for one in part):
        found.setdefault(detail.scope, []).append(detail)
    return found


def joined_details(report: Report, classes: Sequence[str], privacy: tuple[float, float] | None) -> Iterator[Detail]:
    """Yield what a site told when it joined; ``privacy`` is the run's epsilon and delta."""
    epsilon, delta = privacy or (None, None)
    facts = {
        "popmi": report.popmi, "skipped_rows": report.skipped_rows, "split_sizes": dict(report.split_sizes),
        "phantom": report.phantom, "epsilon_limit": epsilon, "delta": delta,
    }  # fmt: skip
    yield Detail(report.site, "train", "joined", facts)
    for split, counts in sorted(report.class_table.items()):
        yield Detail(report.site, split, "classes", {"classes": classes, "counts": counts, "min_cell": MIN_CELL})


def split_details(
    split: str, summaries: Mapping[str, ScoreSummary], tables: Mapping[str, Told], classes: Sequence[str]
) -> Iterator[Detail]:
    """Yield calibration and confusion of one split, of every site and of all together."""
    scopes = {**{site: [summary] for site, summary in summaries.items()}, "global": list(summaries.values())}
    for scope, some in scopes.items():
        bins, ece = calibration_of(some)
        if bins:
            yield Detail(scope, split, "calibration", {"bins": [_bin(one) for one in bins], "ece": ece.value})
    telling = [site for site, summary in summaries.items() if summary.num_examples]
    pooled = pool_confusions([tables.get(site, ()) for site in telling], [summaries[s].told.tolist() for s in telling])
    for scope, table in {**tables, "global": pooled}.items():
        if table:
            yield Detail(scope, split, "confusion", {"classes": classes, "counts": table, "min_cell": MIN_CELL})


def _bin(one: ReliabilityBin) -> dict[str, float | int]:
    # A bound that is rounded inwards would be none.
    unit = 10.0**DIGITS
    return {
        "confidence": round(one.confidence, DIGITS),
        "accuracy": round(one.accuracy.value, DIGITS),
        "lower": math.floor(one.accuracy.lower * unit) / unit,
        "upper": math.ceil(one.accuracy.upper * unit) / unit,
        "count": one.count,
    }


def turned_details(told: Mapping[str, TurnedTold]) -> Iterator[Detail]:
    """Yield rotation curves and LEE by layer, of every site and, weighted by images, of all together."""
    for site, one in told.items():
        yield Detail(site, "val", "rotation", _curve(one.num_images, one.figures, one.floor))
        if one.layers:
            layers = [layer.model_dump() for layer in one.layers]
            yield Detail(site, "val", "lee", {"num_images": one.lee_images, "layers": layers})
    if told:
        images = [one.num_images for one in told.values()]
        figures, floor = ([getattr(one, part) for one in told.values()] for part in ("figures", "floor"))
        pooled = [_mean_shares(part, images) for part in (figures, floor)]
        yield Detail("global", "val", "rotation", _curve(sum(images), *pooled))
    followed = [one for one in told.values() if one.layers]
    # The sites run one architecture; one that tells of other layers is another version's, and no mean is made.
    if followed and len({tuple((layer.name, layer.kind) for layer in one.layers) for one in followed}) == 1:
        yield Detail("global", "val", "lee", _mean_layers(followed))


def _curve(num_images: int, figures: TurnedShares, floor: TurnedShares) -> dict[str, Any]:
    found = figures.model_dump(mode="json")
    angles = even_angles(len(figures.total_variation))
    return {"angles": list(angles), "num_images": num_images, **found, "floor": floor.model_dump(mode="json")}


def _mean_shares(parts: Sequence[TurnedShares], weights: Sequence[int]) -> TurnedShares:
    def mean(name: str) -> tuple[float, ...]:
        lists = [getattr(part, name) for part in parts]
        return tuple(min(_weighted(values, weights), 1.0) for values in zip(*lists, strict=True))

    return TurnedShares(**{name: mean(name) for name in SHARES})


def _mean_layers(told: Sequence[TurnedTold]) -> dict[str, Any]:
    weights = [one.lee_images for one in told]
    rows = zip(*[one.layers for one in told], strict=True)
    layers = [
        {"name": row[0].name, "kind": row[0].kind, "value": _weighted([layer.value for layer in row], weights)}
        for row in rows
    ]
    return {"num_images": sum(weights), "layers": layers}


def _weighted(values: Sequence[float], weights: Sequence[int]) -> float:
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
