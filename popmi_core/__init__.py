"""POPMI's library: models, matching, fusion, metrics and data; no Flower, no web, no database.

Kept free of torch, so that the dashboard can import the parts it needs in a slim image.
"""

from popmi_core.errors import PopmiError

__all__ = ["PopmiError", "__version__"]
__version__ = "0.1.0"
