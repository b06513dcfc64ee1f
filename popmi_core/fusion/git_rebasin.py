"""Git Re-Basin by weight matching (Ainsworth, Hayase and Srinivasa 2023, arXiv:2209.04836)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from popmi_core.config import FuseConfig
from popmi_core.fusion.average import weighted_mean
from popmi_core.fusion.merge_many import merge_many
from popmi_core.fusion.permutable import permutable, tell, traced, untraced
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.update import Fused, State, Update, in_order, shares
from popmi_core.matching.symmetry import Symmetry


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None,
    config: FuseConfig,
    scorer: Scorer | None = None,
    starts: int = 4,
) -> Fused:
    """Permute every model into one basis (MergeMany) and average by num_examples.

    Two models need nothing more than the first step where the reference is one of them. Where no unit moves the result
    is the plain average, bit for bit.

    Args:
        updates: One per site, each in a basis of its own.
        reference: The model that is matched to first. The result is in its basis where two are fused and it is one of
            them; of more, in the one in which their mean settles.
        symmetry: The architecture's description; only its permutations are used.
        config: Not used: the method has no setting.
        scorer: Not used.
        starts: Descents per model, of which the best is kept; more than two models start from one forward pass.

    Raises:
        ModelError: If the architecture is not described.
        UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
    """
    ordered = in_order(updates, reference=reference)
    weights, group = shares(ordered), permutable(symmetry, set(reference), rule="git_rebasin")
    generator = torch.Generator().manual_seed(0)
    states = [traced(update.state, group) for update in ordered]
    aligned = merge_many(reference, states, group, generator, starts=starts)
    moved = [replace(update, state=untraced(state)) for update, state in zip(ordered, aligned, strict=True)]
    return Fused(weighted_mean(moved, weights, reference=reference), weights, tell(list(weights), aligned, group))
