"""Coordinate-wise trimmed mean (Yin et al. 2018, arXiv:1803.01498)."""

from __future__ import annotations

from collections.abc import Sequence

from popmi_core.config import FuseConfig
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.update import Fused, State, Symmetry, Update, cast, in_order, stack


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
) -> Fused:
    """Drop ``int(trim * n)`` values at each side of every coordinate, average the rest; every site counts once.

    The convention of ``scipy.stats.trim_mean``. Where too few sites answer for ``trim`` to drop anyone this is the
    unweighted mean, and the notes say so.

    Raises:
        UpdateError: If an update is unfit (see ``in_order``).
    """
    ordered = in_order(updates, reference=reference)
    count = len(ordered)
    cut = int(config.trim * count)
    state = {}
    for name, like in reference.items():
        ranked = stack(ordered, name).sort(dim=0).values
        state[name] = cast(ranked[cut : count - cut].mean(dim=0), like)
    notes = {} if cut else {"all": f"nothing trimmed: trim {config.trim:g} of {count} sites is less than one site"}
    return Fused(state, {update.site: 1 / count for update in ordered}, notes)
