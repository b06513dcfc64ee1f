"""Which BatchNorms measure while a model trains: those of parts that learn."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def set_training_mode(model: nn.Module) -> None:
    """Put the model in training mode, and every BatchNorm of a frozen part in evaluation mode.

    A norm belongs to a frozen part if its own parameters are frozen or, where it has none, those of the nearest module
    around it that has any. Its running statistics would otherwise drift although nothing around it learns.
    """
    model.train()
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not isinstance(module, _NormBase):
            continue
        around = name
        while around and not any(True for _ in modules[around].parameters()):
            around = around.rpartition(".")[0]
        if not any(p.requires_grad for p in modules[around].parameters()):
            module.eval()


def freeze_norms(model: nn.Module) -> None:
    """Put every BatchNorm in evaluation mode: the statistics of one image are no statistics."""
    for module in model.modules():
        if isinstance(module, _NormBase):
            module.eval()
