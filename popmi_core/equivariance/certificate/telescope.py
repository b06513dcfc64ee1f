"""Which layers make the answer change: an exact telescoping sum over the network, for any angle.

Let ``h_i`` be the first i layers, ``F_i`` the rest, and ``T_i`` the turn of the features between them (images and maps
turn their places, tokens without a place and logits stay). With ``S_i = F_i(T_i h_i(x))`` one has ``S_0 = f(gx)`` and
``S_L = f(x)``, so ``f(gx) - f(x) = sum_i (S_{i-1} - S_i)`` without any remainder. Term i is what layer i does to a
turned input less what turning its output would have done, seen through the same rest: zero if it commutes.
For angles off the grid the turn interpolates, and what that blurs is in the terms as well. Terms are not bounds, and
their sizes do not add up: only the terms themselves do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from popmi_core.adapters.cuts import cut_of
from popmi_core.adapters.geometry import stages_of
from popmi_core.adapters.geometry.trace import grid_axes
from popmi_core.adapters.prea import Prea
from popmi_core.equivariance.certificate.residues import is_octic
from popmi_core.errors import ModelError
from popmi_core.groups.rotations import rotate

FIRST, LAST = "stem (and merge)", "head"


@dataclass(frozen=True, eq=False)
class Telescope:
    """The terms [layers, n, classes] at one angle (degrees), their layers' names, and what they add up to."""

    angle: float
    layers: tuple[str, ...]
    terms: Float64[Tensor, "layers n classes"]
    total: Float64[Tensor, "n classes"]

    @property
    def remainder(self) -> float:
        """Return max |sum of terms - total|: rounding only."""
        return float((self.terms.sum(dim=0) - self.total).abs().max())

    def sizes(self) -> dict[str, float]:
        """Return the root mean square of each layer's term over images and classes, in logits."""
        return {name: float(term.square().mean().sqrt()) for name, term in zip(self.layers, self.terms, strict=True)}


def telescope(model: nn.Module, images: Tensor, angle: float) -> Telescope:
    """Return the terms of ``f(g x) - f(x)`` for ``g`` a turn by ``angle`` degrees, counter-clockwise.

    One forward pass a layer. Behind an orbit-merge the first term holds the blocks before the merge and the merge.

    Args:
        model: In evaluation mode; float64 keeps the sum to about 1e-13.
        images: Normalised, [n, c, side, side].
        angle: Degrees.

    Raises:
        ModelError: If the model's features are not scalar fields with stages (octic, regular fields, other networks).
    """
    places = _places(model)
    with torch.no_grad():
        values = [model(rotate(images, angle)).double()]
        for _, entry in places:
            with entry(lambda features: _turn(model, features, angle)):
                values.append(model(images).double())
        values.append(model(images).double())
    terms = torch.stack([before - after for before, after in itertools.pairwise(values)])
    layers = (FIRST, *(name for name, _ in places[:-1]), LAST)
    return Telescope(angle, layers, terms, values[0] - values[-1])


Entry = Callable[[Callable[[Tensor], Tensor]], Any]


def _places(model: Any) -> list[tuple[str, Entry]]:
    """Return where features can be turned: before every stage after the merge, and before the head."""
    adapted = isinstance(model, Prea)
    backbone: Any = model.backbone if adapted else model
    # POPMI's own networks hold regular fields, whose channels turn too, if they are not of timm's scalar families.
    scalar = cut_of(backbone) is not None or type(backbone).__module__.startswith("timm.")
    scalar = scalar and not (adapted and model.fields == "regular")
    if is_octic(model) or hasattr(model, "field_group") or not scalar or not hasattr(backbone, "forward_head"):
        raise ModelError(
            f"{type(model).__name__}: its features are not scalar fields behind timm's stages, expected a timm "
            "backbone or PREA with trivial fields around one. The other parts of the certificate do not need this one."
        )
    names = stages_of(backbone)[model.merge_block if adapted else 0 :]
    stages = [(name, _before_module(backbone.get_submodule(name))) for name in names if name]
    return [*stages, (LAST, _before_head(backbone))]


def _before_module(module: nn.Module) -> Entry:
    @contextmanager
    def entry(change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
        try:
            yield
        finally:
            handle.remove()

    return entry


def _before_head(backbone: Any) -> Entry:
    @contextmanager
    def entry(change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        original = backbone.forward_head
        backbone.forward_head = lambda features, *args, **kwargs: original(change(features), *args, **kwargs)
        try:
            yield
        finally:
            del backbone.forward_head

    return entry


def _turn(model: Any, features: Tensor, angle: float) -> Tensor:
    backbone = model.backbone if isinstance(model, Prea) else model
    if features.ndim == 4:
        if grid_axes(backbone) == (2, 3):
            return rotate(features, angle)
        return rotate(features.permute(0, 3, 1, 2), angle).permute(0, 2, 3, 1)
    if features.ndim != 3:
        return features
    extra = int(getattr(backbone, "num_prefix_tokens", 0))
    side = round((features.shape[1] - extra) ** 0.5)
    grid = features[:, extra:].transpose(1, 2).unflatten(2, (side, side))
    return torch.cat([features[:, :extra], rotate(grid, angle).flatten(2).transpose(1, 2)], dim=1)
