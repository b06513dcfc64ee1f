"""LEE, the local equivariance error (Gruver et al. 2023, arXiv:2210.02984), end to end.

How fast a classifier's logits change as its input begins to move: ``d/dt f(T_t x)`` at t = 0, one forward-mode
derivative a direction. The image's own derivative is that of a cubic kernel in pixel units (``generators``); the
published code differentiates a bilinear grid_sample on a normalised grid, which rounds into the wrong cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64
from timm.layers.config import set_fused_attn, use_fused_attn
from torch import Tensor, nn

from popmi_core.equivariance.generators import GENERATORS, Flow, flows_of, move, move_slope, speed
from popmi_core.errors import ModelError
from popmi_core.metrics.resampling import RESAMPLES, Interval, interval, resample, weighted_mean

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Derivatives:
    """How the answers to some images change as the images begin to move.

    Attributes:
        flows: The directions.
        image_size: Pixels per side.
        logits: At rest, ``float64 [n, classes]``.
        moved: Derivative of the logits, per unit of each flow, ``float64 [flows, n, classes]``.
    """

    flows: tuple[Flow, ...]
    image_size: int
    logits: Float64[Numbers, "n classes"]
    moved: Float64[Numbers, "flows n classes"]


@dataclass(frozen=True)
class Lee:
    """LEE of one generator over images, classes and its directions.

    Attributes:
        logits: Mean of the squared derivative of logits, per unit squared (the paper's definition).
        softmax: The same of probabilities.
        softmax_abs: Mean of the absolute derivative of probabilities, per unit: what the published code reports.
        relative: Root mean square of the derivative of logits, over their spread between images, per pixel by which
            the image's content moves (root mean square over pixels): comparable between generators and models.
    """

    logits: Interval
    softmax: Interval
    softmax_abs: Interval
    relative: Interval

    def to_json(self) -> dict[str, dict[str, float]]:
        """The figures by name."""
        return {name: getattr(self, name).to_json() for name in ("logits", "softmax", "softmax_abs", "relative")}


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Run attention step by step, for which forward-mode derivatives exist; afterwards all is as it was.

    timm's switch is read when a layer is made, so layers that exist are switched one by one.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(getattr(module, "fused_attn", None), bool)]
    before = [module.fused_attn for module in layers]
    level = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(False)
    try:
        for module in layers:
            module.fused_attn = False
        yield
    finally:
        set_fused_attn(level[0], experimental=level[1])
        for module, value in zip(layers, before, strict=True):
            module.fused_attn = value


def derivative(
    model: nn.Module, images: Float[Tensor, "n c side side"], flow: Flow, t: float = 0.0
) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n classes"]]:
    """Return the logits of the images moved by t, and their derivative in t (one forward-mode derivative).

    Integrated over t this is the finite change ``f(T_b x) - f(T_a x)``. Call it inside ``unfused(model)``.
    """
    with torch.no_grad():
        found = torch.func.jvp(model, (move(images, flow, t),), (move_slope(images, flow, t),))
    return found[0], found[1]


def lie_derivatives(
    model: nn.Module,
    images: Float[Tensor, "n c side side"],
    *,
    generators: tuple[str, ...] = GENERATORS,
    batch_size: int = 32,
) -> Derivatives:
    """Return the derivatives of the logits along every direction of the generators.

    The model is run as it stands: put it in evaluation mode first. Float64 is worth its cost where a model is nearly
    equivariant.

    Args:
        model: Normalised images -> logits.
        images: Normalised, square, at the model's size.
        generators: Names of ``GENERATORS``.
        batch_size: Images at a time.

    Raises:
        ModelError: If the images are not square, there is none, they lie on another device than the model, a
            generator is unknown, the model does not run on them, or one of its operations has no forward-mode
            derivative.
    """
    flows = flows_of(generators)
    if images.ndim != 4 or images.shape[-1] != images.shape[-2] or not len(images):
        raise ModelError(
            f"images have shape {tuple(images.shape)}, expected at least one of [n, channels, side, side]. "
            "Cut them square first."
        )
    _require_one_device(model, images)
    logits, moved = [], []
    with unfused(model):
        for part in images.split(batch_size):
            pairs = [_forward(model, part, flow) for flow in flows]
            logits.append(pairs[0][0].double().cpu())
            moved.append(torch.stack([pair[1] for pair in pairs]).double().cpu())
    return Derivatives(flows, images.shape[-1], torch.cat(logits).numpy(), torch.cat(moved, 1).numpy())


def lee_figures(found: Derivatives, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Lee]:
    """Return LEE by generator, with intervals bootstrapped over images.

    Raises:
        ModelError: If a derivative or a logit is not finite.
    """
    if not (np.isfinite(found.moved).all() and np.isfinite(found.logits).all()):
        raise ModelError(
            "the model's logits or their derivatives are NaN or infinite; LEE is undefined. Train it anew."
        )
    order = np.lexsort([*found.logits.T, *found.moved.transpose(0, 2, 1).reshape(-1, len(found.logits))])
    logits, moved = found.logits[order], found.moved[:, order]
    weights = resample(len(logits), resamples=resamples, seed=seed)
    names = tuple(dict.fromkeys(flow.generator for flow in found.flows))
    return {name: _lee(name, found, logits, moved, weights) for name in names}


def _require_one_device(model: nn.Module, images: Tensor) -> None:
    lies = next((parameter.device for parameter in model.parameters()), images.device)
    if lies != images.device:
        raise ModelError(
            f"{type(model).__name__} lies on {lies}, its images on {images.device}, expected one device. "
            "Move the images with images.to(device)."
        )


def _forward(model: nn.Module, images: Tensor, flow: Flow) -> tuple[Tensor, Tensor]:
    try:
        return derivative(model, images, flow)
    except torch.OutOfMemoryError:
        raise  # a smaller batch_size helps, another model does not
    except (NotImplementedError, RuntimeError) as error:
        _require_it_runs(model, images)
        raise ModelError(
            f"{type(model).__name__}: no forward-mode derivative ({_first_line(error)}). LEE needs a model of "
            "differentiable operations; see docs/metrics.md."
        ) from error


def _require_it_runs(model: nn.Module, images: Tensor) -> None:
    """Tell a model that does not run on the images from one that only cannot be derived."""
    try:
        with torch.no_grad():
            model(images)
    except (NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"{type(model).__name__} does not run on {images.dtype} images {tuple(images.shape)} on {images.device} "
            f"({_first_line(error)}). Check size, channels, precision and device of the images."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _lee(name: str, found: Derivatives, logits: Numbers, moved: Numbers, weights: Numbers) -> Lee:
    chosen = [index for index, flow in enumerate(found.flows) if flow.generator == name]
    turned = moved[chosen]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = powers / powers.sum(axis=1, keepdims=True)
    soft = scores * (turned - (scores * turned).sum(axis=2, keepdims=True))
    pixels = np.array([speed(found.flows[index], found.image_size) for index in chosen])
    centred = (logits - logits.mean(axis=0)).T
    variance = weighted_mean(np.square(centred), weights) - np.square(weighted_mean(centred, weights))
    per_pixel = weighted_mean(np.square(turned / pixels[:, None, None]).mean(axis=(0, 2)), weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.sqrt(per_pixel / variance.clip(min=0).mean(axis=0))
    return Lee(
        interval(weighted_mean(np.square(turned).mean(axis=(0, 2)), weights)),
        interval(weighted_mean(np.square(soft).mean(axis=(0, 2)), weights)),
        interval(weighted_mean(np.abs(soft).mean(axis=(0, 2)), weights)),
        interval(relative),
    )
