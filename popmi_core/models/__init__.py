"""timm backbones, PREA on top where asked, and what of a model travels between site and server."""

from popmi_core.models.build import build_model
from popmi_core.models.exchange import exchanged_state, load_exchanged
from popmi_core.models.foreign import register_foreign
from popmi_core.models.inputs import normalise
from popmi_core.models.octic import OcticVit
from popmi_core.models.predict import predict
from popmi_core.models.presets import PRESETS
from popmi_core.models.small_nets import STUDY_NETS

__all__ = [
    "PRESETS",
    "STUDY_NETS",
    "OcticVit",
    "build_model",
    "exchanged_state",
    "load_exchanged",
    "normalise",
    "predict",
]

register_foreign()
