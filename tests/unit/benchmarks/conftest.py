"""A study's modules are no package: they find each other by their folder, and other studies call theirs alike."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def load_from(monkeypatch):
    """Import a module from a folder of benchmarks/; what its folder's modules are called is forgotten afterwards."""
    others: dict[str, object] = {}
    names: set[str] = set()

    def load(folder, module):
        names.update(path.stem for path in (BENCHMARKS / folder).glob("*.py"))
        others.update({name: sys.modules.pop(name) for name in names if name in sys.modules})
        monkeypatch.syspath_prepend(str(BENCHMARKS / folder))
        return importlib.import_module(module)

    yield load
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)
