"""`popmi serve` hands on what it was told, and where it refuses to listen (popmi_core/cli/serve.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from popmi_core.cli import apps, serve
from popmi_core.cli.main import commands
from popmi_core.errors import ConfigError
from server.dashboard.access.binding import Binding
from server.dashboard.serving import Opened

VARIABLES = (
    "POPMI_DATABASE", "POPMI_PAGES_PUBLISHED", "POPMI_METRICS_NAME", "POPMI_PAGES_TLS_CERTIFICATE",
    "POPMI_PAGES_TLS_KEY", "POPMI_PAGES_BEHIND_PROXY", "POPMI_PAGES_PROXY_ADDRESS", "POPMI_PAGES_NAME",
)  # fmt: skip


@dataclass
class Told:
    """What the page server was told: the records, where to listen, and the rest."""

    runs: Any = None
    binding: Any = None
    more: Any = None
    first_admin: str | None = None


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Collect what the page server is told instead of starting it."""
    seen, load = Told(), apps.load

    def serving(runs: Any, binding: Binding, *, ready: Any, **more: Any) -> None:
        seen.runs, seen.binding, seen.more = runs, binding, more
        ready(Opened(binding.address(), seen.first_admin))

    monkeypatch.setattr(apps, "load", lambda name: serving if name == serve.PAGES else load(name))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return seen


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "server.toml").touch()
    return tmp_path


def said(*words: object) -> str:
    done = CliRunner().invoke(commands, ["serve", *map(str, words)])
    if isinstance(done.exception, ConfigError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_nothing_said_is_this_machine_only_and_nobody_signs_in(told: Told) -> None:
    assert said() == "Runs in runs: http://127.0.0.1:8080  (Ctrl-C ends it)\n"
    assert (told.runs, told.binding) == (Path("runs"), Binding())
    assert (told.more["centre"], told.more["runs_folder"]) == (None, None)
    assert (told.more["limits"].idle_seconds, told.more["limits"].whole_seconds) == (8 * 3600, 24 * 3600)


def test_a_container_says_where_it_is_published_and_who_asks_for_metrics(told: Told) -> None:
    said("--host", "0.0.0.0", "--published-on", "127.0.0.1", "--published-port", 9090, "--metrics-name", "dashboard")
    assert told.binding == Binding(
        host="0.0.0.0", published_on="127.0.0.1", published_port=9090, metrics_name="dashboard"
    )


def test_the_environment_says_it_as_well_and_no_address_is_printed_with_its_password(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = "postgresql+psycopg://popmi:secret@db/popmi"
    values = (database, "127.0.0.1", "pages", "c.pem", "k.pem", "https://a", "10.0.0.1 10.0.1.0/24", "b")
    for name, value in zip(VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    assert "secret" not in said("--host", "0.0.0.0")
    assert told.runs == told.more["centre"] == database
    assert told.binding == Binding(
        host="0.0.0.0", published_on="127.0.0.1", metrics_name="pages", certificate=Path("c.pem"), key=Path("k.pem"),
        behind_proxy="https://a", proxy_addresses=("10.0.0.1", "10.0.1.0/24"), names=("b",),
    )  # fmt: skip


def test_a_home_has_its_own_runs_models_and_accounts(told: Told, home: Path) -> None:
    said("--home", home, "--idle-hours", "1", "--session-hours", "2")
    assert (told.runs, told.more["runs_folder"]) == (home / "runs", home / "runs")
    assert told.more["centre"] == home / "centre.sqlite"
    assert (told.more["limits"].idle_seconds, told.more["limits"].whole_seconds) == (3600, 7200)


@pytest.mark.parametrize(
    ("words", "centre"),
    [
        (("--database", "postgresql+psycopg://db/popmi"), "postgresql+psycopg://db/popmi"),
        (("--database", "sqlite:///all.sqlite"), None),
        (("--database", "sqlite:///all.sqlite", "--centre", "c.sqlite"), "c.sqlite"),
        (("some-runs", "--centre", "c.sqlite"), "c.sqlite"),
    ],
)
def test_a_database_that_is_no_file_has_accounts_and_a_centre_is_what_was_said(
    told: Told, words: tuple[str, ...], centre: str | None
) -> None:
    said(*words, "--runs", "models")
    assert (told.more["centre"], told.more["runs_folder"]) == (centre, Path("models"))


def test_the_first_admins_link_is_printed(told: Told, home: Path) -> None:
    assert "becomes" not in said("--home", home)
    told.first_admin = "http://127.0.0.1:8080/first?key=abc"
    printed = said("--home", home)
    assert "becomes the first admin" in printed
    assert "\n    http://127.0.0.1:8080/first?key=abc\n" in printed


def test_what_is_no_home_is_refused(told: Told, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no server's home: it has no server\.toml"):
        said("--home", tmp_path / "none")


def test_a_folder_of_runs_beside_a_home_is_refused(told: Told, home: Path) -> None:
    with pytest.raises(ConfigError, match="RUNS and --home go not together"):
        said("runs", "--home", home)


@pytest.mark.parametrize("words", [["--host", "0.0.0.0"], ["--host", "0.0.0.0", "--published-on", "0.0.0.0"]])
def test_listening_to_others_is_refused(tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="no loopback address"):
        said(tmp_path, *words)
