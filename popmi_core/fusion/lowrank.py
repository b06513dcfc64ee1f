"""Low-rank adapters: average the product B A that is added to a weight, not B and A.

``(B G)(G^-1 A)`` is the same adapter for every invertible G, so that averaging the factors mixes bases, as with the
factors of attention heads. The mean product has a higher rank; its best approximation of the adapter's rank is the
truncated SVD (Eckart and Young 1936).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.fusion import average
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.update import Fused, State, Symmetry, Update, cast, in_order
from popmi_core.matching.procrustes import polar

# PREA's down and up are not here: there is a GELU between them, so that they are no product.
_NAMES = {"lora_A": "lora_B", "lora_a": "lora_b", "lora_down": "lora_up"}
_FIRST = re.compile(r"(?<![A-Za-z_])(lora_A|lora_a|lora_down)(?![A-Za-z_])")


@dataclass(frozen=True)
class Factors:
    """A product ``left^T right`` of two thin matrices, possibly one for each head."""

    left: Float[Tensor, "*heads rank fan_out"]
    right: Float[Tensor, "*heads rank fan_in"]


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
) -> Fused:
    """Average adapters as products and everything else as weights, both weighted by num_examples.

    Adapters are found by their names (``lora_A`` with ``lora_B``, ``lora_down`` with ``lora_up``), of linear layers and
    of convolutions whose second factor is pointwise. Notes say how much of the mean product the rank holds; without
    an adapter this is the plain average. A lone site's model is returned as it is.

    Raises:
        UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
    """
    ordered = in_order(updates, reference=reference)
    plain = average.fuse(ordered, reference=reference, symmetry=symmetry, config=config)
    if len(ordered) == 1:
        return Fused(plain.state, plain.weights, {"all": "one site only: its model as it is"})
    state, notes = plain.state, {}
    for first, second in adapter_pairs(reference):
        sites = [(plain.weights[update.site], _read(update.state, first, second)) for update in ordered]
        mean, kept = mean_product(sites, like=_read(reference, first, second))
        state[first] = cast(mean.right.reshape(reference[first].shape), reference[first])
        state[second] = cast(mean.left.mT.reshape(reference[second].shape), reference[second])
        notes[first] = f"product average, kept {kept:.1%}"
    return Fused(state, plain.weights, notes or {"all": "plain average: no low-rank adapter was exchanged"})


def adapter_pairs(state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Return the names of every adapter's A (rank x fan_in) and B (fan_out x rank), in the state's order."""
    pairs = []
    for first, tensor in state.items():
        second = _FIRST.sub(lambda found: _NAMES[found[1]], first)
        partner = state.get(second)
        if second == first or partner is None or min(tensor.ndim, partner.ndim) < 2:
            continue
        if partner.flatten(1).shape[1] == len(tensor):
            pairs.append((first, second))
    return pairs


def mean_product(rows: Sequence[tuple[float, Factors]], *, like: Factors) -> tuple[Factors, float]:
    """Return factors of the weighted mean product, of the same rank, and the share of its squared norm they hold.

    The factors are balanced (equal Gram matrices) and, within what the product leaves open, turned to ``like``, so
    that they do not jump from round to round. The product itself is never formed: QR of both stacks of factors, SVD
    of a square of ``sites * rank``. Where every product is zero (fresh adapters: B = 0) the factors are averaged,
    because balanced factors of zero could never be trained again.
    """
    rank = rows[0][1].left.shape[-2]
    left = torch.cat([weight * factors.left for weight, factors in rows], dim=-2)
    right = torch.cat([factors.right for _, factors in rows], dim=-2)
    outer, inner = torch.linalg.qr(left.mT), torch.linalg.qr(right.mT)
    u, s, vh = torch.linalg.svd(outer.R @ inner.R.mT, full_matrices=False)
    energy = float(s.square().sum())
    if energy == 0:
        return Factors(_mean([(w, f.left) for w, f in rows]), _mean([(w, f.right) for w, f in rows])), 1.0
    root = s[..., :rank].sqrt()[..., None]
    found = torch.cat([root * (outer.Q @ u[..., :rank]).mT, root * vh[..., :rank, :] @ inner.Q.mT], dim=-1)
    short = rank - found.shape[-2]
    found = torch.nn.functional.pad(found, (0, 0, 0, short))
    turned = polar(torch.cat([like.left, like.right], dim=-1) @ found.mT) @ found
    kept = float(s[..., :rank].square().sum()) / energy
    width = left.shape[-1]
    return Factors(turned[..., :width], turned[..., width:]), kept


def _mean(rows: Sequence[tuple[float, Tensor]]) -> Tensor:
    return sum((weight * tensor for weight, tensor in rows), torch.zeros_like(rows[0][1]))


def _read(state: State, first: str, second: str) -> Factors:
    return Factors(state[second].double().flatten(1).mT, state[first].double().flatten(1))
