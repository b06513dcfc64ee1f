"""Give the fused model the BatchNorm statistics it has on the sites' images (REPAIR)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message
from torch import Tensor

from popmi_core.errors import UpdateError
from popmi_core.fusion.repair import pool_norm_statistics, with_norm_statistics
from popmi_core.protocol import NORMS, Report
from popmi_core.records import array_record
from server.replies import Expected, decode_array, open_replies, read_report
from server.results import SiteOutcome

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Measured:
    """One site's statistics, and over how many training images they speak."""

    statistics: dict[str, Tensor]
    num_examples: int


def collect_norms(
    replies: Iterable[Message], expected: Expected, state: State
) -> tuple[dict[str, Measured], list[SiteOutcome]]:
    """Return every site's usable statistics for the BatchNorm layers of ``state``, and an outcome for every site."""
    measured: dict[str, Measured] = {}

    def read(site: str, message: Message) -> SiteOutcome:
        report: Report | None = None
        try:
            report = read_report(message, site, expected)
            if report.error is not None:
                return SiteOutcome(site, "failed", report.error, report=report)
            expected.check_count(site, "train", report.num_examples, f"site {site}, round {expected.server_round}")
            measured[site] = Measured(_statistics(message, site, expected, state), report.num_examples)
        except UpdateError as error:
            return SiteOutcome(site, "quarantined", str(error), report=report)
        return SiteOutcome(site, "ok", report=report)

    outcomes = open_replies(replies, expected, read)
    return dict(sorted(measured.items())), outcomes


def repaired(state: State, measured: Mapping[str, Measured]) -> dict[str, Tensor]:
    """Return the state with the sites' statistics pooled, weighted by their training images; as it is without any."""
    sites = [item for _, item in sorted(measured.items()) if item.num_examples > 0]
    if not sites:
        return dict(state)
    pooled = pool_norm_statistics(
        [item.statistics for item in sites], shares=[float(item.num_examples) for item in sites]
    )
    return with_norm_statistics(state, pooled)


def norm_layers(names: Iterable[str]) -> list[str]:
    """Return the layers that keep running statistics."""
    return sorted(name.removesuffix(".running_mean") for name in names if name.endswith("running_mean"))


def _statistics(message: Message, site: str, expected: Expected, state: State) -> dict[str, Tensor]:
    where = f"site {site}, round {expected.server_round}"
    record = array_record(message.content, NORMS)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in norm_layers(state):
        width = tuple(state[f"{layer}.running_mean"].shape)
        shapes |= {f"{layer}.mean": width, f"{layer}.var": width, f"{layer}.count": ()}
    if record is None or set(record.keys()) != set(shapes):
        raise UpdateError(f"{where}: no statistics of the model's BatchNorm layers. Check the site's POPMI version.")
    found = {name: decode_array(record, name, where) for name in shapes}
    for name, tensor in found.items():
        sound = tensor.is_floating_point() and tuple(tensor.shape) == shapes[name] and bool(tensor.isfinite().all())
        if not sound or (not name.endswith(".mean") and bool((tensor < 0).any())):
            raise UpdateError(
                f"{where}: '{name}' has shape {tuple(tensor.shape)}, expected {shapes[name]}, finite, and no variance "
                "or count below 0. Look for broken images at the site."
            )
    _check_size(found, state, expected.max_change, where)
    return found


def _check_size(found: Mapping[str, Tensor], state: State, max_change: float, where: str) -> None:
    told = before = 0.0
    for layer in norm_layers(state):
        told += float(found[f"{layer}.mean"].double().square().sum() + found[f"{layer}.var"].double().sum())
        kept = state[f"{layer}.running_mean"].double().square().sum() + state[f"{layer}.running_var"].double().sum()
        before += float(kept)
    told, limit = math.sqrt(told), max_change * max(math.sqrt(before), 1.0)
    if not told <= limit:
        raise UpdateError(
            f"{where}: the BatchNorm statistics have norm {told:.3g} (means and deviations), expected at most "
            f"{limit:.3g} (limits.max_change = {max_change:g} times that of the model's own). Look for broken images "
            "at the site."
        )
