"""Coordinate-wise median (Yin et al. 2018, arXiv:1803.01498)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

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
    """Take the median of every coordinate; with an even number of sites the mean of the middle two.

    Every site counts once, whatever its num_examples: a site that lies about its size gains nothing.

    Raises:
        UpdateError: If an update is unfit (see ``in_order``).
    """
    ordered = in_order(updates, reference=reference)
    state = {name: cast(_median(stack(ordered, name)), like) for name, like in reference.items()}
    return Fused(state, {update.site: 1 / len(ordered) for update in ordered})


def _median(values: Tensor) -> Tensor:
    # torch.median takes the lower of the middle two; numpy and the paper take their mean.
    count = len(values)
    ranked = values.sort(dim=0).values
    return (ranked[(count - 1) // 2] + ranked[count // 2]) / 2
