"""Circuit averaging: average what a head computes (QK and VO products), not the factors it is stored in.

The factors of a head are only defined up to an invertible matrix; averaging them mixes bases, averaging their products
``W_q^T W_k`` and ``W_o W_v`` does not. The mean product is refactored to the heads' rank by a truncated SVD
(Eckart and Young 1936), so that the fused model has the architecture of its parents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.fusion import average
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.update import Fused, State, Symmetry, Update, cast
from popmi_core.matching import canonicalise
from popmi_core.matching.canonical import spell_like
from popmi_core.matching.factors import HeadFactors, head_factors, put_heads
from popmi_core.matching.procrustes import polar
from popmi_core.matching.symmetry import HeadSlots


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
) -> Fused:
    """Average heads as products and everything else as weights, both weighted by num_examples.

    Gamma, beta and LayerScale are folded in before products are taken, and the result gets back their averages. Its
    factors are balanced and turned to the reference's, so that the basis does not drift from round to round.
    A layer whose heads are not known is averaged plainly; the notes say so. A lone site's model is returned as it is.

    Raises:
        UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
    """
    plain = average.fuse(updates, reference=reference, symmetry=symmetry, config=config)
    if symmetry is None:
        return Fused(plain.state, plain.weights, {"all": "plain average: architecture not known yet"})
    if len(plain.weights) == 1:
        return Fused(plain.state, plain.weights, {"all": "one site only: its model as it is"})
    if not symmetry.heads or not symmetry.names() <= set(reference):
        return Fused(plain.state, plain.weights, {"all": "plain average: no head with known symmetry was exchanged"})
    small = symmetry.heads_only()
    sites = [(plain.weights[update.site], canonicalise(update.state, small)) for update in sorted(updates, key=_site)]
    target = canonicalise(reference, small)
    folded = canonicalise(plain.state, small)
    notes = {f"blocks.{index}.heads": "plain average: heads not known" for index in range(symmetry.depth)}
    for index, slots in small.heads.items():
        mean, kept = _mean_heads(sites, target, slots, small)
        put_heads(folded, slots, mean)
        bias = f"{slots.proj}.bias"
        if bias in folded:
            folded[bias] = sum((weight * state[bias] for weight, state in sites), torch.zeros_like(folded[bias]))
        notes[f"blocks.{index}.heads"] = kept
    spelled = spell_like(folded, plain.state, small)
    return Fused({name: cast(spelled[name], like) for name, like in reference.items()}, plain.weights, notes)


def _site(update: Update) -> str:
    return update.site


def _mean_heads(
    sites: Sequence[tuple[float, Mapping[str, Tensor]]],
    target: Mapping[str, Tensor],
    slots: HeadSlots,
    symmetry: Symmetry,
) -> tuple[HeadFactors, str]:
    """Return the averaged heads of one layer in the reference's basis, and how much of the mean their rank holds."""
    dim, count = symmetry.dim, symmetry.num_heads
    heads = [(weight, head_factors(state, slots, count)) for weight, state in sites]
    own = head_factors(target, slots, count)
    value, kept_value = _refactor([(weight, rows.value) for weight, rows in heads], own.value, dim)
    if slots.query_key == "fixed":
        query_key = sum((weight * rows.query_key for weight, rows in heads), torch.zeros_like(own.query_key))
        return HeadFactors(query_key, value), f"circuit average of VO ({kept_value:.1%} kept), qk-norm: QK plain"
    query_key, kept = _refactor([(weight, rows.query_key) for weight, rows in heads], own.query_key, dim)
    return HeadFactors(query_key, value), f"circuit average, kept {kept:.1%} of QK and {kept_value:.1%} of VO"


def _refactor(
    rows: Sequence[tuple[float, Float[Tensor, "heads head_dim width"]]],
    target: Float[Tensor, "heads head_dim width"],
    dim: int,
) -> tuple[Float[Tensor, "heads head_dim width"], float]:
    """Average the products of both parts of the rows; return balanced factors of their rank, turned to the target.

    Also returns the share of the mean product's squared norm that the rank holds (1 if all sites agree).
    """
    rank = target.shape[1]
    left = torch.cat([weight * part[..., dim:] for weight, part in rows], dim=1)
    right = torch.cat([part[..., :dim] for _, part in rows], dim=1)
    u, s, vh = torch.linalg.svd(left.mT @ right, full_matrices=False)
    root = s[:, :rank].sqrt()[..., None]
    found = torch.cat([root * vh[:, :rank], root * u[..., :rank].mT], dim=-1)
    energy = float(s.square().sum())
    kept = float(s[:, :rank].square().sum()) / energy if energy > 0 else 1.0
    return polar(target @ found.mT) @ found, kept
