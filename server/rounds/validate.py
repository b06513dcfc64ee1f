"""Let only well-formed updates near the average; everything else is put aside with its reason."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from popmi_core.errors import UpdateError
from popmi_core.protocol import CONTROL_CHANGE, MODEL, Report
from server.replies import Expected, Layout, open_replies, payload_bytes, read_report
from server.results import SiteOutcome, TrainedUpdate, Validated

MAX_EXAMPLES = 10_000_000


def validate(replies: Iterable[Message], expected: Expected) -> Validated:
    """Return the usable updates and an outcome for every site."""
    opened, outcomes = open_replies(replies, expected)
    result = Validated(outcomes=outcomes)
    for site, message in opened.items():
        size = payload_bytes(message)
        report: Report | None = None
        try:
            report = read_report(message, site, expected)
            if report.error is not None:
                outcome = "stopped" if report.stopped else "failed"
                result.outcomes.append(SiteOutcome(site, outcome, report.error, bytes_up=size, report=report))
                continue
            result.updates.append(check_update(message, site, report, expected))
            result.outcomes.append(SiteOutcome(site, "ok", bytes_up=size, report=report))
        except UpdateError as error:
            result.outcomes.append(SiteOutcome(site, "quarantined", str(error), bytes_up=size, report=report))
    result.outcomes.sort(key=lambda item: item.site)
    return result


def check_update(message: Message, site: str, report: Report, expected: Expected) -> TrainedUpdate:
    """Return the update inside a reply.

    Raises:
        UpdateError: If an example count, a name, a shape, a dtype or a value is not what it must be.
    """
    where = f"site {site}, round {expected.server_round}"
    if not 0 < report.num_examples <= MAX_EXAMPLES:
        raise UpdateError(
            f"{where}: num_examples is {report.num_examples}, expected 1 to {MAX_EXAMPLES}. Check the site's data."
        )
    state = _tensors(message.content.array_records.get(MODEL), expected.layout, where)
    change = None
    if expected.control:
        # Buffers travel with the model but have no gradient, so no control variate.
        change = _tensors(message.content.array_records.get(CONTROL_CHANGE), expected.layout, where, partial=True)
    return TrainedUpdate(site, state, report.num_examples, change)


def _tensors(
    record: ArrayRecord | None,
    layout: Layout,
    where: str,
    *,
    partial: bool = False,
) -> dict[str, Tensor]:
    if record is None:
        raise UpdateError(f"{where}: the reply holds no tensors. Check that the site runs the same POPMI version.")
    unknown, missing = sorted(record.keys() - layout.keys()), sorted(layout.keys() - record.keys())
    if unknown or (missing and not partial):
        raise UpdateError(
            f"{where}: expected {len(layout)} tensors; unknown: {_some(unknown)}; missing: {_some(missing)}. "
            "Check that the site runs the same backbone and adapter."
        )
    tensors = {}
    for name in sorted(record.keys()):
        array = _decode(record, name, where)
        shape, dtype = layout[name]
        if array.shape != shape or torch.from_numpy(array).dtype != dtype:
            raise UpdateError(
                f"{where}: '{name}' has shape {array.shape} and dtype {array.dtype}, expected {shape} and "
                f"{str(dtype).removeprefix('torch.')}. Check that the site runs the same backbone and adapter."
            )
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            raise UpdateError(
                f"{where}: '{name}' holds {bad} NaN or infinite of {array.size} values. "
                "Lower the learning rate or look for broken images at the site."
            )
        tensors[name] = torch.from_numpy(array)
    return tensors


def _decode(record: ArrayRecord, name: str, where: str) -> npt.NDArray[np.generic]:
    try:
        # Copied: the decoded array can be read-only, and the average must own its memory.
        array = np.array(record[name].numpy())
        torch.from_numpy(array)
    except Exception as error:
        # Whatever a stranger's bytes make of the decoder (a zip, a header of petabytes) is that site's fault alone.
        raise UpdateError(f"{where}: '{name}' cannot be decoded as an array. The payload is damaged.") from error
    return array


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name[:80]}'" for name in names[:3])
    return (shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")) or "none"
