"""Images and labels of a site: read from a hospital's folder, a public data set, or drawn by the phantom. No torch."""

from popmi_core.data.federation import Federation, locate
from popmi_core.data.images import ImageSet, SiteData, SkippedRow
from popmi_core.data.labels import DERMOSCOPY_CLASSES
from popmi_core.data.load import load_site
from popmi_core.data.phantom import PHANTOM_SITES, make_phantom_site
from popmi_core.data.reader import read_site

__all__ = [
    "DERMOSCOPY_CLASSES",
    "PHANTOM_SITES",
    "Federation",
    "ImageSet",
    "SiteData",
    "SkippedRow",
    "load_site",
    "locate",
    "make_phantom_site",
    "read_site",
]
