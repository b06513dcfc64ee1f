"""One model from its description: any timm backbone, its weights, PREA and low-rank adapters where switched on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

import popmi_core.invariance.registered  # registers the equivariant networks with timm
import popmi_core.models.presets  # noqa: F401  (registers the presets with timm)
from popmi_core.adapters import Prea, add_lora, attach, require_exact
from popmi_core.adapters.prea import add_low_rank
from popmi_core.adapters.soft import soften
from popmi_core.adapters.wishes import adapters_of
from popmi_core.checkpoints import load_state
from popmi_core.config import ModelConfig
from popmi_core.errors import ModelError
from popmi_core.models.weights import fetch_published, load_local

# Exactness follows from the architecture, not from the weights: once per process and description is enough.
_PROVEN: set[ModelConfig] = set()


def build_model(config: ModelConfig, num_classes: int, *, seed: int) -> nn.Module:
    """Return the model ``config`` describes, in evaluation mode: normalised images -> logits.

    Without adapters that is the plain timm model; with PREA it is ``Prea`` around it; low-rank adapters lie beside the
    layers they are on, and start at nothing.

    The same config and seed give bit-identical weights; the global generator is left as it was.

    Raises:
        ModelError: If the backbone is unknown, does not take the image or patch size, cannot run at
            that size, the weights do not fit, PREA cannot make it exact, or it has no layer for low-rank adapters.
    """
    name = known_backbone(config.backbone)
    if num_classes < 1:
        raise ModelError(f"{name}: num_classes is {num_classes}, expected at least 1. Check the label list.")
    with _seeded(seed):
        model = _create(name, config, num_classes)
    path = _weights_file(name, config.weights)
    state = {} if path is None else load_state(path)[0]
    # A file is loaded when the model has the adapters that are in the file, and before it gets any other.
    inside = _adapters_in(state)
    if path is not None and inside == "none":
        load_local(model, state, source=path)
    _probe(model, name, config.image_size)
    if config.adapter.group != "none":
        model = _attach(model, name, config, seed)
    if path is not None and inside == "prea":
        load_local(model, state, source=path)
    _refuse_low_rank(model, config)
    if isinstance(model, Prea) and "lora" in adapters_of(config.adapter.adapters, config.adapter.fields):
        model = add_low_rank(model, rank=config.adapter.rank, train=config.train, seed=seed)
    if config.lora is not None:
        wanted = config.lora
        model = add_lora(model, wanted.targets, rank=wanted.rank, alpha=wanted.alpha, train=config.train, seed=seed)
    if path is not None and inside == "lora":
        load_local(model, state, source=path)
    return model.eval()


def _attach(model: nn.Module, name: str, config: ModelConfig, seed: int) -> nn.Module:
    wanted = config.adapter
    if wanted.group == "auto":
        raise ModelError("group 'auto' is no group yet: choose first (popmi simulate and popmi fit do), or name one.")
    known = config in _PROVEN
    # Low-rank adapters come later: a file may hold the model as it was before it got them.
    kinds = [kind for kind in adapters_of(wanted.adapters, wanted.fields) if kind != "lora"]
    adapted = attach(
        model,
        group=wanted.group,
        merge_block=wanted.merge_block,
        fields=wanted.fields,
        weights=wanted.weights,
        adapters="+".join(kinds) or "none",
        rank=wanted.rank,
        train=config.train,
        seed=seed,
        image_size=None if known else config.image_size,
        allow_approximate=wanted.allow_approximate,
    )
    if not known and not wanted.allow_approximate:
        require_exact(adapted.eval(), config.image_size, adapted.group, name=name)
    _PROVEN.add(config)
    if wanted.free_blocks:
        return soften(adapted, free_blocks=wanted.free_blocks, image_size=config.image_size)
    return adapted


def _refuse_low_rank(model: nn.Module, config: ModelConfig) -> None:
    if not isinstance(model, Prea) or model.fields != "regular":
        return
    named = "lora" in adapters_of(config.adapter.adapters, config.adapter.fields)
    if named or config.lora is not None:
        what = f"adapter.adapters = {config.adapter.adapters!r}" if named else "[model.lora]"
        raise ModelError(
            f"{what} with adapter.fields = 'regular': what a low-rank adapter adds does not commute with channels that "
            "turn. Leave it out, or take trivial fields."
        )


def _adapters_in(state: Mapping[str, Tensor]) -> Literal["none", "prea", "lora"]:
    """Return which adapter a file's model got last."""
    if any(".lora_A." in name for name in state):
        return "lora"
    # Without adapters, PREA at block 0 has no tensor of its own.
    return "prea" if any(name.startswith(("prea.", "backbone.")) for name in state) else "none"


