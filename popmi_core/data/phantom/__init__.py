"""The phantom: a seeded generator of dermoscopy-like images at five sites with different devices.

It shows no patient and estimates no clinical figure; it is there so that everything runs where no real data lie.
See docs/phantom.md.
"""

from popmi_core.data.phantom.folder import write_phantom_site
from popmi_core.data.phantom.generate import PHANTOM_SITES, draw_examples, make_phantom_site

__all__ = ["PHANTOM_SITES", "draw_examples", "make_phantom_site", "write_phantom_site"]
