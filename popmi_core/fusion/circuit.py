"""Circuit averaging: average what a head computes (QK and VO products), not the factors it is stored in.

The factors of a head are only defined up to an invertible matrix; averaging them mixes bases, averaging their products
``W_q^T W_k`` and ``W_o W_v`` does not (see products.py). The same holds for the factors of a low-rank adapter. Where a
head may only be rotated (cosine attention), its factors are turned to the reference's and averaged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.fusion import average
from popmi_core.fusion.products import Factors, aligned_mean, mean_product
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.update import Fused, State, Symmetry, Update, cast
from popmi_core.matching import canonicalise
from popmi_core.matching.canonical import spell_like, touched
from popmi_core.matching.elements import read_axis, write_axis
from popmi_core.matching.factors import factors, put_factors
from popmi_core.matching.symmetry import Space

# Above so many numbers heads are averaged in float32: half the memory and twice the speed, as in matching.
_LARGE = 20_000_000


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
    factors are put into the reference's basis, so that nothing jumps from round to round.
    Heads whose bases are not free are averaged plainly; the notes say so for every attention layer. A lone site's
    model is returned as it is. Memory beyond updates and result: one attention layer of all sites, a few times.

    Raises:
        UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
    """
    plain = average.fuse(updates, reference=reference, symmetry=symmetry, config=config)
    if symmetry is None:
        return replace(plain, notes={"all": "plain average: architecture not known yet"})
    if len(plain.weights) == 1:
        return replace(plain, notes={"all": "one site only: its model as it is"})
    heads = {name for name, space in symmetry.spaces.items() if space.kind == "heads"}
    states = [(plain.weights[update.site], update.state) for update in sorted(updates, key=lambda update: update.site)]
    notes = mean_heads(states, plain.state, reference=reference, symmetry=symmetry, spaces=heads)
    whole = {name for name in heads if all(axis.tensor in reference for axis in symmetry.of(name))}
    notes |= {name: _why_plain(symmetry, name) for name in sorted(whole - set(notes))}
    return replace(plain, notes=notes or {"all": "plain average: no head with known symmetry was exchanged"})


def _why_plain(symmetry: Symmetry, name: str) -> str:
    if all(kind == "fixed" for kind in symmetry.spaces[name].maps.values()):
        return "plain average: its basis is fixed"
    return "plain average: a low-rank adapter is on its layers"


def mean_heads(
    states: Sequence[tuple[float, State]],
    plain: dict[str, Tensor],
    *,
    reference: State,
    symmetry: Symmetry,
    spaces: Collection[str],
) -> dict[str, str]:
    """Put averages of products in place of the plain ones, layer by layer, and return a note for every space.

    Args:
        states: Every site's weight (they sum to one) and model.
        plain: Their plain average; changed in place, so that no second model is held.
        reference: Whose bases the factors are turned to; gives the number formats.
        symmetry: Says where the factors lie.
        spaces: Names of ``heads`` spaces; those that were not exchanged whole are left out.
    """
    notes: dict[str, str] = {}
    dtype = torch.float64 if sum(like.numel() for like in reference.values()) <= _LARGE else torch.float32
    for group in _groups(symmetry, spaces, reference):
        names = touched(reference, group) & set(reference)
        sites = [(weight, canonicalise({n: state[n] for n in names}, group, dtype)) for weight, state in states]
        target = canonicalise({name: reference[name] for name in names}, group, dtype)
        folded = {name: _mean([(w, s[name]) for w, s in sites]) for name in sorted(names)}
        for name, space in group.spaces.items():
            said = []
            for part in space.maps:
                folded, kept = _mean_part(folded, sites, target, group, space, part)
                said.append(f"{part} {kept}")
            notes[name] = "circuit average: " + ", ".join(said)
        spelled = spell_like(folded, {name: plain[name] for name in names}, group)
        plain |= {name: cast(spelled[name], reference[name]) for name in names}
    return notes


