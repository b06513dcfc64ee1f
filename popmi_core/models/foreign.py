"""Models of other packages: what one lists under the entry point group ``popmi.models`` is imported with POPMI's own.

    [project.entry-points."popmi.models"]
    two_layers = "my_package.two_layers"

The module registers its models with timm (``timm.models.register_model``); from then on they are backbones like others.
"""

from __future__ import annotations

from importlib.metadata import entry_points


def register_foreign() -> None:
    """Import the modules that installed packages offer; an error in one is raised as it is, with its traceback."""
    for point in entry_points(group="popmi.models"):
        point.load()
