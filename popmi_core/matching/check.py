"""A description tests itself: a random group element must not change what the model computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.errors import ModelError
from popmi_core.matching.builder import next_step
from popmi_core.matching.canonical import canonicalise
from popmi_core.matching.elements import apply, random_element
from popmi_core.matching.families import describe
from popmi_core.matching.symmetry import Symmetry

# Rounding of two float64 passes through different but equal matrices; a wrong group is off by about one.
_TOLERANCE = 1e-10


def describe_model(model: nn.Module, *, image_size: int | None = None) -> Symmetry:
    """Read the symmetry group of a timm model (with PREA or low-rank adapters, if any) and test it.

    A model with a method ``describe_symmetry(self, build)`` (build: a ``Builder``) is described by that instead, and
    tested in the same way.

    Args:
        model: A classifier of images; it is not changed.
        image_size: Pixels per side for the test; None takes what the model says.

    Raises:
        ModelError: If a module is not known, or the description does not stand the test (both name what fails).
    """
    symmetry = describe(model)
    if not verify_symmetry(model, symmetry, image_size=image_size):
        wrong = [
            name
            for name in symmetry.spaces
            if not verify_symmetry(model, symmetry.without(set(symmetry.spaces) - {name}), image_size=image_size)
        ]
        raise ModelError(
            f"{type(model).__name__}: a random move of {', '.join(wrong) or 'all spaces together'} changed the "
            f"outputs, so the description '{symmetry.family}' does not fit it. {next_step(symmetry.family)}."
        )
    return symmetry


def verify_symmetry(
    model: nn.Module,
    symmetry: Symmetry,
    generator: torch.Generator | None = None,
    *,
    image_size: int | None = None,
) -> bool:
    """Fold and move a perturbed float64 copy by a random group element; True if outputs agree to 1e-10 relative.

    The copy's weights are perturbed first, because a fresh model hides mistakes (gammas 1, biases 0, LayerScale
    1e-5). The model itself is not changed. Cost: two forward passes of two images.

    Raises:
        ModelError: If the model does not say which image size it takes.
    """
    source = torch.Generator().manual_seed(0) if generator is None else generator
    copied = copy.deepcopy(model).to("cpu", torch.float64).eval()
    state = {name: perturbed(name, tensor, source) for name, tensor in copied.state_dict().items()}
    moved = apply(canonicalise(state, symmetry), symmetry, random_element(symmetry, source))
    images = torch.randn(2, *input_shape(model, image_size), generator=source, dtype=torch.float64)
    before, after = _outputs(copied, state, images), _outputs(copied, moved, images)
    return bool((before - after).norm() <= _TOLERANCE * before.norm())


def perturbed(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return the tensor with noise of a tenth; variances and gammas are kept away from zero."""
    if not tensor.is_floating_point():
        return tensor.clone()
    noise = 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    # A running variance must stay positive: it is scaled, not shifted.
    return tensor * noise.exp() if name.endswith("running_var") else tensor + noise


def input_shape(model: nn.Module, image_size: int | None = None) -> tuple[int, int, int]:
    """Return channels, height and width of the images a model takes.

    Raises:
        ModelError: If neither the caller nor the model says.
    """
    told = (getattr(module, "in_chans", None) for module in model.modules())
    said = [channels for channels in told if isinstance(channels, int)]
    channels, side = said[0] if said else 3, image_size
    for module in model.modules():
        size, proj = getattr(module, "img_size", None), getattr(module, "proj", None)
        if isinstance(size, tuple) and len(size) == 2:
            channels = int(getattr(proj, "in_channels", channels))
            return (channels, int(size[0]), int(size[1])) if side is None else (channels, side, side)
    if side is None:
        cfg = getattr(model, "pretrained_cfg", None) or {}
        size = cfg.get("input_size") if isinstance(cfg, Mapping) else getattr(cfg, "input_size", None)
        if size is None:
            raise ModelError(f"{type(model).__name__} does not say which image size it takes. Pass image_size.")
        return (channels if said else int(size[0]), int(size[1]), int(size[2]))
    return channels, side, side


def _outputs(model: nn.Module, state: Mapping[str, Tensor], images: Float[Tensor, "b c h w"]) -> Tensor:
    model.load_state_dict(dict(state), strict=True)
    with torch.inference_mode():
        return torch.as_tensor(model(images))
