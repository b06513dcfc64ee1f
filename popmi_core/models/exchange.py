"""What travels between a site and the server, and how it is put back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from popmi_core.errors import ModelError


def exchanged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return CPU clones of what training can change, in the model's own order.

    That is trainable parameters and floating-point buffers (BatchNorm statistics). Integer buffers such
    as ``num_batches_tracked`` stay at home: they cannot be averaged. So do frozen parameters and
    statistics of frozen norms, which every site already has.
    """
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in _travelling(model).items()}


def load_exchanged(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into ``model`` in place; nothing is copied unless everything fits.

    Raises:
        ModelError: If a tensor is missing, unknown, or of another shape or dtype.
    """
    own = _travelling(model)
    missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or unknown:
        problem = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is unknown to this model"
        raise ModelError(
            f"state does not fit: {problem} ({len(missing)} missing, {len(unknown)} unknown). "
            "Check that both sides use the same model and adapter configuration."
        )
    for name, target in own.items():
        got = state[name]
        if got.shape != target.shape or got.dtype != target.dtype:
            raise ModelError(
                f"{name!r} has shape {tuple(got.shape)} and {got.dtype}, expected {tuple(target.shape)} and "
                f"{target.dtype}. Check the number of classes, the image size and the adapter rank."
            )
    with torch.no_grad():
        for name, target in own.items():
            target.copy_(state[name])


def _travelling(model: nn.Module) -> dict[str, Tensor]:
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen_statistics = _frozen_statistics(model)
    parameters = dict(model.named_parameters())
    return {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name in trainable
        or (name not in parameters and tensor.is_floating_point() and name not in frozen_statistics)
    }


def _frozen_statistics(model: nn.Module) -> set[str]:
    # A norm whose affine parameters are frozen is kept in evaluation mode, so its statistics never move.
    names: set[str] = set()
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.affine and not any(p.requires_grad for p in module.parameters()):
            names.update(f"{prefix}.{name}" if prefix else name for name, _ in module.named_buffers(recurse=False))
    return names
