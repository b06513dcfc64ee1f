"""Measuring equivariance: how far answers move when images are turned, layer by layer, and what can be certified.

The certificate is a package of its own, ``popmi_core.equivariance.certificate``.
"""

from popmi_core.equivariance.curve import Curve, rotation_curve
from popmi_core.equivariance.lie import Lee, lee_figures, lie_derivatives
from popmi_core.equivariance.lie_accumulator import LieAccumulator
from popmi_core.equivariance.lie_layers import LayerTerms, layer_terms
from popmi_core.equivariance.turning import ANGLES, turn_images

__all__ = [
    "ANGLES",
    "Curve",
    "LayerTerms",
    "Lee",
    "LieAccumulator",
    "layer_terms",
    "lee_figures",
    "lie_derivatives",
    "rotation_curve",
    "turn_images",
]
