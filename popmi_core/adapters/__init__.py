"""PREA: exact C4/D4 equivariance for timm backbones, and the check of it; low-rank adapters on linear layers."""

from popmi_core.adapters.exactness import equivariance_error, require_exact
from popmi_core.adapters.folding import fold
from popmi_core.adapters.lora import LoraLinear, add_lora, merge_lora
from popmi_core.adapters.prea import Prea, attach, detach

__all__ = [
    "LoraLinear",
    "Prea",
    "add_lora",
    "attach",
    "detach",
    "equivariance_error",
    "fold",
    "merge_lora",
    "require_exact",
]
