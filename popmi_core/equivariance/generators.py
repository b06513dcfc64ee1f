"""The five ways to move an image that LEE asks about, each a one-parameter group of maps of the plane.

A flow moves content by ``p -> exp(t A) p + t d`` about the image's exact centre (rows down, columns right, in pixels),
so the moved image at ``p`` is the image at ``exp(-t A) p - t d``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from popmi_core.errors import ModelError
from popmi_core.groups import Element
from popmi_core.groups.sampler import sample, sample_slope

Matrix2 = tuple[tuple[float, float], tuple[float, float]]
_NOTHING: Matrix2 = ((0.0, 0.0), (0.0, 0.0))


@dataclass(frozen=True)
class Flow:
    """One direction of one generator.

    Attributes:
        generator: Which of the five it belongs to.
        matrix: A, on (row, column).
        shift: d, pixels per unit of t.
        unit: What t is measured in.
    """

    generator: str
    matrix: Matrix2
    shift: tuple[float, float]
    unit: str

    def seen_from(self, element: Element) -> Flow:
        """Return the flow as it moves the copies of images that ``element`` has turned or mirrored."""
        # rot90 takes (row, column) to (-column, row); the mirror comes first.
        turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        frame = torch.linalg.matrix_power(turn, element.turns)
        if element.flip:
            frame = frame @ torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
        matrix = (frame @ torch.tensor(self.matrix, dtype=torch.float64) @ frame.T).tolist()
        shift = (frame @ torch.tensor(self.shift, dtype=torch.float64)).tolist()
        return Flow(self.generator, (tuple(matrix[0]), tuple(matrix[1])), tuple(shift), self.unit)


FLOWS: tuple[Flow, ...] = (
    Flow("translation", _NOTHING, (1.0, 0.0), "pixel"),
    Flow("translation", _NOTHING, (0.0, 1.0), "pixel"),
    Flow("rotation", ((0.0, -1.0), (1.0, 0.0)), (0.0, 0.0), "radian, counter-clockwise"),
    Flow("scale", ((1.0, 0.0), (0.0, 1.0)), (0.0, 0.0), "natural logarithm of the enlargement"),
    Flow("shear", ((0.0, 0.0), (1.0, 0.0)), (0.0, 0.0), "columns per row"),
    # Both axes: one grows as the other shrinks (diag(1, -1)); a stretch that zeroes an axis is no group.
    Flow("hyperbolic", ((1.0, 0.0), (0.0, -1.0)), (0.0, 0.0), "natural logarithm of the squeeze"),
)
GENERATORS: tuple[str, ...] = tuple(dict.fromkeys(flow.generator for flow in FLOWS))


def flows_of(generators: tuple[str, ...] = GENERATORS) -> tuple[Flow, ...]:
    """Return the directions of these generators; translation has two, along rows and along columns.

    Raises:
        ModelError: If there is no such generator, or none is named.
    """
    unknown = [name for name in generators if name not in GENERATORS]
    if unknown or not generators:
        raise ModelError(f"generators {unknown or 'none'}: expected one or more of {', '.join(GENERATORS)}.")
    return tuple(flow for flow in FLOWS if flow.generator in generators)


def velocity(flow: Flow, side: int, *, of_input: int | None = None) -> Float64[Tensor, "2 side side"]:
    """Return how fast the content at every pixel moves at t = 0: rows, then columns, in pixels per unit of t.

    ``of_input``: for a feature map, the image's side: a shift by one pixel of the image is less than one of the map.
    """
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    points = torch.stack(torch.meshgrid(place, place, indexing="ij"))
    matrix, shift = (torch.tensor(part, dtype=torch.float64) for part in (flow.matrix, flow.shift))
    return torch.einsum("ab,bij->aij", matrix, points) + shift[:, None, None] * side / (of_input or side)


def speed(flow: Flow, side: int) -> float:
    """Return the root mean square over pixels of ``velocity``: pixels per unit of t."""
    return float(velocity(flow, side).square().sum(dim=0).mean().sqrt())


def move(images: Float[Tensor, "n c side side"], flow: Flow, t: float) -> Float[Tensor, "n c side side"]:
    """Return the images moved by t: cubic interpolation, reflected beyond the edge; at t = 0 the images themselves."""
    row, col, _ = _sources(flow, t, images.shape[-1])
    return sample(images, row, col).unflatten(-1, images.shape[-2:])


def move_slope(images: Float[Tensor, "n c side side"], flow: Flow, t: float = 0.0) -> Float[Tensor, "n c side side"]:
    """Return the derivative of ``move`` in t: exact for the cubic kernel; at t = 0 central differences of pixels."""
    row, col, speeds = _sources(flow, t, images.shape[-1])
    return sample_slope(images, row, col, speeds[0], speeds[1]).unflatten(-1, images.shape[-2:])


def _sources(flow: Flow, t: float, side: int) -> tuple[Tensor, Tensor, Float64[Tensor, "2 pixels"]]:
    """Return where each pixel of the moved image is read, and how fast that place moves.

    On the CPU, where no matrix function rounds otherwise than it does elsewhere; ``sample`` takes them to the images.
    """
    centre = (side - 1) / 2
    pixels = torch.arange(side, dtype=torch.float64)
    whole = torch.stack(torch.meshgrid(pixels, pixels, indexing="ij")).reshape(2, -1)
    matrix, shift = (torch.tensor(part, dtype=torch.float64) for part in (flow.matrix, flow.shift))
    back = torch.linalg.matrix_exp(-t * matrix)
    # As a displacement from the whole pixel, which is exactly 0 at t = 0: no cell is ever missed by rounding.
    moved = (back - torch.eye(2, dtype=torch.float64)) @ (whole - centre) - t * shift[:, None]
    row, col = whole + moved
    return row, col, -matrix @ back @ (whole - centre) - shift[:, None]
