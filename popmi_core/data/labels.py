"""The seven diagnoses of HAM10000 and ISIC 2018 task 3, in the order every model's outputs follow."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

DERMOSCOPY_CLASSES: tuple[str, ...] = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

DERMOSCOPY_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "akiec": "actinic keratosis or intraepithelial carcinoma",
        "bcc": "basal cell carcinoma",
        "bkl": "benign keratosis-like lesion",
        "df": "dermatofibroma",
        "mel": "melanoma",
        "nv": "melanocytic naevus",
        "vasc": "vascular lesion",
    }
)
"""What each short name means (Tschandl et al. 2018, doi:10.1038/sdata.2018.161)."""
