"""Collect what the global model is worth: per site, pooled over the sites, and on the external test set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import Message
from torch import Tensor, nn

from popmi_core.data import load_site
from popmi_core.errors import DataError, UpdateError
from popmi_core.measure import TurningAsk
from popmi_core.metrics import ScoreSummary, classification_metrics, pool_summaries
from popmi_core.models import load_exchanged, predict
from popmi_core.protocol import SCORES_PREFIX, Report, Split
from popmi_core.records import array_record
from server.measured import check_table, check_turned
from server.replies import Expected, open_replies, payload_bytes, read_report
from server.results import Evaluation, SiteOutcome


def collect(
    replies: Iterable[Message],
    expected: Expected,
    splits: tuple[Split, ...],
    *,
    num_classes: int,
    turning: TurningAsk | None = None,
) -> tuple[Evaluation, list[SiteOutcome]]:
    """Return the evaluation of a round and one outcome for every site that was asked.

    ``turning``: how sites were asked to turn their validation images, if they were.
    """
    result = Evaluation()
    found: dict[str, dict[Split, ScoreSummary]] = {}
    reports: dict[str, Report] = {}

    def read(site: str, message: Message) -> SiteOutcome:
        size, where = payload_bytes(message), f"site {site}, round {expected.server_round}"
        try:
            report = read_report(message, site, expected)
            if report.error is not None:
                return SiteOutcome(site, "failed", report.error, bytes_up=size, report=report)
            # A small site may have no validation image: it says so and sends no scores.
            filled = [split for split in splits if report.split_sizes.get(split) != 0]
            summaries = {split: _summary(message, site, split, num_classes) for split in filled}
            for split, summary in summaries.items():
                _check_counts(site, split, summary, report, expected)
                check_table(report.confusion.get(split), summary, split, where)
            check_turned(report.turned, turning, report, where)
        except UpdateError as error:
            return SiteOutcome(site, "quarantined", str(error), bytes_up=size)
        found[site], reports[site] = summaries, report
        result.sites[site] = {split: _figures(report, split) for split in filled}
        return SiteOutcome(site, "ok", bytes_up=size, report=report)

    outcomes = open_replies(replies, expected, read)
    # In the order of names, whatever order the replies came in.
    result.sites = dict(sorted(result.sites.items()))
    for split in splits:
        summaries = {site: found[site][split] for site in sorted(found) if split in found[site]}
        if summaries:
            result.pooled[split] = pool_summaries(list(summaries.values()))
            result.summaries[split] = summaries
            result.tables[split] = {site: reports[site].confusion.get(split, ()) for site in summaries}
    result.turned = {site: told for site, report in sorted(reports.items()) if (told := report.turned) is not None}
    return result, outcomes


def evaluate_external(
    model: nn.Module, state: Mapping[str, Tensor], folder: str, *, image_size: int
) -> dict[str, float]:
    """Return the figures of ``state`` on a labelled set that no site trains on.

    Raises:
        DataError: If the set cannot be read or has no image marked external.
        ModelError: If ``state`` does not fit the model.
    """
    data = load_site("external", folder, image_size=image_size, phantom_images=0, seed=0).external
    if len(data) == 0:
        raise DataError("the external test set has no image. Mark its rows as split 'external' in labels.csv.")
    load_exchanged(model, dict(state))
    return classification_metrics(predict(model, data.images), data.targets)


def _summary(message: Message, site: str, split: str, num_classes: int) -> ScoreSummary:
    record = array_record(message.content, SCORES_PREFIX + split)
    if record is None:
        raise UpdateError(f"site {site}: no scores of split {split}. Check that the site runs the same POPMI version.")
    try:
        arrays = {name: np.array(array.numpy()) for name, array in record.items()}
    except Exception as error:  # whatever damaged bytes make of the decoder is that site's fault alone
        raise UpdateError(
            f"site {site}: the scores of split {split} cannot be decoded. The payload is damaged."
        ) from error
    return ScoreSummary.from_arrays(arrays, site=site, num_classes=num_classes)


def _check_counts(site: str, split: Split, summary: ScoreSummary, report: Report, expected: Expected) -> None:
    """Refuse figures of more images than the site has: means over all sites are weighted by them."""
    where = f"site {site}, round {expected.server_round}"
    told = report.metrics.get(f"{split}.num_examples")
    for count in (summary.num_examples, report.split_sizes.get(split, 0), 0 if told is None else told):
        expected.check_count(site, split, count, where)


def _figures(report: Report, split: str) -> dict[str, float | None]:
    prefix = f"{split}."
    return {
        name.removeprefix(prefix): value for name, value in sorted(report.metrics.items()) if name.startswith(prefix)
    }
