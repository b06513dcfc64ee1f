"""A description tests itself: a random group element must not change what the model computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.errors import ModelError
from popmi_core.matching.canonical import canonicalise
from popmi_core.matching.elements import apply, random_element
from popmi_core.matching.symmetry import ViTSymmetry, describe

# Rounding of two float64 passes through different but equal matrices; a wrong group is off by about one.
_TOLERANCE = 1e-9


def describe_model(model: nn.Module) -> ViTSymmetry | None:
    """Read the symmetry group of a model (a timm ViT, or one wrapped under any attribute) and test it.

    The group is tested on the model; where it fails it is cut down (the stream first, then single layers).

    Returns:
        None where the architecture is not known yet, cannot be tested, or nothing of the group stands the test.
    """
    found = _find_vit(model)
    if found is None or _input_shape(model) is None:
        return None
    symmetry = describe(model.state_dict(), num_heads=found[0], pool=found[1])
    if symmetry is None or verify_symmetry(model, symmetry):
        return symmetry
    symmetry = symmetry.without_stream("a random rotation changed the outputs")
    return symmetry if verify_symmetry(model, symmetry) else _keep_what_holds(model, symmetry)


def verify_symmetry(model: nn.Module, symmetry: ViTSymmetry, generator: torch.Generator | None = None) -> bool:
    """Fold and move a perturbed float64 copy by a random group element; True if outputs agree to 1e-9 relative.

    The copy's weights are perturbed first, because a fresh model hides mistakes (gammas 1, biases 0, LayerScale
    1e-5). The model itself is not changed. Cost: two forward passes of two images.

    Raises:
        ModelError: If the model does not say which image size it takes.
    """
    shape = _input_shape(model)
    if shape is None:
        raise ModelError(
            f"verify_symmetry: {type(model).__name__} has no patch embedding with an img_size, expected a timm ViT. "
            "Fuse it with rule 'average'."
        )
    source = torch.Generator().manual_seed(0) if generator is None else generator
    copied = copy.deepcopy(model).to("cpu", torch.float64).eval()
    state = {name: _perturb(tensor, source) for name, tensor in copied.state_dict().items()}
    moved = apply(canonicalise(state, symmetry), symmetry, random_element(symmetry, source))
    images = torch.randn(shape, generator=source, dtype=torch.float64)
    before, after = _outputs(copied, state, images), _outputs(copied, moved, images)
    return bool((before - after).norm() <= _TOLERANCE * before.norm())


def _outputs(model: nn.Module, state: Mapping[str, Tensor], images: Float[Tensor, "b c h w"]) -> Tensor:
    model.load_state_dict(dict(state), strict=True)
    with torch.inference_mode():
        return torch.as_tensor(model(images))


def _perturb(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return tensor + 0.1 * noise


def _keep_what_holds(model: nn.Module, symmetry: ViTSymmetry) -> ViTSymmetry | None:
    """Test every layer by itself and keep those that stand."""
    none = replace(symmetry, heads={}, hidden={})
    heads = {i for i, s in symmetry.heads.items() if not verify_symmetry(model, replace(none, heads={i: s}))}
    hidden = {i for i, s in symmetry.hidden.items() if not verify_symmetry(model, replace(none, hidden={i: s}))}
    smaller = symmetry.without_layers(heads=heads, hidden=hidden, reason="a random move changed the outputs")
    if not (smaller.heads or smaller.hidden):
        return None
    return smaller if verify_symmetry(model, smaller) else None


def _find_vit(model: nn.Module) -> tuple[int, str] | None:
    """Return heads and pooling of the one module that has ViT blocks; None if there is no such, or heads differ."""
    hosts = [(m, blocks) for m in model.modules() if isinstance(blocks := getattr(m, "blocks", None), nn.Sequential)]
    if len(hosts) != 1:
        return None
    host, blocks = hosts[0]
    attentions = [getattr(block, "attn", None) for block in blocks.children()]
    heads = {getattr(attention, "num_heads", None) for attention in attentions}
    count = heads.pop() if len(heads) == 1 else None
    if not isinstance(count, int):
        return None
    return count, str(getattr(host, "global_pool", "token"))


def _input_shape(model: nn.Module) -> tuple[int, int, int, int] | None:
    for module in model.modules():
        size, channels = getattr(module, "img_size", None), getattr(getattr(module, "proj", None), "in_channels", None)
        if isinstance(size, tuple) and len(size) == 2:
            return (2, channels or 3, int(size[0]), int(size[1]))
    return None
