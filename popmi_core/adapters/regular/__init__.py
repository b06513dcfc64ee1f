"""Regular fields: a timm backbone of the same cost whose channels turn with the image (``layers``, ``convert``)."""

from popmi_core.adapters.regular.convert import is_regular, make_dense, make_regular
from popmi_core.adapters.regular.tokens import embed

__all__ = ["embed", "is_regular", "make_dense", "make_regular"]
