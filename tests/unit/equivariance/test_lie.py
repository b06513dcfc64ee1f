"""LEE end to end: the gates a measure of local equivariance has to pass."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from timm.layers.config import use_fused_attn
from torch import nn
from torch.nn import functional

import popmi_core.models  # noqa: F401  (registers the presets)
from popmi_core.adapters import attach
from popmi_core.equivariance.generators import FLOWS, GENERATORS, flows_of, move, move_slope, speed, velocity
from popmi_core.equivariance.lie import derivative, lee_figures, lie_derivatives, unfused
from popmi_core.equivariance.lie_accumulator import LieAccumulator
from popmi_core.errors import ModelError
from popmi_core.groups import Element, act

ROTATION = next(flow for flow in FLOWS if flow.generator == "rotation")


def _images(side: int = 32, count: int = 3) -> torch.Tensor:
    noise = torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(noise, size=(side, side), mode="bicubic")


def _vit(classes: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("popmi_vit_micro", num_classes=classes).double().eval()


@pytest.mark.parametrize("side", [16, 17])
@pytest.mark.parametrize("flow", FLOWS)
def test_nothing_moves_at_rest_to_the_last_bit(flow, side):
    images = _images(side)
    assert torch.equal(move(images, flow, 0.0), images)


def test_there_are_five_generators_and_translation_has_two_directions():
    assert GENERATORS == ("translation", "rotation", "scale", "shear", "hyperbolic")
    assert [flow.generator for flow in flows_of(("translation",))] == ["translation"] * 2


def test_the_hyperbolic_flow_squeezes_both_axes_and_keeps_areas():
    flow = FLOWS[-1]
    exp = torch.linalg.matrix_exp(0.3 * torch.tensor(flow.matrix, dtype=torch.float64))
    assert math.isclose(float(torch.linalg.det(exp)), 1.0, rel_tol=1e-12)
    assert (exp.diagonal() > 0).all()


@pytest.mark.parametrize("flow", FLOWS)
def test_a_gaussian_moves_as_calculus_says(flow):
    side, width = 41, 5.0
    place = torch.arange(side, dtype=torch.float64) - 20
    row, col = torch.meshgrid(place, place, indexing="ij")
    image = torch.exp(-((row - 2) ** 2 + (col + 3) ** 2) / (2 * width**2))
    speeds = velocity(flow, side)
    exact = ((row - 2) * speeds[0] + (col + 3) * speeds[1]) / width**2 * image
    slope = move_slope(image[None, None], flow)[0, 0]
    # A central difference is off by a sixth of the third derivative: 1.4 / (6 width^3) per pixel of speed here; the
    # edge, where the image is reflected, is left out.
    allowed = 1.4 / (6 * width**3) * (speeds[0].abs() + speeds[1].abs()) + 1e-4
    inner = slice(2, -2)
    assert ((slope - exact).abs() <= allowed)[inner, inner].all()


@pytest.mark.parametrize("flow", FLOWS)
def test_the_slope_at_any_time_is_what_a_small_step_changes(flow):
    images, step = _images(16), 1e-6
    difference = (move(images, flow, 0.21 + step) - move(images, flow, 0.21 - step)) / (2 * step)
    # The kernel's second derivative jumps where a pixel changes its cell: first order in the step there.
    assert torch.allclose(move_slope(images, flow, 0.21), difference, atol=1e-3)


def test_rotation_flows_counter_clockwise_as_rot90_does():
    images = _images(16)
    assert torch.allclose(move(images, ROTATION, math.pi / 2), torch.rot90(images, 1, (-2, -1)), atol=1e-12)


@pytest.mark.parametrize("element", [Element(1, False), Element(2, True), Element(3, True)])
@pytest.mark.parametrize("flow", FLOWS)
def test_a_turned_copy_flows_as_the_image_does_before_it_is_turned(flow, element):
    images = _images(15)
    seen = move_slope(act(element, images), flow.seen_from(element))
    assert torch.allclose(seen, act(element, move_slope(images, flow)), atol=1e-12)


def test_speed_is_in_pixels():
    assert speed(FLOWS[0], 9) == 1.0
    # Root mean square radius of a 3x3 grid: four corners at 2, four edges at 1, a centre, over nine.
    assert math.isclose(speed(ROTATION, 3), math.sqrt(12 / 9))


def test_the_derivative_of_a_model_is_what_a_small_step_changes():
    model, images, step = _vit(), _images(), 1e-5
    with unfused(model), torch.no_grad():
        ahead, behind = (model(move(images, ROTATION, s)) for s in (step, -step))
        _, moved = derivative(model, images, ROTATION)
    # The step is taken on both sides of rest, where the kernel's second derivative jumps: first order in the step.
    assert torch.allclose(moved, (ahead - behind) / (2 * step), atol=1e-4)


def test_the_integral_over_angles_is_the_finite_change():
    model, images = _vit(), _images(count=1)
    nodes, weights = np.polynomial.legendre.leggauss(16)
    ends = np.linspace(0, 0.3, 5)
    with unfused(model), torch.no_grad():
        total = sum(
            (b - a) / 2 * w * derivative(model, images, ROTATION, (a + b) / 2 + (b - a) / 2 * x)[1]
            for a, b in pairwise(ends)
            for x, w in zip(nodes, weights, strict=True)
        )
        change = model(move(images, ROTATION, 0.3)) - model(images)
    # The kernel has one continuous derivative: the rule converges as the square of the spacing.
    assert float(change.abs().max()) > 1e-2
    assert torch.allclose(total, change, atol=2e-5)


@pytest.mark.parametrize("block", [0, 1])
def test_a_d4_model_has_not_changed_when_a_quarter_turn_is_done(block):
    model, images = attach(_vit(), group="D4", merge_block=block).double().eval(), _images()
    with torch.no_grad():
        quarter = model(move(images, ROTATION, math.pi / 2)) - model(images)
        eighth = model(move(images, ROTATION, math.pi / 4)) - model(images)
    assert float(quarter.abs().max()) < 1e-12
    assert float(eighth.abs().max()) > 1e-4


def test_fused_attention_is_off_inside_and_back_afterwards():
    model = _vit()
    model.blocks[0].attn.fused_attn = False
    before = [block.attn.fused_attn for block in model.blocks]
    with unfused(model):
        assert not any(block.attn.fused_attn for block in model.blocks)
        assert not use_fused_attn()
    assert [block.attn.fused_attn for block in model.blocks] == before == [False, True]
    assert use_fused_attn()


def test_fused_attention_is_back_after_an_error():
    model = _vit()
    with pytest.raises(RuntimeError, match="on purpose"), unfused(model):
        raise RuntimeError("on purpose")
    assert use_fused_attn()
    assert model.blocks[0].attn.fused_attn


def test_figures_of_a_linear_model_are_what_they_say():
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            draw = torch.randn(2, 3 * 8 * 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            self.weight = nn.Parameter(draw)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1) @ self.weight.T

    model, images = Linear(), _images(8, 5)
    found = lie_derivatives(model, images, generators=("rotation",), batch_size=2)
    lee = lee_figures(found, resamples=20)["rotation"]
    with torch.no_grad():
        moved, logits = model(move_slope(images, ROTATION)), model(images)
    scores = torch.softmax(logits, dim=1)
    soft = scores * (moved - (scores * moved).sum(dim=1, keepdim=True))
    assert math.isclose(lee.logits.value, float(moved.square().mean()), rel_tol=1e-12)
    assert math.isclose(lee.softmax_abs.value, float(soft.abs().mean()), rel_tol=1e-12)
    spread = logits.var(dim=0, correction=0).mean().sqrt()
    relative = float(moved.square().mean().sqrt() / spread) / speed(ROTATION, 8)
    assert math.isclose(lee.relative.value, relative, rel_tol=1e-12)
    assert lee.relative.lower <= lee.relative.value <= lee.relative.upper


def test_batches_in_any_order_give_the_figures_of_all_images():
    model, images = _vit(), _images(count=6)
    whole = lee_figures(lie_derivatives(model, images))
    first, second = LieAccumulator(), LieAccumulator()
    first.update(model, images[4:])
    first.update(model, images[:1])
    second.update(model, images[1:4])
    first.merge(second)
    found = first.compute()
    for name, lee in whole.items():
        # Matrix products of other batch sizes round differently.
        assert math.isclose(found[name].logits.value, lee.logits.value, rel_tol=1e-9)
        assert math.isclose(found[name].relative.upper, lee.relative.upper, rel_tol=1e-9)


def test_an_accumulator_refuses_nothing_and_other_generators():
    accumulator = LieAccumulator()
    with pytest.raises(ModelError, match="at least one batch"):
        accumulator.compute()
    with pytest.raises(ModelError, match="cannot merge LEE"):
        accumulator.merge(LieAccumulator(("rotation",)))
    accumulator.update(_vit(), _images(count=1))
    other = LieAccumulator()
    other.update(_vit(classes=4), _images(count=1))
    with pytest.raises(ModelError, match="images of 32 pixels and 4 classes after images of 32 pixels and 3 classes"):
        accumulator.merge(other)
    with pytest.raises(ModelError, match="expected one kind"):
        accumulator.update(_vit(classes=4), _images(count=1))
    assert accumulator.derivatives().logits.shape == (1, 3)
    accumulator.merge(LieAccumulator())
    accumulator.reset()
    with pytest.raises(ModelError, match="at least one batch"):
        accumulator.derivatives()


def test_what_cannot_be_measured_is_refused():
    model = _vit()
    with pytest.raises(ModelError, match="generators"):
        lie_derivatives(model, _images(), generators=("swirl",))
    with pytest.raises(ModelError, match="expected at least one of"):
        lie_derivatives(model, torch.zeros(0, 3, 32, 32))
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="LEE is undefined"):
        lee_figures(lie_derivatives(model, _images(), generators=("scale",)))


class Halves(torch.autograd.Function):
    """Written by hand, with a backward derivative only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(images: torch.Tensor) -> torch.Tensor:
        return images / 2

    @staticmethod
    def setup_context(context: object, inputs: object, output: object) -> None:
        pass

    @staticmethod
    def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient / 2