def _weights_file(name: str, weights: str) -> Path | None:
    if weights == "random":
        return None
    return fetch_published(name) if weights == "pretrained" else Path(weights)


def known_backbone(backbone: str) -> str:
    """Return the name if timm knows it, with its pretrained tag where there is one.

    Raises:
        ModelError: If it does not; near names, or the tags there are, are listed.
    """
    if timm.is_model(backbone):
        _check_tag(backbone)
        return backbone
    near = get_close_matches(backbone, timm.list_models(), n=3)
    hint = f"Did you mean {', '.join(near)}?" if near else "timm.list_models() lists the names."
    raise ModelError(f"backbone {backbone!r} is not known to timm {timm.__version__}. {hint}")


def _check_tag(backbone: str) -> None:
    try:
        timm.get_pretrained_cfg(backbone)
    except RuntimeError as error:
        name, _, tag = backbone.partition(".")
        tags = [known.partition(".")[2] for known in timm.list_models(f"{name}.*", include_tags=True)]
        expected = f"one of {', '.join(tags)}, or none" if tags else "none"
        raise ModelError(
            f"backbone {name!r} has no weights called {tag!r} in timm {timm.__version__}, expected {expected}. "
            "Correct what stands behind the dot."
        ) from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # Only the CPU generator draws initial weights; CUDA is not touched, so fork no device.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _create(name: str, config: ModelConfig, num_classes: int) -> nn.Module:
    sizes: dict[str, Any] = {"img_size": config.image_size}
    if config.patch_size is not None:
        sizes["patch_size"] = config.patch_size
    try:
        return create_sized(name, num_classes, sizes)[0]
    except TypeError as error:
        if "unexpected keyword argument 'patch_size'" in str(error):
            raise ModelError(f"{name} does not accept patch_size ({config.patch_size}). Leave it out.") from error
        raise
    except (AssertionError, ValueError, ZeroDivisionError) as error:
        raise ModelError(_misfit(name, config, error)) from error


def create_sized(
    name: str, num_classes: int, sizes: Mapping[str, Any], **arguments: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Return timm's model without pretrained weights, and those of the sizes (img_size, patch_size) that it took.

    Convolutional backbones take any image size without being told; a patch size they cannot take, nor what timm
    refuses otherwise: its errors pass.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model: nn.Module = timm.create_model(name, num_classes=num_classes, **sizes, **arguments)
        return model, dict(sizes)
    except TypeError as error:
        if "unexpected keyword argument 'img_size'" not in str(error) or "img_size" not in sizes:
            raise
    return create_sized(name, num_classes, {k: v for k, v in sizes.items() if k != "img_size"}, **arguments)


def _misfit(name: str, config: ModelConfig, error: Exception) -> str:
    patch = "" if config.patch_size is None else f" with patch_size {config.patch_size}"
    return f"{name} cannot run on {config.image_size}x{config.image_size} images{patch}: {error}. Change the size."


def _probe(model: nn.Module, name: str, image_size: int) -> None:
    """Run one blank image, so that a size that does not fit is told now and not in the first round."""
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(
            f"{name} cannot run on {image_size}x{image_size} images: {error}. Change image_size or patch_size."
        ) from error
