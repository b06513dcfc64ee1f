"""DP-SGD on a model with regular fields: gradients are those of single images, and noise leaves the symmetry."""

import timm
import torch
from torch import nn

from client.dpsgd import NoisyStep, image_gradients, secret_generator
from client.objectives import Plain
from client.privacy import Charge
from popmi_core.adapters import Prea, attach
from popmi_core.adapters.prea import detach
from popmi_core.equivariance.certificate import certify_algebra
from popmi_core.groups import point_group

TINY_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}


def regular() -> Prea:
    torch.manual_seed(0)
    model = attach(timm.create_model("vit_tiny_patch16_224", **TINY_VIT), group="D4", fields="regular").double()
    with torch.no_grad():
        for values in model.parameters():
            values.add_(0.1 * torch.randn_like(values))
    return model.eval()


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 16, 16, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 3, (count,), generator=generator)


def test_gradients_of_free_numbers_are_those_of_every_image_alone() -> None:
    model, (images, target) = regular(), batch(4)
    named = dict(model.named_parameters())

    per_image, losses = image_gradients(model, Plain(), named, images, target)

    for row, (image, label) in enumerate(zip(images, target, strict=True)):
        loss = nn.functional.cross_entropy(model(image[None]), label[None])
        alone = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        # The same sums of float64 numbers in another order.
        torch.testing.assert_close(losses[row], loss, rtol=1e-10, atol=1e-12)
        for name, gradient in alone.items():
            torch.testing.assert_close(per_image[name][row], gradient, rtol=1e-8, atol=1e-12, msg=name)


def test_a_noisy_step_moves_every_number_and_leaves_the_model_proved() -> None:
    model, (images, target) = regular(), batch(8)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    named = dict(model.named_parameters())
    charge = Charge(noise_multiplier=1.0, sample_rate=0.5, max_grad_norm=1.0, steps=1, epsilon=1.0)
    step = NoisyStep(
        model, Plain(), torch.optim.SGD(named.values(), lr=0.5), named, charge,
        expected_batch_size=8, generator=secret_generator(),
    )  # fmt: skip

    step(images, target)

    assert all(not torch.equal(values, before[name]) for name, values in model.state_dict().items())
    found = certify_algebra(model, 16, point_group("D4"))
    assert found.verdict == "proved", found.why
    # Written out as plain timm it is the same function.
    with torch.no_grad():
        assert (detach(model)(images) - model(images)).abs().max() < 1e-10
