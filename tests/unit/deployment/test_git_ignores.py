"""`git add .` takes no key and no password along."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "path",
    [
        "popmi-server/secrets/superexec",
        "popmi-server/sites.json",
        "popmi-site/node.key",
        "popmi-site/site.toml",
        ".env",
    ],
)
def test_what_is_secret_is_not_added(checkout: Path, path: str) -> None:
    (checkout / path).parent.mkdir(parents=True, exist_ok=True)
    (checkout / path).write_text("secret")
    subprocess.run(["git", "add", "."], cwd=checkout, check=True)
    added = subprocess.run(["git", "ls-files"], cwd=checkout, check=True, capture_output=True, text=True).stdout
    assert added.split() == [".gitignore"]


def test_the_homes_that_the_command_line_makes_are_those_that_are_ignored() -> None:
    from client.site.home import DEFAULT_HOME
    from server.control import commands as server

    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {f"/{server.HOME}/", f"/{DEFAULT_HOME}/"} <= set(ignored)
