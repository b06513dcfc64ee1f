"""The house rules that no other tool checks."""

from __future__ import annotations

import ast
import subprocess
import sys
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
