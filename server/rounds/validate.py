"""Let only well-formed updates near the average; everything else is put aside with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping

from flwr.app import ArrayRecord, Message
from torch import Tensor

from popmi_core.errors import UpdateError
from popmi_core.matching import Symmetry
from popmi_core.matching.statistics import CrossStatistics, from_arrays
from popmi_core.protocol import ACTIVATIONS, CONTROL_CHANGE, GRAMS, MODEL, Report
from popmi_core.records import array_record, array_records
from server.replies import Expected, Layout, decode_array, open_replies, payload_bytes, read_report
from server.results import SiteOutcome, TrainedUpdate, Validated

MOST_MOMENT = 1e12
"""A product of two activations, summed over an image: of a million each, it is this large."""
MOST_SUM = 1e18
"""The same, summed over all images a site looks at."""
Keep = Callable[[TrainedUpdate], TrainedUpdate]


def validate(
    replies: Iterable[Message],
    expected: Expected,
    keep: Keep = lambda update: update,
    *,
    revoked: Callable[[], Collection[str]] = tuple,
) -> Validated:
    """Return the usable updates and an outcome for every site.

    Replies are checked as they come; ``keep`` may put an update's tensors somewhere else than into memory. ``revoked``
    is asked at the end whose key was revoked meanwhile: what such a site sent before is not used either.
    """
    result = Validated()

    def check(site: str, message: Message) -> SiteOutcome:
        size = payload_bytes(message)
        report: Report | None = None
        try:
            report = read_report(message, site, expected)
            if report.error is not None:
                outcome = "stopped" if report.stopped else "failed"
                return SiteOutcome(site, outcome, report.error, bytes_up=size, report=report)
            result.updates.append(keep(check_update(message, site, report, expected)))
            return SiteOutcome(site, "ok", bytes_up=size, report=report)
        except UpdateError as error:
            return SiteOutcome(site, "quarantined", str(error), bytes_up=size, report=report)
        finally:
            _drop_payload(message)

    result.outcomes = open_replies(replies, expected, check)
    for site in revoked():
        result.quarantine(site, f"site {site}, round {expected.server_round}: its key was revoked during the round")
    # Replies come in any order; sums of floats depend on theirs.
    result.updates.sort(key=lambda item: item.site)
    return result


def check_update(message: Message, site: str, report: Report, expected: Expected) -> TrainedUpdate:
    """Return the update inside a reply.

    Raises:
        UpdateError: If an example count, a name, a shape, a dtype or a value is not what it must be, or a weight has
            left the subspace of the group that the model promises to respect.
    """
    where = f"site {site}, round {expected.server_round}"
    expected.check_count(site, "train", report.num_examples, where, least=1)
    _check_moves(report, where)
    content = message.content
    state = {**_tensors(array_record(content, MODEL), expected.layout, where), **expected.kept}
    if expected.promise is not None:
        # Before it is averaged: one site's broken symmetry would be everyone's.
        expected.promise.check(state, where)
    _check_change(state, expected, where)
    change = None
    if expected.control:
        # Buffers travel with the model but have no gradient, so no control variate.
        change = _tensors(array_record(content, CONTROL_CHANGE), expected.layout, where, partial=True)
        _check_size(change, expected, where)
    grams = _grams(array_record(content, GRAMS), expected.layout, where) if expected.grams else {}
    statistics = (
        _statistics(array_record(content, ACTIVATIONS), expected.seen, site) if expected.seen is not None else None
    )
    return TrainedUpdate(site, state, report.num_examples, change, grams, report, statistics)


def _check_moves(report: Report, where: str) -> None:
    for layer, moved in sorted(report.moved.items()):
        if moved > (units := report.units.get(layer, 0)):
            raise UpdateError(
                f"{where}: {moved} units of '{layer[:80]}' were moved, expected at most its {units}. Check that the "
                "site runs the same POPMI version."
            )


def _check_change(state: Mapping[str, Tensor], expected: Expected, where: str) -> None:
    if not expected.reference or math.isinf(expected.max_change):
        return
    moved = start = 0.0
    for name, tensor in state.items():
        before = expected.reference[name]
        if before.is_floating_point():
            moved += float((tensor.double() - before.double()).square().sum())
            start += float(before.double().square().sum())
    moved, limit = math.sqrt(moved), expected.max_change * max(math.sqrt(start), 1.0)
    if not moved <= limit:
        raise UpdateError(
            f"{where}: the model moved by {moved:.3g} (Euclidean norm), expected at most {limit:.3g} "
            f"(limits.max_change = {expected.max_change:g} times the norm it started from). Lower the learning rate or "
            "look for broken images at the site."
        )


def _check_size(change: Mapping[str, Tensor], expected: Expected, where: str) -> None:
    # Gradients have no natural size to compare with; the model's own keeps one site's from being everyone's.
    start = math.sqrt(sum(float(item.double().square().sum()) for item in expected.reference.values()))
    size = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in change.values()))
    limit = expected.max_change * max(start, 1.0)
    if not size <= limit:
        raise UpdateError(
            f"{where}: the control variate changed by {size:.3g} (Euclidean norm), expected at most {limit:.3g} "
            f"(limits.max_change = {expected.max_change:g} times the model's norm). Lower the learning rate or look "
            "for broken images at the site."
        )


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
        tensor = decode_array(record, name, where)
        shape, dtype = layout[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise UpdateError(
                f"{where}: '{name}' has shape {tuple(tensor.shape)} and dtype {_dtype(tensor)}, expected {shape} and "
                f"{str(dtype).removeprefix('torch.')}. Check that the site runs the same backbone and adapter."
            )
        tensors[name] = _finite(tensor, name, where)
    return tensors


def _grams(record: ArrayRecord | None, layout: Layout, where: str) -> dict[str, Tensor]:
    if record is None:
        raise UpdateError(
            f"{where}: the reply holds no Gram matrices. Check that the site runs the same POPMI version."
        )
    grams = {}
    for layer in sorted(record.keys()):
        gram = decode_array(record, layer, where)
        shape = layout.get(f"{layer}.weight", ((), gram.dtype))[0]
        width = math.prod(shape[1:])
        if not shape or tuple(gram.shape) != (width, width) or not gram.is_floating_point():
            raise UpdateError(
                f"{where}: the Gram matrix of '{layer[:80]}' has shape {tuple(gram.shape)} and dtype {_dtype(gram)}, "
                f"expected a float matrix of the layer's {width} inputs. Check that the site runs the same backbone."
            )
        grams[layer] = _bounded(_finite(gram, layer, where), MOST_MOMENT, f"the Gram matrix of '{layer[:80]}'", where)
    return grams


def _statistics(record: ArrayRecord | None, symmetry: Symmetry, site: str) -> CrossStatistics:
    named = {} if record is None else {name: decode_array(record, name, f"site {site}") for name in record}
    read = from_arrays({name: tensor.double().numpy() for name, tensor in named.items()}, symmetry, site=site)
    for name, tensor in named.items():
        _bounded(tensor, MOST_SUM, f"the statistic '{name}'", f"site {site}")
    return read


def _finite(tensor: Tensor, name: str, where: str) -> Tensor:
    bad = int(tensor.numel() - tensor.isfinite().sum())
    if bad:
        raise UpdateError(
            f"{where}: '{name}' holds {bad} NaN or infinite of {tensor.numel()} values. "
            "Lower the learning rate or look for broken images at the site."
        )
    return tensor


def _bounded(tensor: Tensor, most: float, what: str, where: str) -> Tensor:
    largest = float(tensor.double().abs().max()) if tensor.numel() else 0.0
    if largest > most:
        raise UpdateError(
            f"{where}: {what} holds {largest:.3g}, expected at most {most:.0g} in size. Look for broken images at the "
            "site."
        )
    return tensor


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _drop_payload(message: Message) -> None:
    # The tensors live on in the update: a second copy of every site's model would stay until the round ends.
    for name in array_records(message.content):
        del message.content[name]


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name[:80]}'" for name in names[:3])
    return (shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")) or "none"
