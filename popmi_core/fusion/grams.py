"""Input Gram matrices of a model's linear layers: what RegMean needs to know of a site's images."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from popmi_core.adapters.regular.layers import FreeKernel, Readout
from popmi_core.errors import DataError

# Rows widened to float64 at a time: bounds what an unfolded convolution's input takes.
_ROWS = 16384


def input_grams(
    model: nn.Module, images: Float[Tensor, "n channels height width"], *, batch_size: int = 64
) -> dict[str, Float[Tensor, "fan_in fan_in"]]:
    """Return ``sum x x^T / n`` of the inputs x of every linear layer, by module name.

    The sum is over tokens (positions) and images, divided by the number of images; x is what multiplies the weight,
    without a constant for the bias (the paper's form). Convolutions with groups = 1 and zero padding count as linear
    layers of their unfolded patches, in the order of ``weight.flatten(1)``; others are left out. Of layers between
    regular fields x is what the free weight multiplies, which is the one that is stored. Sums are float64.
    The model runs in evaluation mode on its own device and is left as it was. Memory: one d x d matrix per layer with
    d inputs, float64.

    Args:
        model: Any model; layers that it does not call are left out.
        images: Ready for the model (normalised), on any device.
        batch_size: Images per forward pass; the result does not depend on it beyond rounding.

    Raises:
        DataError: If there is no image.
    """
    if not len(images):
        raise DataError("input_grams: got no image, expected at least one. Give the site a training split.")
    sums: dict[str, Tensor] = {}
    handles = [
        _listen(name, module, sums)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and _is_plain(module)
    ]
    was_training = {module: module.training for module in model.modules()}
    weight = next(model.parameters())
    model.eval()
    try:
        with torch.no_grad():
            for batch in images.split(batch_size):
                model(batch.to(weight))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in was_training.items():
            module.training = training
    return {name: (total / len(images)).cpu() for name, total in sums.items()}


def _is_plain(module: nn.Linear | nn.Conv2d) -> bool:
    """Whether the module multiplies its input by its own weight and does nothing else."""
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    zero_padded = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module).forward is nn.Conv2d.forward and module.groups == 1 and zero_padded


def _listen(name: str, module: nn.Linear | nn.Conv2d, sums: dict[str, Tensor]) -> RemovableHandle:
    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for part in _rows(module, inputs[0]).split(_ROWS):
            wide = (module.free_inputs(part) if isinstance(module, FreeKernel | Readout) else part).double()
            gram = wide.T @ wide
            sums[name] = sums[name] + gram if name in sums else gram

    return module.register_forward_pre_hook(add)


def _rows(module: nn.Linear | nn.Conv2d, inputs: Tensor) -> Float[Tensor, "rows fan_in"]:
    if isinstance(module, nn.Linear):
        return inputs.flatten(0, -2)
    padding = (0, 0) if isinstance(module.padding, str) else module.padding
    patches = functional.unfold(
        inputs, module.kernel_size, dilation=module.dilation, padding=padding, stride=module.stride
    )
    return patches.mT.flatten(0, 1)
