"""`popmi data compose`: a prepared data set in the words of docker-compose.yml (popmi_core/deployment/compose.py)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from popmi_core.cli.data import app
from popmi_core.data.card import DatasetCard, write_card
from popmi_core.deployment import compose
from popmi_core.deployment.compose import CONTAINER_USER, MOST_SITES, compose_settings, env_lines
from popmi_core.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]
SITES = ("south", "north", "east")
RUN = CliRunner()


def prepared(folder: Path, *sites: str, classes: tuple[str, ...] = ("nv", "mel")) -> Path:
    """Return a prepared data set with an external test set, its folders open to all."""
    for name in (*sites, "kept_aside"):
        (folder / name / "images").mkdir(parents=True)
        (folder / name / "labels.csv").write_text("image,diagnosis\n")
        (folder / name / "images" / "a.png").write_bytes(b"")
    card = DatasetCard(
        name="skin", classes=classes, image_size=8, source_image_size=8, sites=sites, external="kept_aside",
        licence="CC0", recipe="test-1",
    )  # fmt: skip
    write_card(folder, card)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def test_sites_are_numbered_by_name_and_the_external_set_is_left_out(tmp_path: Path) -> None:
    told = compose_settings(prepared(tmp_path, *SITES))
    assert told == {
        "CLASSES": "nv,mel",
        "SITE_1": "east",
        "SITE_1_DATA": str(tmp_path / "east"),
        "SITE_2": "north",
        "SITE_2_DATA": str(tmp_path / "north"),
        "SITE_3": "south",
        "SITE_3_DATA": str(tmp_path / "south"),
    }


def test_named_sites_come_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    told = compose_settings(prepared(tmp_path, *SITES), ["south", "east"])
    assert (told["SITE_1"], told["SITE_2"], "SITE_3" in told) == ("south", "east", False)


def test_folders_are_absolute_also_when_the_set_is_named_from_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path / "skin", "north")
    monkeypatch.chdir(tmp_path)
    assert compose_settings(Path("skin"))["SITE_1_DATA"] == str(tmp_path / "skin" / "north")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is no folder, expected a prepared data set\. Check the path"):
        compose_settings(tmp_path / "nowhere")


def test_a_folder_without_a_card_is_told_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no dataset\.json, expected a prepared data set.*`popmi data prepare`"):
        compose_settings(tmp_path)


def test_a_card_that_names_a_lost_site_is_told(tmp_path: Path) -> None:
    shutil.rmtree(prepared(tmp_path, *SITES) / "east")
    with pytest.raises(DataError, match="names 'east', but there is no such folder"):
        compose_settings(tmp_path)


def test_more_sites_than_compose_knows_are_to_be_chosen_from(tmp_path: Path) -> None:
    prepared(tmp_path, *"abcdefg")
    with pytest.raises(ConfigError, match=r"7 sites, expected at most 6.*--sites a,b,c,d,e,f\."):
        compose_settings(tmp_path)
    assert compose_settings(tmp_path, [*"bcdefg"])["SITE_6"] == "g"


@pytest.mark.parametrize("sites", [["north", "west"], ["north", "north"], ["kept_aside"]])
def test_unknown_and_repeated_sites_are_told_with_those_there_are(tmp_path: Path, sites: list[str]) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown or repeated: (west|a name twice|kept_aside).*has east, north, south"
    ):
        compose_settings(prepared(tmp_path, *SITES), sites)


def test_a_site_s_name_that_the_server_would_refuse_is_told_before(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"site name 'North Clinic', expected lower-case letters.*Rename its folder"):
        compose_settings(prepared(tmp_path, "North Clinic"))


def test_a_class_with_a_comma_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class 'nv, other', expected no comma"):
        compose_settings(prepared(tmp_path, "north", classes=("mel", "nv, other")))


@pytest.mark.parametrize(
    ("path", "mode"),
    [("north", 0o700), ("north/images", 0o744), ("north/labels.csv", 0o640), ("north/images/a.png", 0o600)],
)
def test_what_containers_cannot_read_is_counted_with_the_remedy(tmp_path: Path, path: str, mode: int) -> None:
    (prepared(tmp_path, *SITES) / path).chmod(mode)
    remedy = rf"chmod -R a\+rX {re.escape(str(tmp_path / 'north'))}$"
    with pytest.raises(DataError, match=rf"site north: user 10001.* cannot read 1 of .*, expected all\. {remedy}"):
        compose_settings(tmp_path)
    subprocess.run(["chmod", "-R", "a+rX", tmp_path / "north"], check=True)
    assert compose_settings(tmp_path)["SITE_2"] == "north"


def test_sites_that_are_not_chosen_need_not_be_readable(tmp_path: Path) -> None:
    (prepared(tmp_path, *SITES) / "north" / "labels.csv").chmod(0o600)
    assert compose_settings(tmp_path, ["east", "south"])["SITE_2"] == "south"


def test_what_you_may_not_read_yourself_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shut(folder: Path) -> DatasetCard:
        raise PermissionError(13, "Permission denied", str(folder / "north" / "labels.csv"))

    monkeypatch.setattr(compose, "read_card", shut)
    with pytest.raises(DataError, match=r"labels\.csv: you may not read it yourself\. chmod -R a\+rX"):
        compose_settings(prepared(tmp_path, "north"))


def test_the_numbers_are_those_of_the_image_and_the_compose_file() -> None:
    assert f"USER {CONTAINER_USER}:{CONTAINER_USER}" in (ROOT / "deploy" / "Dockerfile").read_text()
    known = {int(number) for number in re.findall(r"SITE_(\d+)_DATA", (ROOT / "docker-compose.yml").read_text())}
    assert known == set(range(1, MOST_SITES + 1))


def test_a_value_that_compose_would_take_for_syntax_is_quoted() -> None:
    assert env_lines({"A": "/data/north-1_b.c", "B": "/my data", "C": "/$HOME #1", "D": "/it's"}) == [
        "A=/data/north-1_b.c",
        "B='/my data'",
        "C='/$HOME #1'",
        "D='/it\\'s'",
    ]


def test_the_command_prints_the_file_and_nothing_else(tmp_path: Path) -> None:
    folder = prepared(tmp_path, *SITES)
    said = RUN.invoke(app, ["compose", str(folder), "--sites", "south, north"], catch_exceptions=False)
    assert (said.exit_code, said.stderr) == (0, "")
    assert said.stdout.splitlines() == [
        "CLASSES=nv,mel",
        "SITE_1=south",
        f"SITE_1_DATA={folder}/south",
        "SITE_2=north",
        f"SITE_2_DATA={folder}/north",
    ]


def test_a_sixth_site_is_said_to_need_its_profile(tmp_path: Path) -> None:
    said = RUN.invoke(app, ["compose", str(prepared(tmp_path, *"abcdef"))], catch_exceptions=False)
    assert "SITE_6=f" in said.stdout
    assert said.stderr == "SITE_6 takes part with `docker compose --profile extra up` only.\n"


def compose_at_hand() -> bool:
    return shutil.which("docker") is not None and not subprocess.run(
        ["docker", "compose", "version"], capture_output=True
    ).returncode  # fmt: skip


@pytest.mark.skipif(not compose_at_hand(), reason="no docker compose on this machine")
def test_compose_mounts_the_folders_that_are_printed_also_with_odd_names(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "it's $HOME #1", *"abcdef", classes=("basal cell", "nævus"))
    (tmp_path / "env").write_text("\n".join(env_lines(compose_settings(folder))) + "\n")
    words = [
        "docker",
        "compose",
        "--env-file",
        str(tmp_path / "env"),
        "--profile",
        "extra",
        "config",
        "--format",
        "json",
    ]
    environment = {name: value for name, value in os.environ.items() if not re.match("SITE|CLASSES|RUN", name)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    services = json.loads(done.stdout)["services"]
    for number, site in enumerate("abcdef", 1):
        service = services[f"site-{number}"]
        (mount,) = [item for item in service["volumes"] if item["target"] == "/data"]
        # `config` writes what could be read as its input: a dollar sign is doubled.
        assert mount["source"].replace("$$", "$") == str(folder / site)
        assert mount["read_only"] is True
        assert service["environment"]["SITE"] == site
    assert services["certificates"]["environment"]["CLASSES"] == "basal cell,nævus"
    assert services["keeper"]["environment"]["SITES"].split() == [f"{s}:{n}:images" for n, s in enumerate("abcde", 1)]
