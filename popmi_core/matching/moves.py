"""What matching did to a model, layer by layer, as figures a person can read."""

from __future__ import annotations

from dataclasses import dataclass, field

from popmi_core.matching.opm import Matched
from popmi_core.matching.settle import angles_turned, units_moved
from popmi_core.matching.symmetry import Symmetry


@dataclass(frozen=True)
class LayerMove:
    """One basis of one model: a layer's hidden units, its heads, or the residual stream.

    Attributes:
        layer: The space's name, such as ``blocks.0.mlp``.
        kind: Its group, such as ``permutation`` or ``heads``.
        gain: Share of the layer's squared distance to the reference that its own move took off, 0..1.
        angle: Mean angle of the rotation over its eigenvalues ``exp(i t)``, degrees, 0..180; inside heads the mean
            over all heads and products, of the nearest rotation; None where nothing can be rotated.
        moved: Units, heads or channels that are in another place than before; None for a rotation.
        of: How many there are.
    """

    layer: str
    kind: str
    gain: float
    angle: float | None
    moved: int | None
    of: int


@dataclass(frozen=True)
class LayerTold:
    """How far matching moved every layer, as it is told: what does not apply to a layer is left out.

    Attributes:
        angles: As in ``LayerMove``, by layer, degrees.
        moved: Units in another place.
        units: How many there are.
    """

    angles: dict[str, float] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)


def told_moves(matched: Matched, symmetry: Symmetry | None) -> LayerTold:
    """Return how far the layers were moved of which the match tells a gain; ``symmetry`` is that of its ``Matcher``."""
    found = [] if symmetry is None else [one for one in layer_moves(matched, symmetry) if one.layer in matched.gains]
    return LayerTold(
        {one.layer: one.angle for one in found if one.angle is not None},
        {one.layer: one.moved for one in found if one.moved is not None},
        {one.layer: one.of for one in found},
    )


def layer_moves(matched: Matched, symmetry: Symmetry) -> list[LayerMove]:
    """Return the moves of all layers in the order of the description."""
    angles, moved = angles_turned(symmetry, matched.element), units_moved(symmetry, matched.element)
    found = []
    for name, space in symmetry.spaces.items():
        stream = space.kind == "orthogonal"
        rotates = stream or any(kind != "fixed" for kind in space.maps.values())
        angle, count = (angles[name] if rotates else None), (None if stream else moved[name])
        # An order of channels covers all of them, an order of heads only the heads.
        of = space.width("" if space.kind == "heads" else "all")
        found.append(LayerMove(name, space.kind, matched.gains.get(name, 0.0), angle, count, of))
    return found
