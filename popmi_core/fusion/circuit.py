"""Circuit averaging: average what a head computes (QK and VO products), not the factors it is stored in.

The factors of a head are only defined up to an invertible matrix; averaging them mixes bases, averaging their products
``W_q^T W_k`` and ``W_o W_v`` does not (see products.py). The same holds for the factors of a low-rank adapter. Where a
head may only be rotated (cosine attention), its factors are turned to the reference's and averaged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.fusion import average
from popmi_core.fusion.products import AlignedSum, Factors, ProductSum, agreed, mean_product
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.update import Fused, State, Symmetry, Update, cast
from popmi_core.matching import canonicalise
from popmi_core.matching.canonical import spell_like, touched
from popmi_core.matching.elements import read_axis, write_axis
from popmi_core.matching.factors import factors, put_factors
from popmi_core.matching.symmetry import Axis, Space

# Above so many numbers heads are averaged in float32: half the memory and twice the speed, as in matching.
_LARGE = 20_000_000


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
    within: float = 0.0,
) -> Fused:
    """Average heads as products and everything else as weights, both weighted by num_examples.

    Gamma, beta and LayerScale are folded in before products are taken, and the result gets back their averages. Its
    factors are put into the reference's basis, so that nothing jumps from round to round.
    Heads whose bases are not free are averaged plainly; the notes say so for every attention layer. A lone site's
    model is returned as it is. Memory beyond updates and result: a few times one attention layer and the products of
    its heads, however many sites there are.

    ``within``: a head on whose products the sites agree to this share is averaged plainly (see ``adaptive_circuit``);
    a layer of such heads only is the plain average's, bit for bit. 0: products always.

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
    notes = mean_heads(states, plain.state, reference=reference, symmetry=symmetry, spaces=heads, within=within)
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
    within: float = 0.0,
) -> dict[str, str]:
    """Put averages of products in place of the plain ones, layer by layer, and return a note for every space.

    Args:
        states: Every site's weight (they sum to one) and model.
        plain: Their plain average; changed in place, so that no second model is held.
        reference: Whose bases the factors are turned to; gives the number formats.
        symmetry: Says where the factors lie.
        spaces: Names of ``heads`` spaces; those that were not exchanged whole are left out.
        within: Which heads of the plain average stay (see ``fuse``); low-rank factors never do.
    """
    notes: dict[str, str] = {}
    dtype = torch.float64 if sum(like.numel() for like in reference.values()) <= _LARGE else torch.float32
    for group in _groups(symmetry, spaces, reference):
        names = touched(reference, group) & set(reference)
        target = canonicalise({name: reference[name] for name in names}, group, dtype)
        averaged = canonicalise({name: plain[name] for name in names}, group, dtype) if within else {}
        parts = [_Part(target, averaged, group, space, part) for space in group.spaces.values() for part in space.maps]
        folded = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in sorted(target.items())}
        for weight, state in states:
            own = canonicalise({name: state[name] for name in names}, group, dtype)
            for name, total in folded.items():
                total.add_(own[name], alpha=weight)
            for part in parts:
                part.add(weight, own)
        stays = [part.stays(within) for part in parts]
        if within and all(bool(heads.all()) for heads in stays):
            # Bit for bit the plain average, which folding and unfolding would round.
            notes |= dict.fromkeys(group.spaces, "plain average: the sites agree on its heads")
            continue
        said: dict[str, list[str]] = {name: [] for name in group.spaces}
        for part, heads in zip(parts, stays, strict=True):
            folded, kept = part.mean(folded, heads)
            said[part.space.name].append(f"{part.name} {kept}")
        notes |= {name: "circuit average: " + ", ".join(lines) for name, lines in said.items()}
        spelled = spell_like(folded, {name: plain[name] for name in names}, group)
        plain |= {name: cast(spelled[name], reference[name]) for name in names}
    return notes


class _Part:
    """One part of the heads of a space: its mean over the sites' folded weights, which come one at a time."""

    def __init__(self, target: State, plain: State, group: Symmetry, space: Space, name: str) -> None:
        self.target, self.plain, self.group, self.space, self.name = target, plain, group, space, name
        self.products = ProductSum()
        self.aligned = AlignedSum(self._read(target)) if space.maps[name] == "orthogonal" else None

    def add(self, weight: float, state: State) -> None:
        """Add what a site computes here."""
        if self.aligned is not None:
            self.aligned.add(weight, self._read(state))
        elif self.space.maps[self.name] == "linear":
            self.products.add(weight, self._factors_of(state))

    def stays(self, within: float) -> Bool[Tensor, " heads"]:
        """Return which heads of the plain average stay as they are."""
        kind = self.space.maps[self.name]
        if kind == "fixed" or not within or self.name == "factor":
            return torch.full((self.space.size,), kind == "fixed")
        if self.aligned is not None:
            return self.aligned.agreed(self._read(self.plain), within=within)
        return agreed(self.products, self._factors_of(self.plain), within=within)

    def mean(self, folded: Mapping[str, Tensor], stays: Bool[Tensor, " heads"]) -> tuple[dict[str, Tensor], str]:
        """Return the folded mean with the heads that do not stay averaged as their symmetry allows, and how."""
        if self.space.maps[self.name] == "fixed":
            return dict(folded), "plain (its basis is fixed)"
        among = f", {int(stays.sum())} of {len(stays)} heads plain" if bool(stays.any()) else ""
        if self.aligned is not None:
            rows = self.aligned.mean.double()
            rows = _chosen(stays, self._read(self.plain), rows) if among else rows
            return self._write(folded, rows), f"turned to the reference{among}"
        mean, kept = mean_product(self.products, like=self._factors_of(self.target))
        left, right = mean.left.double(), mean.right.double()
        if among:
            plain = self._factors_of(self.plain)
            left, right = _chosen(stays, plain.left, left), _chosen(stays, plain.right, right)
        return put_factors(folded, self.group, self.space.name, self.name, left, right), f"kept {kept:.1%}{among}"

    def _factors_of(self, state: State) -> Factors:
        return Factors(*factors(state, self.group, self.space.name, self.name))

    def _axes(self) -> list[Axis]:
        return [axis for axis in self.group.of(self.space.name) if axis.part == self.name]

    def _read(self, state: State) -> Float[Tensor, "heads inner width"]:
        """Return everything in the basis of this part, as rows of every head."""
        shape = (self.space.size, self.space.inner, -1)
        return torch.cat([read_axis(state[a.tensor], a, self.space).reshape(shape) for a in self._axes()], dim=-1)

    def _write(self, state: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        result, begun = dict(state), 0
        for axis in self._axes():
            width = read_axis(result[axis.tensor], axis, self.space).shape[1]
            mine = rows[..., begun : begun + width].reshape(self.space.size * self.space.inner, width)
            result[axis.tensor] = write_axis(result[axis.tensor], axis, self.space, mine)
            begun += width
        return result


def _chosen(stays: Bool[Tensor, " heads"], plain: Tensor, mean: Tensor) -> Float64[Tensor, "heads rank width"]:
    return torch.where(stays[:, None, None], plain.double(), mean.double())


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
