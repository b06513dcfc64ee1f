"""Transformers that are exactly D4-invariant from scratch, their linear layers in isotypic blocks."""

from popmi_core.models.octic.presets import SIZES
from popmi_core.models.octic.vit import OcticVit

__all__ = ["SIZES", "OcticVit"]
