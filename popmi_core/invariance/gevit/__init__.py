"""Attention on groups: GSA-Nets, GE-ViT and the modern variant, each as published or exact."""

from popmi_core.invariance.gevit.modern import ModernGeVit
from popmi_core.invariance.gevit.network import GroupTransformer
from popmi_core.invariance.gevit.rules import pair_index, window_positions

__all__ = ["GroupTransformer", "ModernGeVit", "pair_index", "window_positions"]
