"""The unit and the compose file of a single site: hardened, restarted, images read-only."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from popmi_core.errors import LeftError, PopmiError

FOLDER = Path(__file__).parents[4] / "deploy" / "site"


def kinds(kind: type[PopmiError]) -> list[type[PopmiError]]:
    return [kind, *(below for one in kind.__subclasses__() for below in kinds(one))]


@pytest.fixture
def unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (FOLDER / "popmi-site.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def site() -> dict:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["site"]


def test_the_unit_starts_again_whatever_ended_it_but_not_a_site_that_has_left(unit):
    assert unit["Restart"] == ["always"]
    assert unit["RestartSec"] == ["10"]
    assert unit["RestartPreventExitStatus"] == [str(LeftError.exit_code)]
    codes = [kind.exit_code for kind in kinds(PopmiError)]
    assert codes.count(LeftError.exit_code) == 1


def test_the_unit_may_write_nothing_but_the_sites_folder(unit):
    assert unit["User"] == ["popmi"]
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["ReadWritePaths"] == ["/var/lib/popmi-site"]
    assert unit["Environment"] == ["POPMI_SITE_HOME=/var/lib/popmi-site"]
    assert unit["NoNewPrivileges"] == unit["PrivateTmp"] == ["yes"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_understands_every_line_of_the_unit(tmp_path):
    text = (FOLDER / "popmi-site.service").read_text().replace("/opt/popmi/bin/popmi site run", "/bin/true")
    (tmp_path / "popmi-site.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "popmi-site.service")], capture_output=True, text=True, check=False
    )
    assert "popmi-site.service" not in done.stderr, done.stderr


def test_the_container_is_not_root_and_writes_to_its_volume_only(site):
    assert site["user"] == "10001:10001"
    assert site["read_only"]
    assert site["cap_drop"] == ["ALL"]
    assert site["pids_limit"] > 0
    assert site["logging"]["options"].keys() == {"max-size", "max-file"}
    assert [volume for volume in site["volumes"] if not volume.endswith(":ro")] == ["home:/home/popmi/site"]
    assert not site.get("ports")


def test_the_container_comes_back_and_says_whether_it_is_well(site, tmp_path):
    assert site["restart"] == "always"
    assert site["init"]
    check = site["healthcheck"]["test"]
    code = check[-1].replace("/home/popmi/site/processes/alive", str(tmp_path / "alive"))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 1
    (tmp_path / "alive").touch()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_image_is_built_from_this_copy_and_never_pulled(site):
    assert site["pull_policy"] == "never"
    context = (FOLDER / site["build"]["context"]).resolve()
    assert (context / site["build"]["dockerfile"]).is_file()
    # A copy of the one image of all parts: the same name, built the same way.
    whole = yaml.safe_load((context / "docker-compose.yml").read_text())["services"]["certificates"]
    assert (site["image"], site["build"]["dockerfile"]) == (whole["image"], whole["build"]["dockerfile"])
    assert site["build"]["args"] == whole["build"]["args"]


def test_the_file_says_how_to_get_the_image_and_the_enrolment_and_the_guide_says_the_same():
    text, guide = (FOLDER / "compose.yaml").read_text(), (FOLDER.parents[1] / "docs" / "site.md").read_text()
    said = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#   docker compose")]
    commands = [line.split("  (")[0].strip() for line in said]
    assert [command.split()[2] for command in commands] == ["build", "run", "run", "run", "up"]
    assert [command for command in commands if command not in guide] == []
