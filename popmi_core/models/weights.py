"""Weights from a safetensors file: a local one, or the one timm publishes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from popmi_core.errors import ModelError

_LOG = logging.getLogger(__name__)


def load_local(model: nn.Module, state: Mapping[str, Tensor], *, source: Path) -> tuple[str, ...]:
    """Load ``state``, read from ``source``, and return the names of head tensors that kept their fresh start.

    A head of another number of classes is left as initialised (and logged); everything else must fit.
    Position tables and patch kernels of another image or patch size are resampled as timm does.

    Raises:
        ModelError: If tensors outside the head are missing, unknown or misshapen.
    """
    loaded = _adapted(model, state)
    own = model.state_dict()
    head = tuple(f"{prefix}." for prefix in _classifiers(model))
    fresh = tuple(
        sorted(
            name
            for name in own
            if name.startswith(head) and (name not in loaded or loaded[name].shape != own[name].shape)
        )
    )
    candidate = {name: tensor for name, tensor in loaded.items() if not name.startswith(head) or name in own}
    candidate = {name: tensor for name, tensor in candidate.items() if name not in fresh}
    _check(source, candidate, {name: tensor for name, tensor in own.items() if name not in fresh})
    model.load_state_dict(candidate, strict=False)
    if fresh:
        _LOG.info("%s: the head (%s) was re-initialised: other number of classes", source.name, ", ".join(fresh))
    return fresh


def fetch_published(name: str) -> Path:
    """Return the path of timm's published weights for ``name``, downloaded once into the hub's cache.

    Only ``model.safetensors`` is taken; timm itself would fall back to a pickle.

    Raises:
        ModelError: If nothing is published for ``name``, or the hub cannot be reached.
    """
    config = timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None
    if config is None or not config.hf_hub_id:
        raise ModelError(f"{name} has no published weights. Use weights = 'random' or a .safetensors file.")
    try:
        return Path(hf_hub_download(config.hf_hub_id, "model.safetensors"))
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise ModelError(
            f"{name}: published weights could not be fetched ({type(error).__name__}). Without a network, copy the "
            "model's .safetensors file here and set weights to its path, or use weights = 'random'."
        ) from error


def _check(path: Path, candidate: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    # Counters such as num_batches_tracked do not travel, so a POPMI file need not hold them.
    needed = {name for name, tensor in own.items() if tensor.is_floating_point()}
    problems = [f"{name!r} is missing" for name in sorted(needed - set(candidate))]
    problems += [f"{name!r} is unknown" for name in sorted(set(candidate) - set(own))]
    problems += [
        f"{name!r} has shape {tuple(candidate[name].shape)}, expected {tuple(own[name].shape)}"
        for name in sorted(set(candidate) & set(own))
        if candidate[name].shape != own[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise ModelError(f"{path} does not fit the model: {shown}. {_remedy(candidate, needed)}")


def _remedy(candidate: Mapping[str, Tensor], needed: set[str]) -> str:
    adapters = any(name.startswith("prea.") or ".lora_A." in name for name in candidate)
    if adapters and set(candidate) < needed:
        return "It holds only what a run with a frozen backbone trained; name a file of a whole model."
    return "Check backbone, image_size, patch_size, adapter and lora."


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    config = getattr(getattr(model, "backbone", model), "pretrained_cfg", None) or {}
    names = config.get("classifier") or "head"
    prefix = "backbone." if hasattr(model, "prea") else ""
    return tuple(prefix + name for name in ((names,) if isinstance(names, str) else names))


def _adapted(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # timm keeps beside each architecture the function that translates foreign names and resamples sizes.
    adapt: Callable[[dict[str, Tensor], nn.Module], Mapping[str, Tensor]] | None
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return dict(state) if adapt is None else dict(adapt(dict(state), model))