class Halved(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return Halves.apply(images).flatten(1)


def test_a_model_without_a_derivative_is_named():
    with pytest.raises(ModelError, match="Halved: no forward-mode derivative"):
        lie_derivatives(Halved(), _images())


def test_a_model_that_does_not_run_is_not_said_to_lack_a_derivative():
    with pytest.raises(ModelError, match=r"VisionTransformer does not run on torch.float32 images \(3, 3, 32, 32\) on"):
        lie_derivatives(_vit(), _images().float())


@pytest.mark.parametrize("flow", FLOWS)
def test_images_move_where_they_lie(flow):
    # No accelerator is needed for that: tensors on "meta" have a device and no values.
    images = _images(8).to("meta")
    assert move(images, flow, 0.1).device == move_slope(images, flow).device == images.device
    logits, moved = derivative(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).double().to("meta"), images, flow)
    assert logits.device == moved.device == images.device
    assert logits.shape == moved.shape == (3, 2)


def test_images_on_another_device_than_the_model_are_refused():
    with pytest.raises(ModelError, match="VisionTransformer lies on cpu, its images on meta"):
        lie_derivatives(_vit(), _images().to("meta"))


def test_too_little_memory_is_not_said_to_be_a_missing_derivative():
    class Large(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        lie_derivatives(Large(), _images())
