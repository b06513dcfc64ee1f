"""Other ways to an answer that turning the image does not change: the rivals PREA is measured against."""

from popmi_core.invariance.build import build_method
from popmi_core.invariance.catalogue import METHODS
from popmi_core.invariance.method import Method, MethodContext, Phase, phases_of

__all__ = ["METHODS", "Method", "MethodContext", "Phase", "build_method", "phases_of"]
