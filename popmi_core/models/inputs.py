"""From stored pixels to what a backbone was made for."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from popmi_core.errors import ModelError


def normalise(images: UInt8[Tensor, "n height width 3"], model: nn.Module) -> Float[Tensor, "n 3 height width"]:
    """Scale 0-255 to 0-1, then subtract the mean and divide by the std of the model's own data config.

    Raises:
        ModelError: If the images are not uint8 of shape [n, height, width, 3].
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ModelError(
            f"images are {images.dtype} of shape {tuple(images.shape)}, expected torch.uint8 of shape "
            "[n, height, width, 3]. Pass the images as they are stored."
        )
    mean, std = (part.to(images.device) for part in channel_statistics(model))
    scaled = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 255
    return (scaled - mean) / std


def channel_statistics(model: nn.Module) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """Return the mean and the std (brightness 0 to 1) of the model's own data config; 0.5 where it has none."""
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = (torch.tensor(config.get(key, (0.5, 0.5, 0.5))).view(3, 1, 1) for key in ("mean", "std"))
    return mean, std
