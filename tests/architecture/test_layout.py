"""The house rules that no other tool checks."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("popmi_core", "server", "client")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PYTHON = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]


def test_no_file_is_longer_than_350_lines():
    long = {str(p.relative_to(ROOT)): n for p in PYTHON if (n := len(p.read_text().splitlines())) > 350}
    assert long == {}


def test_no_function_is_longer_than_50_lines():
    def functions(path):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.name}", (node.end_lineno or 0) - node.body[0].lineno + 1

    long = {name: lines for path in SOURCES for name, lines in functions(path) if lines > 50}
    assert long == {}


def test_no_drawer_is_called_utils():
    names = {path.stem for path in PYTHON} | {
        parent.name for path in PYTHON for parent in path.relative_to(ROOT).parents
    }
    assert names & {"utils", "util", "common", "helpers", "misc"} == set()


def test_every_public_list_names_at_most_ten_things():
    for path in SOURCES:
        if path.name == "__init__.py" and "__all__" in path.read_text():
            tree = ast.parse(path.read_text())
            lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"]
            assert all(len(item.elts) <= 10 for item in lists), path


def test_every_drawer_of_the_core_lists_what_is_public():
    # Nothing imports the commands.
    drawers = [path.parent for path in (ROOT / "popmi_core").glob("*/__init__.py") if path.parent.name != "cli"]
    listed = {drawer.name: getattr(import_module(f"popmi_core.{drawer.name}"), "__all__", []) for drawer in drawers}
    assert [name for name, public in listed.items() if not public] == []
    for name, public in listed.items():
        assert public == sorted(public, key=lambda one: (not one.isupper(), one[0].islower(), one))
        assert all(hasattr(import_module(f"popmi_core.{name}"), one) for one in public)


def test_measuring_and_training_are_found_without_knowing_files():
    figures = import_module("popmi_core.metrics.figures").__all__
    assert {"brier", "macro_f1", "balanced_accuracy"} <= set(figures)
    assert len(figures) <= 10
    metrics, equivariance, learning = (
        import_module(f"popmi_core.{name}").__all__ for name in ("metrics", "equivariance", "learning")
    )
    assert {"turning_figures", "ScoreAccumulator", "TurningAccumulator"} <= set(metrics)
    assert {"rotation_curve", "lie_derivatives", "layer_terms", "LieAccumulator"} <= set(equivariance)
    assert {"fit", "distill", "choose_group"} <= set(learning)


def test_nothing_unpickles():
    for path in SOURCES:
        text = path.read_text()
        assert "torch.load(" not in text, path
        assert "import pickle" not in text, path
        assert "allow_pickle=True" not in text, path


@pytest.mark.parametrize("module", ["popmi_core", "popmi_core.cli.main", "server.store", "server.dashboard.app"])
def test_light_parts_load_neither_torch_nor_flower(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'flwr', 'timm'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
