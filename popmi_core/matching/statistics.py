"""What two models' activations on the same images say about which unit is which: sums only, so that no image leaves.

A site runs the broadcast model and its own on its own images and sends second moments per space: the cross-covariance
of the two models' activations and what is needed to normalise it. Sums of several sites or batches add up. Used as in
Git Re-Basin's activation matching (Ainsworth et al. 2023, arXiv:2209.04836, section 3.1) and, for rotations, as an
orthogonal Procrustes problem (Schoenemann 1966, doi:10.1007/BF02289451).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from popmi_core.errors import UpdateError
from popmi_core.matching.symmetry import Space, State, Symmetry, Tap

Arrays = Mapping[str, npt.NDArray[np.float64]]
# A unit that never moves has no correlation; this share of the mean variance keeps the division finite.
_STILL = 1e-12


@dataclass(frozen=True)
class Moments:
    """Sums over tokens of one space's activations a (reference) and b (candidate), float64.

    ``reference`` and ``candidate`` are the sums of ``a a^T`` and ``b b^T`` inside each entry of the space: inside a
    head, or just the square of a unit (inner 1).
    """

    count: Float[Tensor, ""]
    reference_sum: Float[Tensor, " width"]
    candidate_sum: Float[Tensor, " width"]
    cross: Float[Tensor, "width width"]
    reference: Float[Tensor, "entries inner inner"]
    candidate: Float[Tensor, "entries inner inner"]

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    def covariance(self) -> Float[Tensor, "width width"]:
        """Return the covariance of every unit of the reference (rows) with every unit of the candidate."""
        return self.cross / self.count - torch.outer(self.reference_sum, self.candidate_sum) / self.count.square()

    def own(self) -> tuple[Float[Tensor, "entries inner inner"], Float[Tensor, "entries inner inner"]]:
        """Return the covariances inside the entries, the reference's and the candidate's."""
        return (
            _own(self.reference, self.reference_sum / self.count, self.count),
            _own(self.candidate, self.candidate_sum / self.count, self.count),
        )


@dataclass(frozen=True)
class CrossStatistics:
    """The moments of every space that shows in activations, by ``space`` or, inside heads, ``space:part``."""

    moments: Mapping[str, Moments]

    def __add__(self, other: CrossStatistics) -> CrossStatistics:
        """Add the sums of another site or batch.

        Raises:
            UpdateError: If the two speak of different spaces.
        """
        if set(self.moments) != set(other.moments):
            odd = min(set(self.moments) ^ set(other.moments))
            raise UpdateError(f"statistics: only one of two sites reports '{odd}'. Check that both run the same model.")
        return CrossStatistics({key: moments + other.moments[key] for key, moments in self.moments.items()})

    def to_arrays(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the sums by name, for the wire."""
        return {
            f"{key}|{part.name}": getattr(moments, part.name).numpy()
            for key, moments in self.moments.items()
            for part in fields(Moments)
        }


def from_arrays(arrays: Arrays, symmetry: Symmetry, *, site: str) -> CrossStatistics:
    """Read what a site sent.

    Raises:
        UpdateError: If a sum is missing or unknown, has another shape, or is NaN or infinite; it names the site.
    """
    shapes = {
        f"{key}|{name}": shape
        for key, (space, part) in _keys(symmetry).items()
        for name, shape in _shapes(space, part).items()
    }
    if set(shapes) != set(arrays):
        raise UpdateError(
            f"site {site}: statistics hold or lack '{min(set(shapes) ^ set(arrays))}', expected the taps of "
            f"'{symmetry.family}'. Check that the site runs the same model configuration."
        )
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise UpdateError(
                f"site {site}: statistic '{name}' has shape {arrays[name].shape} or is not finite, expected finite "
                f"numbers of shape {shape}. Quarantine the update."
            )
    read = {name: torch.from_numpy(np.array(value, np.float64)) for name, value in arrays.items()}
    keys = _keys(symmetry)
    return CrossStatistics({k: Moments(*(read[f"{k}|{part.name}"] for part in fields(Moments))) for k in keys})


def cross_statistics(
    model: nn.Module,
    reference_state: State,
    candidate_state: State,
    symmetry: Symmetry,
    images: Float[Tensor, "n channels height width"],
    *,
    batch_size: int = 64,
) -> CrossStatistics:
    """Run both models on the images and return sums over all tokens; nothing of a single image is kept.

    The residual stream is read as its norms read it, every token centred and scaled to unit variance, so that the last
    blocks do not outweigh the first. The model is not changed. Memory: one batch of activations and the sums.

    Args:
        model: The architecture; both states are run through it in evaluation mode.
        reference_state: The broadcast model.
        candidate_state: The site's own model.
        symmetry: Its taps say where to look.
        images: Normalised as the model takes them; no labels are needed.
        batch_size: Images per pass; sums depend on it by rounding only.

    Raises:
        UpdateError: If there is no image, no tap, or an activation is NaN or infinite.
    """
    if not len(images) or not symmetry.taps:
        raise UpdateError(
            f"statistics: {len(images)} images and {len(symmetry.taps)} taps in '{symmetry.family}', expected at least "
            "one of each. Choose another split, or match on weights."
        )
    watched = copy.deepcopy(model).eval()
    seen: list[dict[Tap, Tensor]] = [{}]
    for tap in symmetry.taps:
        watched.get_submodule(tap.module).register_forward_hook(partial(_keep, seen, tap))
    total = {key: _nothing(space, part) for key, (space, part) in _keys(symmetry).items()}
    with torch.inference_mode():
        for batch in images.split(batch_size):
            for tap, first, second in _both(watched, reference_state, candidate_state, batch, seen):
                space = symmetry.spaces[tap.space]
                total[_key(tap)] += _moments(_rows(first, tap, space), _rows(second, tap, space), space, tap.part)
    for key, moments in total.items():
        if not bool(torch.isfinite(moments.cross).all()):
            raise UpdateError(f"statistics: an activation of '{key}' is NaN or infinite. Quarantine the update.")
    return CrossStatistics(total)


