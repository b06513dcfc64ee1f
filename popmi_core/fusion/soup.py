"""Uniform soup: every model counts the same (Wortsman et al. 2022, Model Soups, arXiv:2203.05482, section 2)."""

from __future__ import annotations

from collections.abc import Sequence

from popmi_core.config import FuseConfig
from popmi_core.fusion.average import weighted_mean
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.update import Fused, State, Symmetry, Update, in_order


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
) -> Fused:
    """Average every tensor, ``(1 / n) sum_k w_k``, whatever num_examples says (weighted: rule ``average``).

    Raises:
        UpdateError: If an update is unfit (see ``in_order``).
    """
    ordered = in_order(updates, reference=reference)
    weights = {update.site: 1 / len(ordered) for update in ordered}
    return Fused(weighted_mean(ordered, weights, reference=reference), weights)
