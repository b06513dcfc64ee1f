"""Images that need no data: smooth noise with the spectrum of photographs, to look at activations with.

Natural images have amplitudes that fall about as 1/f (Field 1987, doi:10.1364/JOSAA.4.002379); white noise lies outside
what a model was trained on and moves its units hardly at all.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.errors import ModelError

# Amplitude 1/f**slope; images cycle through the slopes, from fine texture to little but a gradient.
_SLOPES = (1.0, 1.5, 2.0, 3.0)
# The share of the noise that all colour channels have in common: photographs are mostly grey.
_COMMON = 0.7


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
