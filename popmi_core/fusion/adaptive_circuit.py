"""Circuit averaging where heads moved far, plain averaging where they did not: how OPM averages what it has matched.

The mean of products holds what the sites' drifts have in common in both factors, their covariance. After long local
training that is most of what was learned; after short training it is little, always of the same sign, and adds up over
the rounds: heads grow, and with server momentum faster still. See docs/decisions/0008-products-after-long-training.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from popmi_core.config import FuseConfig
from popmi_core.fusion import circuit
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.update import Fused, State, Symmetry, Update

# Of the size of a head's factors; one local epoch mostly moves them by less, five by more.
NEAR = 1 / 3


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
) -> Fused:
    """Average as ``circuit`` does, but as weights the heads that every site left near the reference.

    Near: no site's factors are further from the reference's than a third of their size (Frobenius norms, folded as
    ``canonicalise`` does). Where a site has turned the basis inside a head it is far, and products are averaged. Where
    every head is near, the result is the plain average bit for bit.

    Raises:
        UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
    """
    return circuit.fuse(updates, reference=reference, symmetry=symmetry, config=config, near=NEAR)
