"""`popmi serve` hands on what it was told, and where it refuses to listen (popmi_core/cli/serve.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from popmi_core.cli import apps
from popmi_core.cli.main import commands


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """Collect what the page server is told instead of starting it."""
    seen: list[tuple[Any, dict[str, Any]]] = []

    def serve(runs: Any, **settings: Any) -> None:
        settings.pop("ready")()
        seen.append((runs, settings))

    monkeypatch.setattr(apps, "load", lambda _: serve)
    for name in ("POPMI_DATABASE", "POPMI_PAGES_PUBLISHED", "POPMI_METRICS_NAME"):
        monkeypatch.delenv(name, raising=False)
    return seen


def test_nothing_said_is_this_machine_only(told: list[tuple[Any, dict[str, Any]]]) -> None:
    done = CliRunner().invoke(commands, ["serve"])
    assert done.exit_code == 0, done.output
    assert told == [
        (Path("runs"), {"host": "127.0.0.1", "port": 8080, "published_on": None, "metrics_name": None}),
    ]
    assert "Runs in runs: http://127.0.0.1:8080" in done.output


def test_a_container_says_where_it_is_published_and_who_asks_for_metrics(
    told: list[tuple[Any, dict[str, Any]]],
) -> None:
    words = ["--host", "0.0.0.0", "--published-on", "127.0.0.1", "--metrics-name", "dashboard"]
    assert CliRunner().invoke(commands, ["serve", *words]).exit_code == 0
    settings = told[0][1]
    assert (settings["host"], settings["published_on"], settings["metrics_name"]) == (
        *("0.0.0.0", "127.0.0.1"),
        "dashboard",
    )


def test_the_environment_says_it_as_well_and_no_address_is_printed_with_its_password(
    told: list[tuple[Any, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POPMI_PAGES_PUBLISHED", "127.0.0.1")
    monkeypatch.setenv("POPMI_METRICS_NAME", "pages")
    monkeypatch.setenv("POPMI_DATABASE", "postgresql+psycopg://popmi:secret@db/popmi")
    done = CliRunner().invoke(commands, ["serve", "--host", "0.0.0.0"])
    assert told[0][0] == "postgresql+psycopg://popmi:secret@db/popmi"
    assert told[0][1]["published_on"] == "127.0.0.1"
    assert told[0][1]["metrics_name"] == "pages"
    assert "secret" not in done.output


@pytest.mark.parametrize("words", [["--host", "0.0.0.0"], ["--host", "0.0.0.0", "--published-on", "0.0.0.0"]])
def test_listening_to_others_is_refused(tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POPMI_PAGES_PUBLISHED", raising=False)
    done = CliRunner().invoke(commands, ["serve", str(tmp_path), *words])
    assert done.exit_code != 0
    assert "no loopback address" in " ".join((done.output + str(done.exception)).split())
