"""Circuit averaging where sites disagree on what a head computes, plain averaging elsewhere: how OPM averages.

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

# Products spread by 0.2 to 0.5 of their mean's norm after one local epoch, by 0.6 to 1 after five of the first rounds.
WITHIN = 0.5


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
) -> Fused:
    """Average as ``circuit`` does, but plainly the heads on whose products the sites agree.

    Agree: the products (gamma, beta and LayerScale folded in) spread about their mean by at most half of its norm, and
    the plain average's product is no further from that mean than half the spread. So a basis that a site turned inside
    a head is noticed by however little it was turned, unless the products differ by more. Where the sites agree on all
    heads, the result is the plain average bit for bit. Low-rank adapters are always averaged as products.

    Raises:
        UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
    """
    return circuit.fuse(updates, reference=reference, symmetry=symmetry, config=config, within=WITHIN)