def as_scores(statistics: CrossStatistics, space: Space, part: str = "") -> Float[Tensor, "width width"]:
    """Return how well every unit of the candidate (columns) fits every unit of the reference (rows).

    Permutations: the correlation. Rotations: the covariance, whose polar factor is the best rotation. Heads: the
    covariance of all channels of all heads after each head's own are whitened, so that the basis inside does not
    matter: the block of two heads has their canonical correlations as singular values.

    Raises:
        UpdateError: If the space does not show in activations.
    """
    key = f"{space.name}:{part}" if part else space.name
    if key not in statistics.moments:
        raise UpdateError(f"statistics say nothing of '{key}', only of {', '.join(statistics.moments)}. Match weights.")
    moments = statistics.moments[key]
    cross = moments.covariance()
    if space.kind == "orthogonal":
        return cross
    left, right = (whitening(own) for own in moments.own())
    blocks = cross.reshape(len(left), left.shape[1], len(right), right.shape[1])
    return torch.einsum("hij,hjgk,gkl->higl", left, blocks, right).reshape(cross.shape)


def whitening(own: Float[Tensor, "entries inner inner"]) -> Float[Tensor, "entries inner inner"]:
    """Return the inverse square roots of covariances; directions that never move stay near zero scores."""
    values, vectors = torch.linalg.eigh(own)
    least = _STILL * values.mean().clamp_min(torch.finfo(values.dtype).tiny)
    return vectors @ torch.diag_embed(values.clamp_min(least).rsqrt()) @ vectors.mT


def _key(tap: Tap) -> str:
    return f"{tap.space}:{tap.part}" if tap.part else tap.space


def _keys(symmetry: Symmetry) -> dict[str, tuple[Space, str]]:
    return {_key(tap): (symmetry.spaces[tap.space], tap.part) for tap in symmetry.taps}


def numbers_told(symmetry: Symmetry) -> int:
    """Return of how many numbers the sums consist that a site tells about these symmetries."""
    return sum(math.prod(shape) for space, part in _keys(symmetry).values() for shape in _shapes(space, part).values())


def _shapes(space: Space, part: str) -> dict[str, tuple[int, ...]]:
    width = space.width(part)
    inner = space.inner if part else 1
    own = (width // inner, inner, inner)
    return dict(zip((f.name for f in fields(Moments)), ((), (width,), (width,), (width, width), own, own), strict=True))


def _nothing(space: Space, part: str) -> Moments:
    return Moments(*(torch.zeros(shape, dtype=torch.float64) for shape in _shapes(space, part).values()))


def _keep(seen: list[dict[Tap, Tensor]], tap: Tap, module: nn.Module, args: Any, output: Any) -> None:
    del module
    seen[0][tap] = args[0] if tap.side == "input" else output


def _both(
    model: nn.Module, reference: State, candidate: State, images: Tensor, seen: list[dict[Tap, Tensor]]
) -> Iterator[tuple[Tap, Tensor, Tensor]]:
    """Yield every tap with the activations of both models on the same images."""
    passes = []
    for state in (reference, candidate):
        seen[0] = {}
        functional_call(model, dict(state), (images.to(_dtype(state)),))
        passes.append(seen[0])
    for tap, first in passes[0].items():
        yield tap, first, passes[1][tap]


def _dtype(state: State) -> torch.dtype:
    return next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())


def _rows(activations: Tensor, tap: Tap, space: Space) -> Float[Tensor, "tokens width"]:
    rows = activations.movedim(tap.axis, -1)[..., tap.start : tap.stop].double()
    # All channels of a field are turned alike: each is a token of its own.
    rows = rows.unflatten(-1, (-1, tap.spread)).movedim(-1, 0).flatten(0, -2)
    return nn.functional.layer_norm(rows, rows.shape[-1:]) if space.kind == "orthogonal" else rows


def _moments(first: Tensor, second: Tensor, space: Space, part: str) -> Moments:
    inner = space.inner if part else 1
    count = torch.tensor(len(first), dtype=torch.float64)
    blocks = [rows.unflatten(-1, (-1, inner)) for rows in (first, second)]
    own = [torch.einsum("nhi,nhj->hij", rows, rows) for rows in blocks]
    return Moments(count, first.sum(0), second.sum(0), first.T @ second, own[0], own[1])


def _own(blocks: Tensor, mean: Tensor, count: Tensor) -> Tensor:
    split = mean.reshape(len(blocks), -1)
    return blocks / count - split[:, :, None] * split[:, None]
