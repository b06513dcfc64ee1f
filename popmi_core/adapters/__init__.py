"""PREA: exact C4/D4 equivariance for timm backbones, and the check of it."""

from popmi_core.adapters.exactness import equivariance_error, require_exact
from popmi_core.adapters.prea import Prea, attach, detach

__all__ = ["Prea", "attach", "detach", "equivariance_error", "require_exact"]