def _mean_part(
    folded: Mapping[str, Tensor],
    sites: Sequence[tuple[float, State]],
    target: State,
    group: Symmetry,
    space: Space,
    part: str,
) -> tuple[dict[str, Tensor], str]:
    """Return the folded mean with one part of the heads averaged as its symmetry allows, and how."""
    kind = space.maps[part]
    if kind == "linear":
        rows = ((weight, Factors(*factors(state, group, space.name, part))) for weight, state in sites)
        like = Factors(*factors(target, group, space.name, part))
        mean, kept = mean_product(rows, like=like)
        put = put_factors(folded, group, space.name, part, mean.left.double(), mean.right.double())
        return put, f"kept {kept:.1%}"
    if kind == "orthogonal":
        turned = [(weight, _read(state, group, space, part)) for weight, state in sites]
        rows_mean = aligned_mean(turned, like=_read(target, group, space, part))
        return _write(folded, group, space, part, rows_mean.double()), "turned to the reference"
    return dict(folded), "plain (its basis is fixed)"


def _read(state: State, group: Symmetry, space: Space, part: str) -> Tensor:
    """Return everything in the basis of a part, as rows of every head, shape ``[heads, inner, width]``."""
    axes = [axis for axis in group.of(space.name) if axis.part == part]
    rows = [read_axis(state[axis.tensor], axis, space).reshape(space.size, space.inner, -1) for axis in axes]
    return torch.cat(rows, dim=-1)


def _write(state: Mapping[str, Tensor], group: Symmetry, space: Space, part: str, rows: Tensor) -> dict[str, Tensor]:
    result, begun = dict(state), 0
    for axis in group.of(space.name):
        if axis.part == part:
            width = read_axis(result[axis.tensor], axis, space).shape[1]
            mine = rows[..., begun : begun + width].reshape(space.size * space.inner, width)
            result[axis.tensor] = write_axis(result[axis.tensor], axis, space, mine)
            begun += width
    return result


def _groups(symmetry: Symmetry, spaces: Collection[str], reference: State) -> list[Symmetry]:
    """Return the subgroups to average one by one: each space with the steps that touch it.

    Spaces whose steps overlap (two attentions behind one norm) stay together. Steps that need a tensor that was not
    exchanged are left out: a norm that is the same everywhere need not be folded.
    """
    steps = [step for step in symmetry.steps if set(step.names()) <= set(reference)]
    groups: list[tuple[set[str], set[int]]] = []
    for name in _claims(symmetry, spaces, reference):
        tensors = {axis.tensor for axis in symmetry.of(name)}
        mine = {index for index, step in enumerate(steps) if tensors & set(step.names())}
        near = [group for group in groups if group[1] & mine]
        merged = ({name}.union(*(names for names, _ in near)), mine.union(*(found for _, found in near)))
        groups = [*(group for group in groups if group not in near), merged]
    return [
        replace(
            symmetry.without(set(symmetry.spaces) - names),
            steps=tuple(steps[index] for index in sorted(found)),
            notes=(),
        )
        for names, found in groups
    ]


def _claims(symmetry: Symmetry, spaces: Collection[str], reference: State) -> list[str]:
    """Return the spaces whose products can be averaged; of two that share a tensor, the adapter's."""
    claimed: set[str] = set()
    found = []
    wanted = [name for name in symmetry.spaces if name in spaces]
    for name in sorted(wanted, key=lambda name: "factor" not in symmetry.spaces[name].maps):
        tensors = {axis.tensor for axis in symmetry.of(name)}
        free = any(kind != "fixed" for kind in symmetry.spaces[name].maps.values())
        if free and tensors <= set(reference) and not tensors & claimed:
            claimed |= tensors
            found.append(name)
    return sorted(found, key=list(symmetry.spaces).index)


def _mean(rows: Sequence[tuple[float, Tensor]]) -> Tensor:
    return sum((weight * tensor.double() for weight, tensor in rows), torch.zeros_like(rows[0][1], dtype=torch.float64))
