"""Circuit averaging where it changes what a head computes, plain averaging elsewhere: how OPM averages what it matched.

The mean of products holds what the sites' drifts have in common in both factors, their covariance. After long local
training that is much of what was learned; after short training it is little, and adds up over the rounds: heads grow,
and with server momentum faster still. See docs/decisions/0008-products-after-long-training.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from popmi_core.config import FuseConfig
from popmi_core.fusion import circuit
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.update import Fused, State, Symmetry, Update

# Of the mean product's norm. Plain averaging misses 1 to 5 % of it after a local epoch, 7 to 25 % after five.
TOLERANCE = 0.05


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
) -> Fused:
    """Average as ``circuit`` does, but leave the heads whose plain average makes the mean product, or nearly.

    Nearly: the two products differ by at most 5 % of the mean product's norm (Frobenius, gamma, beta and LayerScale
    folded in), and by no more than the sites' products differ among themselves. So a basis that one site turned inside
    a head is noticed, by however little, unless its products differ by more. Where all heads stay, the result is the
    plain average bit for bit. Low-rank adapters are always averaged as products.

    Raises:
        UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
    """
    return circuit.fuse(updates, reference=reference, symmetry=symmetry, config=config, tolerance=TOLERANCE)
