"""OT-Fusion with entropic transport: soft maps (Singh and Jaggi 2020, arXiv:1910.05653; Imfeld et al. 2024,
arXiv:2310.05719, where soft maps serve transformers better)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from popmi_core.config import FuseConfig
from popmi_core.fusion.ot_fusion import transported
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.transport import entropic
from popmi_core.fusion.update import Fused, State, Update
from popmi_core.matching.statistics import CrossStatistics
from popmi_core.matching.symmetry import Symmetry


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None,
    config: FuseConfig,
    scorer: Scorer | None = None,
    statistics: Mapping[str, CrossStatistics] | None = None,
) -> Fused:
    """Mix every model's units into the reference's by entropic transport plans and average by num_examples.

    As ``ot_fusion``, but a new unit is the barycentre of the old ones under the plan's row, which is no symmetry: the
    moved model does not compute the same function. ``config.entropic_reg`` is the entropy's weight in units of the
    mean cost; towards 0 the plan becomes the exact one.

    Raises:
        ModelError: If the architecture is not described.
        UpdateError: If an update is unfit (see ``in_order``), nobody has an example, or a site's statistics are
            missing.
    """
    solver = entropic(config.entropic_reg)
    return transported(updates, solver, "ot_fusion_soft", reference=reference, symmetry=symmetry, statistics=statistics)
