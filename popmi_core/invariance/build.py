"""One rival from its name and what it is built from, checked before anyone trains it."""

from __future__ import annotations

from typing import get_args

import torch
from torch import nn

from popmi_core.errors import ConfigError, ModelError
from popmi_core.invariance.catalogue import method
from popmi_core.invariance.method import MethodContext, Train, phases_of


def build_method(name: str, context: MethodContext) -> nn.Module:
    """Return the method ``name`` in evaluation mode: normalised images [n, c, side, side] -> logits [n, classes].

    torch's global generator of the CPU is seeded for ``context.backbone``, so that the same context gives the same
    weights, and is left as it was; those of accelerators are not touched.

    Raises:
        ConfigError: If there is no such method, or the context makes no sense.
        ModelError: If the method refuses the backbone or the group, or the model does not give finite logits of two
            images.
    """
    entry = method(name)
    _check(context)
    with torch.random.fork_rng(devices=[]):
        # Of the CPU alone: torch.manual_seed would reseed accelerators, whose state nobody puts back.
        torch.default_generator.manual_seed(context.seed)
        model = entry.build(context).eval()
    phases_of(model)  # refuses what it could not train
    _probe(name, model, context)
    return model


def _check(context: MethodContext) -> None:
    for field in ("image_size", "in_chans", "num_classes"):
        if getattr(context, field) < 1:
            raise ConfigError(f"{field} is {getattr(context, field)}, expected at least 1. Check the data set.")
    if context.train not in get_args(Train):
        raise ConfigError(f"train is {context.train!r}, expected one of {', '.join(get_args(Train))}.")


def _probe(name: str, model: nn.Module, context: MethodContext) -> None:
    like = next(model.parameters())
    size = (2, context.in_chans, context.image_size, context.image_size)
    images = torch.randn(size, generator=torch.Generator().manual_seed(context.seed)).to(like)
    try:
        with torch.no_grad():
            logits = model(images)
    # AttributeError: a backbone without timm's forward_features or forward_head.
    except (RuntimeError, ValueError, AssertionError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{name} does not run on {context.in_chans}x{context.image_size}x{context.image_size} images: {error}. "
            "Check the image size and channels, and that the backbone is a timm classifier."
        ) from error
    expected = (2, context.num_classes)
    if tuple(logits.shape) != expected:
        raise ModelError(
            f"{name} gives logits of shape {tuple(logits.shape)}, expected {expected}. "
            "Build the backbone with as many classes as the context says."
        )
    if not torch.isfinite(logits).all():
        raise ModelError(f"{name} gives logits that are NaN or infinite on noise. Check the backbone's weights.")
