"""What a run ran on, for its record."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

PACKAGES = ("popmi", "torch", "timm", "flwr", "opacus", "numpy", "scipy", "escnn", "pot")


def describe_environment() -> dict[str, object]:
    """Return Python, machine, threads and the versions of the packages that decide results; no host name."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
