"""What a site measures on its own images for the server: sums over images, never one image's values."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from client.receive import State, symmetry_of
from popmi_core.data import ImageSet
from popmi_core.errors import DataError, PrivacyError
from popmi_core.fusion.grams import input_grams
from popmi_core.fusion.repair import norm_statistics
from popmi_core.matching.statistics import cross_statistics
from popmi_core.metrics.summary import MIN_CELL
from popmi_core.models import normalise
from popmi_core.protocol import Instruction, derive_seed


def refuse_bare_statistics(instruction: Instruction, what: str) -> None:
    """Refuse to look at images outside DP-SGD in a run with a privacy budget, whatever the server asks.

    Raises:
        PrivacyError: If the run has a budget.
    """
    if instruction.privacy is not None:
        raise PrivacyError(
            f"{what} would send what it saw in this site's images without noise, and the run promises a privacy "
            "budget. Run without this part or without the budget."
        )


def some_images(
    data: ImageSet, model: nn.Module, instruction: Instruction, site: str
) -> tuple[Float[Tensor, "n 3 height width"], Tensor]:
    """Return at most ``instruction.num_images`` training images as the model takes them, and their classes.

    The same run, round and site give the same images.

    Raises:
        DataError: If there are fewer than ``MIN_CELL``: the sums of so few are close to the images themselves.
    """
    if len(data) < MIN_CELL:
        raise DataError(
            f"site {site}: {len(data)} training images, expected at least {MIN_CELL} for statistics that leave the "
            "site. Use a rule and a matching method that look at weights only."
        )
    seed = derive_seed("statistics", instruction.seed, site, instruction.server_round)
    order = torch.randperm(len(data), generator=Generator().manual_seed(seed))[: instruction.num_images]
    chosen = order.sort().values.numpy()
    return normalise(torch.from_numpy(data.images[chosen]), model), torch.from_numpy(data.targets[chosen])


def measure_grams(
    model: nn.Module, data: ImageSet, instruction: Instruction, site: str, *, names: Container[str]
) -> dict[str, Tensor]:
    """Return the Gram matrix of the inputs of every layer whose weight is in ``names``, per image (RegMean), float32.

    Raises:
        DataError: If the site has too few images (see ``some_images``).
    """
    images, _ = some_images(data, model, instruction, site)
    return {name: gram.float() for name, gram in input_grams(model, images).items() if f"{name}.weight" in names}


def measure_activations(
    model: nn.Module, start: State, state: State, data: ImageSet, instruction: Instruction, site: str
) -> dict[str, npt.NDArray[np.float64]]:
    """Return second moments of both models' activations on the same images, by space, float64.

    Raises:
        DataError: If the site has too few images (see ``some_images``).
        ModelError: If the architecture's symmetries are not known.
    """
    images, _ = some_images(data, model, instruction, site)
    return cross_statistics(model, start, state, symmetry_of(instruction), images).to_arrays()


def measure_norms(model: nn.Module, data: ImageSet, instruction: Instruction, site: str) -> dict[str, Tensor]:
    """Return every BatchNorm layer's mean, variance and count over training images (REPAIR).

    Raises:
        DataError: If the site has too few images (see ``some_images``).
    """
    images, _ = some_images(data, model, instruction, site)
    return dict(norm_statistics(model, images))
