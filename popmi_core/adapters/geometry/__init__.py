"""Which image sizes a backbone is exact at, by the block after which its copies are merged; see docs/certificate.md."""

from popmi_core.adapters.geometry.check import REFUSED_FROM, Geometry, check_all, check_geometry
from popmi_core.adapters.geometry.rules import Reason
from popmi_core.adapters.geometry.trace import stages_of

__all__ = ["REFUSED_FROM", "Geometry", "Reason", "check_all", "check_geometry", "stages_of"]
