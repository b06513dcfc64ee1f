"""The mean of products of thin matrices, in factors of the same rank: what heads and low-rank adapters compute.

``left^T right`` is the same for ``(G left, G^-T right)`` with every invertible G, so that averaging factors mixes
bases. The best approximation of the mean product of that rank is its truncated SVD (Eckart and Young 1936).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from popmi_core.matching.factors import balancer
from popmi_core.matching.procrustes import polar

# Up to this width the decomposition is exact (0.1 s a product); wider ones are iterated.
_EXACT = 256
# Further directions carried along, which make the iteration converge where singular values lie close together.
_SPARE = 16
# An iteration that captures less than this share more of the squared norm is the last (float32 resolves no less).
_SETTLED = {torch.float64: 1e-9, torch.float32: 1e-6}
_ITERATIONS = 20
# Of a squared norm: what sums of such squares do not resolve.
_ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-5}
# A basis change that stretches by more than this is not undone exactly enough.
_MAGNIFIED = 1e3


@dataclass(frozen=True)
class Factors:
    """A product ``left^T right`` of two thin matrices, possibly one for each head."""

    left: Float[Tensor, "*heads rank fan_out"]
    right: Float[Tensor, "*heads rank fan_in"]

    def both(self) -> Float[Tensor, "*heads rank fan_out_and_in"]:
        """Return the factors side by side: what an orthogonal change of basis turns."""
        return torch.cat([self.left, self.right], dim=-1)


class ProductSum:
    """A weighted sum of products that takes them one at a time.

    Factors are held while all their rows together are fewer than the product is wide, then the product itself: from
    ``width / rank`` sites on memory does not grow.
    """

    def __init__(self, rows: Iterable[tuple[float, Factors]] = ()) -> None:
        self._held: list[Factors] = []
        self._dense: Float[Tensor, "*heads fan_out fan_in"] | None = None
        self._first: Factors | None = None
        self.factors: Float[Tensor, "*heads rank fan_out_and_in"] = torch.zeros(())
        """The sum of the factors themselves, side by side."""
        self.size: Float[Tensor, "*heads"] = torch.zeros(())
        """The weighted sum of the products' squared norms."""
        self.identical: Bool[Tensor, "*heads"] = torch.ones((), dtype=torch.bool)
        """For which heads all factors are the very same numbers."""
        for weight, factors in rows:
            self.add(weight, factors)

    def add(self, weight: float, factors: Factors) -> None:
        """Add one product."""
        self._first = self._first or factors
        self.identical = self.identical & (factors.both() == self._first.both()).all(-1).all(-1)
        weighted = Factors(weight * factors.left, factors.right)
        self.factors = self.factors + torch.cat([weighted.left, weight * factors.right], dim=-1)
        self.size = self.size + _inner(weighted.left, factors.right, factors.left, factors.right)
        self._held.append(weighted)
        rows = sum(one.left.shape[-2] for one in self._held)
        if self._dense is not None or rows > min(factors.left.shape[-1], factors.right.shape[-1]):
            left, right = self._stack()
            self._dense = left.mT @ right if self._dense is None else self._dense + left.mT @ right
            self._held = []

    def stacked(self) -> tuple[Float[Tensor, "*heads rows fan_out"], Float[Tensor, "*heads rows fan_in"]]:
        """Return two factors of the sum; their rows are as many as those of all, or as the product is wide."""
        if self._dense is None:
            return self._stack()
        unit = torch.eye(min(self._dense.shape[-2:]), dtype=self._dense.dtype).expand(*self._dense.shape[:-2], -1, -1)
        return (unit, self._dense) if self._dense.shape[-2] <= self._dense.shape[-1] else (self._dense.mT, unit)

    def _stack(self) -> tuple[Tensor, Tensor]:
        return tuple(torch.cat([getattr(one, side) for one in self._held], dim=-2) for side in ("left", "right"))  # type: ignore[return-value]


def mean_product(products: ProductSum, *, like: Factors) -> tuple[Factors, float]:
    """Return factors of the weighted mean product, of the same rank, and the share of its squared norm they hold.

    Within what the product leaves open the factors are put into the basis of ``like``: balanced with the map that
    balances ``like``, turned to it, and mapped back. Where all products are that of ``like`` its very factors come
    back, so that training and server optimisers do not see a jump from round to round. Where ``like`` has no such
    basis (a zero or nearly rank-deficient factor) they stay balanced. Where a mean product is zero (fresh adapters:
    B = 0) the factors are averaged, because balanced factors of zero could never be trained again.

    The product itself is never formed: both stacks of factors (``sites * rank`` rows) are decomposed, exactly up to a
    width of 256 and by block power iteration from ``like`` beyond (Halko, Martinsson and Tropp 2011,
    arXiv:0909.4061, algorithm 4.4; it stops at a gain of 1e-9 of the squared norm, in float32 of 1e-6).
    """
    rank = like.left.shape[-2]
    (left, right), plain = products.stacked(), products.factors
    narrow = min(left.shape[-2], left.shape[-1], right.shape[-1]) <= _EXACT
    u, s, v = _decompose(left, right) if narrow else _iterate(left, right, like.right, rank)
    root = s[..., :rank].sqrt()[..., None, :]
    found = torch.cat([root * u[..., :rank], root * v[..., :rank]], dim=-2).mT
    found = functional.pad(found, (0, 0, 0, rank - found.shape[-2]))
    basis = _basis_of(like)
    turned = polar(_rebased(like, basis).both() @ found.mT) @ found
    turned = _rebased(
        Factors(turned[..., : left.shape[-1]], turned[..., left.shape[-1] :]), torch.linalg.inv(basis)
    ).both()
    turned = torch.where(s[..., :1, None] > 0, turned, plain)
    # What the iteration leaves behind it does not know; both Gram matrices do.
    energy = s.square().sum() if narrow else ((left @ left.mT) * (right @ right.mT)).sum()
    kept = min(1.0, float(s[..., :rank].square().sum() / energy)) if float(energy) > 0 else 1.0
    return Factors(turned[..., : left.shape[-1]], turned[..., left.shape[-1] :]), kept


