"""Two models that have nothing in common are matched in every family, and the moved one computes what it did."""

from itertools import pairwise

import pytest
import timm
import torch

from popmi_core.matching import Matcher, describe_model
from popmi_core.matching.check import perturbed

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 1, 1), "num_heads": (1, 2, 2)}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit with one head": ("vit_tiny_patch16_224", VIT | {"num_heads": 1}),
    "vit with LayerScale": ("vit_tiny_patch16_224", VIT | {"init_values": 0.1}),
    "vit without qkv bias": ("vit_tiny_patch16_224", VIT | {"qkv_bias": False}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swinv2": ("swinv2_tiny_window8_256", SWIN),
    "convnext": ("convnext_atto", CONVNEXT),
    "convnextv2": ("convnextv2_atto", CONVNEXT),
    "resnet basic": ("resnet18", {"channels": (8, 16, 24, 32)}),
    "resnet bottleneck": ("resnet26", {"channels": (4, 8, 8, 8)}),
    "resnet with GroupNorm": ("resnet50_gn", {"layers": (1, 1, 1, 1), "channels": (32, 32, 32, 32)}),
    "mobilenet": ("mobilenetv3_small_050", {}),
}


def drawn(name, settings, seed):
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=5, **settings).double().eval()
    source = torch.Generator().manual_seed(seed)
    return model, {key: perturbed(key, tensor, source) for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("only", [False, True], ids=["all moves", "permutations only"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_moved_model_computes_what_it_did_and_comes_closer(family, only):
    name, settings = FAMILIES[family]
    (model, reference), (_, candidate) = (drawn(name, settings, seed) for seed in (0, 1))
    kept = {key: tensor.clone() for key, tensor in candidate.items()}
    # Tensors that lie column by column, as slices and transposes leave them.
    candidate = {key: t.T.contiguous().T if t.ndim == 2 else t for key, t in candidate.items()}
    symmetry = describe_model(model, image_size=settings.get("img_size", 64))
    symmetry = symmetry.permutations_only() if only else symmetry

    found = Matcher(reference, symmetry, sweeps=3).match(candidate)

    side = settings.get("img_size", 64)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before, after = (_outputs(model, state, images) for state in (kept, found.state))
    # The demand on every family: 1e-10 relative in float64.
    assert (before - after).norm() <= 1e-10 * before.norm()
    assert not all(found.identity.values())
    assert max(found.gains.values()) > 0.02
    assert all(later <= sooner * (1 + 1e-12) for sooner, later in pairwise(found.distances))
    assert all(torch.equal(candidate[key], tensor) for key, tensor in kept.items())
    assert all(tensor.is_contiguous() for tensor in found.state.values())


def _outputs(model, state, images):
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        return model(images)
