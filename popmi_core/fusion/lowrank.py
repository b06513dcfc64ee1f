"""Low-rank adapters: average the product B A that is added to a weight, not B and A.

``(B G)(G^-1 A)`` is the same adapter for every invertible G, so that averaging the factors mixes bases, as with the
factors of attention heads (see products.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.fusion import average, circuit
from popmi_core.fusion.products import Factors, ProductSum, mean_product
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.update import Fused, State, Symmetry, Update, cast, in_order

# PREA's down and up are not here: there is a GELU between them, so that they are no product.
_NAMES = {"lora_A": "lora_B", "lora_a": "lora_b", "lora_down": "lora_up"}
_FIRST = re.compile(r"(?<![A-Za-z_])(lora_A|lora_a|lora_down)(?![A-Za-z_])")


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
) -> Fused:
    """Average adapters as products and everything else as weights, both weighted by num_examples.

    Adapters are those that the description knows (a ``factor`` map), and else those that go by a known name
    (``lora_A`` with ``lora_B``, ``lora_down`` with ``lora_up``), of linear layers and of convolutions whose second
    factor is pointwise. Notes say how much of the mean product the rank holds; without an adapter this is the plain
    average. A lone site's model is returned as it is.

    Raises:
        UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
    """
    ordered = in_order(updates, reference=reference)
    plain = average.fuse(ordered, reference=reference, symmetry=symmetry, config=config)
    if len(ordered) == 1:
        return Fused(plain.state, plain.weights, {"all": "one site only: its model as it is"})
    state = plain.state
    notes, known = _described(ordered, plain, reference, symmetry)
    for first, second in adapter_pairs({name: like for name, like in reference.items() if name not in known}):
        sites = ((plain.weights[update.site], _read(update.state, first, second)) for update in ordered)
        mean, kept = mean_product(ProductSum(sites), like=_read(reference, first, second))
        state[first] = cast(mean.right.reshape(reference[first].shape), reference[first])
        state[second] = cast(mean.left.mT.reshape(reference[second].shape), reference[second])
        notes[first] = f"product average, kept {kept:.1%}"
    return Fused(state, plain.weights, notes or {"all": "plain average: no low-rank adapter was exchanged"})


def _described(
    ordered: Sequence[Update], plain: Fused, reference: State, symmetry: Symmetry | None
) -> tuple[dict[str, str], set[str]]:
    """Average the adapters in the description, in place; return a note for each and the tensors they are made of."""
    if symmetry is None:
        return {}, set()
    adapters = {name for name, space in symmetry.spaces.items() if "factor" in space.maps}
    states = [(plain.weights[update.site], update.state) for update in ordered]
    notes = circuit.mean_heads(states, plain.state, reference=reference, symmetry=symmetry, spaces=adapters)
    return notes, {axis.tensor for name in notes for axis in symmetry.of(name)}


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


def _read(state: State, first: str, second: str) -> Factors:
    return Factors(state[second].double().flatten(1).mT, state[first].double().flatten(1))