def agreed(products: ProductSum, plain: Factors, *, within: float) -> Bool[Tensor, " *heads"]:
    """Return for which heads the products agree, and ``plain`` factors make their mean nearly.

    Agree: the products' spread about their weighted mean (root mean square) is at most ``within`` of its norm. Nearly:
    the product of ``plain`` is no further from that mean than ``within`` of the spread; where products agree better
    than their factors, it is the basis that differs. The answer is the same for every basis that all rows share.
    Frobenius norms, through Gram matrices: of factors of condition 100 and more (float32: 30) rounding may hide that
    sites agree, but not where they send the same numbers.
    """
    left, right = products.stacked()
    mean, size = _inner(left, right, left, right), _inner(plain.left, plain.right, plain.left, plain.right)
    apart = mean - 2 * _inner(left, right, plain.left, plain.right) + size
    return products.identical | _close(apart, products.size - mean, mean, within)


class AlignedSum:
    """A weighted sum of rows that are defined up to a rotation, each turned to ``like`` first (Procrustes).

    For factors whose lengths mean something (cosine attention): their product may not be balanced.
    """

    def __init__(self, like: Float[Tensor, "*heads rank width"]) -> None:
        self._like, self._size = like, torch.zeros(())
        self.mean: Float[Tensor, "*heads rank width"] = torch.zeros_like(like)

    def add(self, weight: float, rows: Float[Tensor, "*heads rank width"]) -> None:
        """Add one site's rows; the weights of all sum to one."""
        turned = weight * (polar(self._like @ rows.mT) @ rows)
        self.mean = self.mean + turned
        self._size = self._size + (turned * turned).sum((-2, -1)) / (weight or 1.0)

    def agreed(self, plain: Float[Tensor, "*heads rank width"], *, within: float) -> Bool[Tensor, " *heads"]:
        """Return for which heads the turned rows agree, and ``plain`` is their mean nearly (see ``agreed``)."""
        mean = self.mean.square().sum((-2, -1))
        return _close((plain - self.mean).square().sum((-2, -1)), self._size - mean, mean, within)


def _close(apart: Tensor, spread: Tensor, mean: Tensor, within: float) -> Tensor:
    """Compare squared norms; what rounding leaves of equal ones is nothing."""
    rounding, spread = _ROUNDING[mean.dtype] * mean, spread.clamp_min(0)
    return (spread <= within**2 * mean + rounding) & (apart <= within**2 * spread + rounding)


def _inner(left: Tensor, right: Tensor, other_left: Tensor, other_right: Tensor) -> Tensor:
    """Return ``<left^T right, other_left^T other_right>`` of every head."""
    return ((left @ other_left.mT) * (right @ other_right.mT)).sum((-2, -1))


def _basis_of(like: Factors) -> Float[Tensor, "*heads rank rank"]:
    """Return the map that balances ``like``, or the identity where it would magnify rounding."""
    shape = like.left.shape[:-1]
    found = balancer(*(side.reshape(-1, *side.shape[-2:]) for side in (like.left, like.right))).to(like.left.dtype)
    found = found.reshape(*shape, shape[-1])
    sizes = torch.linalg.svdvals(found)
    sound = (sizes[..., 0] < _MAGNIFIED * sizes[..., -1]) & (like.left.abs().amax((-2, -1)) > 0)
    sound = sound & (like.right.abs().amax((-2, -1)) > 0)
    return torch.where(sound[..., None, None], found, torch.eye(shape[-1], dtype=found.dtype))


def _rebased(factors: Factors, basis: Float[Tensor, "*heads rank rank"]) -> Factors:
    return Factors(basis @ factors.left, torch.linalg.inv(basis).mT @ factors.right)


def _decompose(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD ``left^T right = u diag(s) v^T`` by QR of both sides."""
    outer, inner = torch.linalg.qr(left.mT), torch.linalg.qr(right.mT)
    u, s, vh = torch.linalg.svd(outer.R @ inner.R.mT, full_matrices=False)
    return outer.Q @ u, s, inner.Q @ vh.mT


def _iterate(left: Tensor, right: Tensor, start: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading singular triples by block power iteration from the row space of ``start``."""
    count = min(rank + _SPARE, left.shape[-2], left.shape[-1], right.shape[-1])
    # What is missing to the block comes from the stack itself: its rows span all that the product can see.
    block = torch.linalg.qr(torch.cat([start, right], dim=-2)[..., :count, :].mT).Q
    captured = torch.zeros(())
    for _ in range(_ITERATIONS):
        u = torch.linalg.qr(left.mT @ (right @ block)).Q
        projected = (left @ u).mT @ right
        before, captured = captured, projected.square().sum()
        block = torch.linalg.qr(projected.mT).Q
        if float(captured - before) <= _SETTLED[left.dtype] * float(captured):
            break
    inner, s, vh = torch.linalg.svd(projected, full_matrices=False)
    return u @ inner, s, vh.mT
