"""Two models before and after matching: the line between them, their heads, their layers, and what a bound promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64
from torch import nn

from popmi_core.data import ImageSet
from popmi_core.fusion.headproducts import head_products
from popmi_core.fusion.path import State, blocks_of, distance, gradient_norm, kernels, on_line, walk
from popmi_core.fusion.update import Symmetry
from popmi_core.matching import canonicalise
from popmi_core.metrics.connectivity import LinePath, cka_from_kernels, head_similarity
from popmi_core.metrics.linebound import LineBound, line_bound, prior_entropy, slope_lipschitz

Matrix = Float64[npt.NDArray[np.float64], "heads heads"]
CKA_IMAGES = 256
PRODUCTS = ("query_key", "value_output")


@dataclass(frozen=True)
class Line:
    """The line from the first model to a second one: loss and accuracy on it, and its length in weights."""

    path: LinePath
    distance: float


@dataclass(frozen=True)
class Bounds:
    """Proposition 2 on one line under two estimates of the Lipschitz constant, both of them from below.

    ``slope``: the steepest finite difference along the line; ``gradient``: the largest gradient norm at its points,
    which counts all directions and not only the line's.
    """

    slope_constant: float
    gradient_constant: float
    slope: LineBound
    gradient: LineBound


def measure_line(
    model: nn.Module,
    first: State,
    second: State,
    data: ImageSet,
    *,
    points: int,
    progress: Callable[[int, int], None] | None = None,
) -> Line:
    """Return the line between two states of the model, on these images.

    Raises:
        ModelError: If the states do not fit one another or the model, or there is no image.
    """
    path = walk(model, first, second, data, points=points, progress=progress)
    return Line(path, distance(first, second))


def measure_bounds(model: nn.Module, first: State, second: State, line: Line, data: ImageSet) -> Bounds:
    """Return proposition 2 evaluated on a measured line; gradients are taken on ``data``, the images of the line.

    Raises:
        ModelError: If a state does not fit the model, or there is no image.
        UpdateError: If the two models are one, or a loss is not finite.
    """
    losses, length = line.path.losses, line.distance
    slope = slope_lipschitz(losses, distance=length)
    steepest = max(gradient_norm(model, on_line(first, second, float(alpha)), data) for alpha in line.path.alphas)
    trivial = prior_entropy(data.targets)
    by_slope = line_bound(losses, lipschitz=slope, distance=length, trivial=trivial)
    return Bounds(slope, steepest, by_slope, line_bound(losses, lipschitz=steepest, distance=length, trivial=trivial))


def heads_alike(
    model: nn.Module, first: State, second: State, symmetry: Symmetry | None
) -> dict[str, dict[str, Matrix]]:
    """Return the cosines of all pairs of heads by attention layer and product (see ``head_similarity``).

    Norms are folded into the products first where the architecture is described. Empty without attention.
    """
    states = [first, second] if symmetry is None else [canonicalise(state, symmetry) for state in (first, second)]
    ones, others = (head_products(model, state) for state in states)
    return {
        layer: {
            "query_key": head_similarity(
                (one.query.numpy(), one.key.numpy()), (others[layer].query.numpy(), others[layer].key.numpy())
            ),
            "value_output": head_similarity(
                (one.output.numpy(), one.value.numpy()), (others[layer].output.numpy(), others[layer].value.numpy())
            ),
        }
        for layer, one in ones.items()
    }


def layers_alike(
    model: nn.Module, states: Mapping[str, State], pairs: tuple[tuple[str, str], ...], data: ImageSet
) -> dict[str, dict[str, float]]:
    """Return linear CKA of every block by block and pair ("A, B"), on at most 256 of the images.

    Raises:
        ModelError: If a state does not fit the model.
        UpdateError: If a block says the same for every image.
    """
    layers, images = blocks_of(model), data.images[:CKA_IMAGES]
    found = {name: kernels(model, state, images, layers) for name, state in states.items()}
    return {
        layer: {f"{one}, {two}": cka_from_kernels(found[one][layer], found[two][layer]) for one, two in pairs}
        for layer in layers
    }
