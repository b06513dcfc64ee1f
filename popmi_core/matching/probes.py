"""Images that need no data: smooth noise with the spectrum of photographs, to look at activations with.

Natural images have amplitudes that fall about as 1/f (Field 1987, doi:10.1364/JOSAA.4.002379); white noise lies outside
what a model was trained on and moves its units hardly at all.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.errors import ModelError
from popmi_core.matching.check import input_shape
from popmi_core.matching.elements import Element
from popmi_core.matching.starts import start_from
from popmi_core.matching.statistics import cross_statistics
from popmi_core.matching.symmetry import State, Symmetry

# How many images settle a start.
_COUNT = 256
# Amplitude 1/f**slope; images cycle through the slopes, from fine texture to little but a gradient.
_SLOPES = (1.0, 1.5, 2.0, 3.0)
# The share of the noise that all colour channels have in common: photographs are mostly grey.
_COMMON = 0.7


def starts_from_probes(
    model: nn.Module,
    reference: State,
    candidate: State,
    symmetry: Symmetry,
    *,
    image_size: int | None,
    generator: torch.Generator,
) -> Iterator[Element]:
    """Yield the element that brings the candidate's activations on smooth noise closest to the reference's.

    Both models are run when it is asked for, so not at all where no start is looked at (``Matcher.match``).

    Args:
        model: The architecture; its own weights do not matter.
        reference: The state whose basis counts.
        candidate: The state to be moved.
        symmetry: The architecture's description.
        image_size: Pixels per side; None takes what the model says.
        generator: Where chance comes from.

    Raises:
        ModelError: If neither the caller nor the model says how large images are.
        UpdateError: If an activation is not finite.
    """
    pixels = probe_images(input_shape(model, image_size), _COUNT, generator)
    yield start_from(cross_statistics(model, reference, candidate, symmetry, pixels), symmetry)


def probe_images(
    shape: tuple[int, int, int], count: int, generator: torch.Generator
) -> Float[Tensor, "count channels height width"]:
    """Draw smooth noise as a model's normalised input: mean 0 and variance 1 over each image.

    Args:
        shape: Channels, height and width.
        count: Number of images.
        generator: Where chance comes from.

    Raises:
        ModelError: If a size is not positive.
    """
    if min(*shape, count) < 1:
        raise ModelError(f"probe images: {count} of shape {shape} asked for, expected sizes of at least 1.")
    channels, height, width = shape
    common = torch.randn(count, 1, height, width, generator=generator)
    own = torch.randn(count, channels, height, width, generator=generator)
    noise = _COMMON**0.5 * common + (1 - _COMMON) ** 0.5 * own
    slopes = torch.tensor(_SLOPES)[torch.arange(count) % len(_SLOPES)]
    smooth = torch.fft.irfft2(torch.fft.rfft2(noise) * _falling(height, width, slopes), s=(height, width))
    centred = smooth - smooth.mean(dim=(1, 2, 3), keepdim=True)
    spread = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    # A single pixel of one channel is constant: it stays 0.
    return centred / spread.clamp_min(torch.finfo(spread.dtype).tiny)


def _falling(height: int, width: int, slopes: Float[Tensor, " count"]) -> Float[Tensor, "count 1 height half"]:
    rows, columns = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
    frequency = (rows[:, None].square() + columns.square()).sqrt()
    # The mean gets the weight of the lowest frequency: channels then differ in brightness, the image has mean 0.
    frequency = frequency.clamp_min(1 / max(height, width))
    return frequency ** -slopes[:, None, None, None]
