"""The certificate of equivariance: algebraic, telescoping by layer, conformal by site; see docs/certificate.md."""

from popmi_core.equivariance.certificate.algebra import Algebraic, certify_algebra, group_of
from popmi_core.equivariance.certificate.conformal import Conformal, conformal
from popmi_core.equivariance.certificate.promise import Promise, promise_of
from popmi_core.equivariance.certificate.residues import residues
from popmi_core.equivariance.certificate.telescope import Telescope, telescope

__all__ = [
    "Algebraic",
    "Conformal",
    "Promise",
    "Telescope",
    "certify_algebra",
    "conformal",
    "group_of",
    "promise_of",
    "residues",
    "telescope",
]
