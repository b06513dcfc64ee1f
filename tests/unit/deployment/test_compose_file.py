"""The compose file keeps what it promises, read without an engine: who runs how, and who reaches whom."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.control.home import ServerHome

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "deploy" / "monitoring" / "compose.yaml"


def whole_file() -> dict[str, Any]:
    """Return the compose file together with what it includes."""
    own, included = (yaml.safe_load(path.read_text()) for path in (ROOT / "docker-compose.yml", MONITORING))
    assert own["include"] == [str(MONITORING.relative_to(ROOT))]
    return {part: {**own[part], **included[part]} for part in ("services", "networks", "volumes")}


COMPOSE = whole_file()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SITES = [name for name in SERVICES if re.fullmatch(r"site-\d", name)]
SCRIPTS = sorted((ROOT / "deploy" / "compose").glob("*.sh"))


def sources(service: str) -> list[str]:
    """Return the volumes and folders a service mounts."""
    mounts = SERVICES[service].get("volumes", [])
    return [
        re.sub(r"\$\{.*\}", "DATA", item["source"]) if isinstance(item, dict) else item.split(":")[0] for item in mounts
    ]


def mounted(volume: str) -> dict[str, str]:
    """Return where each service mounts a volume and how, e.g. ``/password:ro``."""
    items = [(name, item) for name in SERVICES for item in SERVICES[name].get("volumes", []) if isinstance(item, str)]
    return {name: item.partition(":")[2] for name, item in items if item.startswith(f"{volume}:")}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_runs_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert str(service["user"]).split(":")[0] not in ("", "0", "root")
    assert re.fullmatch(r"\d+[mg]|\$\{(SITE_MEMORY:-3|KEEPER_MEMORY:-3|SUPERLINK_MEMORY:-2)g\}", service["mem_limit"])
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["pids_limit"] > 0
    assert not service.keys() & {"privileged", "network_mode", "pid", "ipc", "devices", "cap_add"}


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_published_but_on_this_machine(name: str) -> None:
    ports = SERVICES[name].get("ports", [])
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert bool(ports) == (name in ("dashboard", "grafana"))


def test_only_the_pages_are_in_a_network_with_a_way_out() -> None:
    open_ones = {name for name, network in COMPOSE["networks"].items() if not (network or {}).get("internal")}
    assert open_ones == {"pages"}
    assert {name for name in SERVICES if "pages" in SERVICES[name]["networks"]} == {"dashboard", "grafana"}


@pytest.mark.parametrize("name", SITES)
def test_a_site_is_alone_with_the_gateway(name: str) -> None:
    assert SERVICES[name]["networks"] == [name]
    assert {other for other in SERVICES if name in SERVICES[other]["networks"]} == {name, "gateway"}


def test_the_gateway_reaches_every_site_and_the_centre_only() -> None:
    assert set(SERVICES["gateway"]["networks"]) == {"core", *SITES}


def test_the_database_is_reached_by_its_readers_only_and_the_pages_reach_nothing_of_the_centre() -> None:
    members = {net: {name for name in SERVICES if net in SERVICES[name]["networks"]} for net in COMPOSE["networks"]}
    assert members["core"] == {"certificates", "superlink", "runner", "gateway", "keeper", "invitation"}
    assert members["records"] == {"database", "runner", "keeper", "dashboard"}
    assert members["measures"] == {"dashboard", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SITES)
def test_a_site_mounts_what_is_its_own_and_its_images_read_only(name: str) -> None:
    number = name.removeprefix("site-")
    assert sources(name) == [name, f"handover-{number}", "DATA"]
    images = SERVICES[name]["volumes"][2]
    assert images["source"] == f"${{SITE_{number}_DATA:-./deploy/no-data}}"
    assert (images["target"], images["read_only"]) == ("/data", True)
    assert SERVICES[name]["environment"]["OWN_IMAGES"] == f"${{SITE_{number}_DATA:-}}"
    others = {other for other in SERVICES if name in sources(other)}
    assert others == {name}


def test_the_centres_keys_are_mounted_by_the_centre_only_and_not_by_the_pages() -> None:
    assert set(mounted("centre")) == {"certificates", "superlink", "runner", "keeper", "invitation"}


def test_the_gateway_and_the_pages_mount_what_was_copied_for_them_and_cannot_write_it() -> None:
    assert SERVICES["gateway"]["volumes"] == ["gateway:/home/popmi/server:ro", "refused:/refused"]
    assert mounted("gateway") == {"certificates": "/gateway", "gateway": "/home/popmi/server:ro"}
    assert SERVICES["dashboard"]["volumes"] == ["password:/password:ro", "runs:/runs:ro"]


def test_runs_lie_in_a_volume_of_those_who_make_them_and_the_pages_only_read_it() -> None:
    home = "/home/popmi/server/runs"
    assert mounted("runs") == {"certificates": "/runs", "runner": home, "keeper": home, "dashboard": "/runs:ro"}
    assert "--runs=/runs" in SERVICES["dashboard"]["command"]
    # A volume takes over the owner of the folder it covers.
    made = re.findall(r"mkdir -p (.*)", (ROOT / "deploy" / "Dockerfile").read_text())
    assert {home, "/runs"} <= set(made[0].split())


def test_the_gateway_writes_only_what_the_keeper_reads_and_nobody_else() -> None:
    assert mounted("refused") == {"gateway": "/refused", "keeper": "/refused:ro"}
    for name in ("gateway", "keeper"):
        assert SERVICES[name]["environment"]["POPMI_REFUSED_FILE"] == "/refused/refused.json"
    # A volume takes over the owner of the folder it covers.
    made = re.findall(r"chown -R 10001:10001 (.*)", (ROOT / "deploy" / "Dockerfile").read_text())
    assert "/refused" in made[0].split()


def test_the_databases_password_is_in_a_volume_of_its_readers_and_not_in_the_file() -> None:
    readers = {"database", "runner", "keeper", "dashboard"}
    assert mounted("password") == {"certificates": "/password"} | dict.fromkeys(readers, "/password:ro")
    for name in readers - {"database"}:
        environment = SERVICES[name]["environment"]
        assert environment["POPMI_DATABASE"] == "postgresql+psycopg://popmi@database/popmi"
        assert environment["PGPASSFILE"] == "/password/pgpass"
    database = SERVICES["database"]
    assert "POSTGRES_PASSWORD" not in database["environment"]
    assert database["environment"]["POSTGRES_PASSWORD_FILE"] == "/password/password"
    assert database["group_add"] == [SERVICES["certificates"]["user"].split(":")[1]]


def test_a_file_or_folder_that_is_not_there_is_told_and_not_made() -> None:
    bound = [item for name in SERVICES for item in SERVICES[name].get("volumes", []) if isinstance(item, dict)]
    assert {item["target"] for item in bound} == {"/data", "/run.toml"}
    assert all(item["type"] == "bind" and item["read_only"] for item in bound)
    assert all(item["bind"] == {"create_host_path": False} for item in bound)


def test_the_databases_address_is_told_to_those_who_need_it_only() -> None:
    told = {name for name in SERVICES if "POPMI_DATABASE" in SERVICES[name].get("environment", {})}
    assert told == {"runner", "keeper", "dashboard"}


def test_one_service_builds_each_image_and_no_registry_is_asked_for_it() -> None:
    own = {name: service for name, service in SERVICES.items() if service["image"] in ("popmi", "popmi-pages")}
    built = {name: service["build"]["dockerfile"] for name, service in own.items() if "build" in service}
    assert built == {"certificates": "deploy/Dockerfile", "dashboard": "deploy/dashboard/Dockerfile"}
    assert [name for name, service in own.items() if service["image"] == "popmi-pages"] == ["dashboard"]
    assert {service["pull_policy"] for service in own.values()} == {"never"}
    assert {name for name in SERVICES if name not in own} == {"database", "prometheus", "grafana"}


def test_everything_comes_back_by_itself_but_what_is_done_once() -> None:
    assert {name for name in SERVICES if SERVICES[name]["restart"] == "no"} == {"certificates", "invitation"}
    assert {SERVICES[name]["restart"] for name in SERVICES} == {"no", "always"}


@pytest.mark.parametrize("name", SERVICES)
def test_whatever_runs_on_says_whether_it_is_well(name: str) -> None:
    assert ("healthcheck" in SERVICES[name]) == (SERVICES[name]["restart"] != "no")
    if "healthcheck" not in SERVICES[name]:
        return
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert check.keys() >= {"interval", "timeout", "retries"}
    if check["test"][1:3] == ["python", "-c"]:
        compile(check["test"][3], name, "exec")
    # The other programs come with their images.
    assert check["test"][1] in ("python", "pg_isready", "promtool", "wget")


def test_the_keepers_health_is_the_age_of_the_file_it_touches(tmp_path: Path) -> None:
    looked = ServerHome(Path("/home/popmi/server")).looked
    code = SERVICES["keeper"]["healthcheck"]["test"][3]
    assert f"'{looked}'" in code
    here = tmp_path / "looked"
    code = code.replace(str(looked), str(here))

    def well() -> bool:
        return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

    assert not well()
    here.touch()
    assert well()
    os.utime(here, (1_000_000_000, 1_000_000_000))
    assert not well()


@pytest.mark.parametrize("name", SERVICES)
def test_nobody_waits_for_what_is_not_there(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        once = SERVICES[other]["restart"] == "no"
        assert how["condition"] == ("service_completed_successfully" if once else "service_healthy")
        assert once or "healthcheck" in SERVICES[other]
        # Who waits for a service of a profile must be in it too, or do without.
        assert how.get("required") is False or SERVICES[other].get("profiles") in (None, SERVICES[name].get("profiles"))


def test_five_sites_start_by_themselves_and_a_sixth_on_request() -> None:
    assert [name for name in SITES if "profiles" not in SERVICES[name]] == [f"site-{number}" for number in range(1, 6)]
    assert {name for name in SERVICES if SERVICES[name].get("profiles") == ["extra"]} == {"site-6", "invitation"}
    assert {name for name in SERVICES if SERVICES[name].get("profiles") == ["monitoring"]} == {"prometheus", "grafana"}


def test_every_volume_and_network_that_is_named_is_made() -> None:
    named = {item for name in SERVICES for item in sources(name) if not item.startswith((".", "DATA"))}
    assert named == set(COMPOSE["volumes"])
    joined = {network for name in SERVICES for network in SERVICES[name]["networks"]}
    assert joined == set(COMPOSE["networks"])


def test_every_file_that_is_mounted_or_run_is_there() -> None:
    for name in SERVICES:
        # Paths of an included file are from its own folder.
        folder = MONITORING.parent if name in ("prometheus", "grafana") else ROOT
        for source in sources(name):
            assert not source.startswith("./") or (folder / source).exists()
        check = SERVICES[name].get("healthcheck", {}).get("test", [])
        for word in [*SERVICES[name].get("entrypoint", []), *SERVICES[name].get("command", []), *check]:
            if str(word).startswith("/opt/popmi/"):
                assert (ROOT / str(word).removeprefix("/opt/popmi/")).is_file()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_stops_at_the_first_fault_and_is_plain_sh(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/sh"
    assert "set -eu" in lines
    assert not re.search(r"\[\[|\bfunction\b|\blocal\b", script.read_text())


@pytest.mark.parametrize("place", ["deploy/Dockerfile", "deploy/dashboard/Dockerfile"])
def test_a_dockerfile_keeps_to_old_builders_and_ends_as_nobody(place: str) -> None:
    text = (ROOT / place).read_text()
    assert "syntax=" not in text
    assert "--mount" not in text
    assert "@sha256" not in text + (ROOT / "docker-compose.yml").read_text()
    steps = re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE)
    assert [rest for word, rest in steps if word == "USER"] == ["10001:10001"]
    # Code changes every day, dependencies seldom: nothing of the code lies below them.
    installed = text.index("image.lock" if "image.lock" in text else "pages.lock")
    assert text.index("requirements.lock") < installed < text.index("COPY popmi_core")


@pytest.mark.parametrize("place", ["deploy/Dockerfile", "deploy/dashboard/Dockerfile"])
def test_an_image_holds_no_more_than_it_needs(place: str) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    lines = re.findall(r"^COPY (?!--from)(.*)$", (ROOT / place).read_text(), re.MULTILINE)
    copied = {word for line in lines for word in line.split()[:-1]}
    needed = {word for word in copied if word != "deploy/compose/image_lock.sh"}
    assert needed == (kept if place == "deploy/Dockerfile" else kept - {"deploy/compose"})
    assert "deploy/compose" in kept
    assert kept & {".git", "tests", "benchmarks", "runs", "data"} == set()


def test_the_pages_image_takes_what_the_pages_ask_for_in_the_locks_versions_and_never_torch() -> None:
    text = (ROOT / "deploy/dashboard/Dockerfile").read_text()
    assert "--constraint requirements.lock --extra dashboard" in text
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*wanted["dependencies"], *wanted["optional-dependencies"]["dashboard"]]
    names = {re.split(r"[\[<>=]", item)[0].lower() for item in asked}
    assert names & {"torch", "flwr", "timm", "opacus", "popmi"} == set()
    locked = {line.partition("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert names <= locked


def test_prometheus_asks_the_pages_by_the_name_they_answer_to() -> None:
    asked = yaml.safe_load((ROOT / "deploy" / "monitoring" / "prometheus.yml").read_text())
    targets = [
        target for job in asked["scrape_configs"] for part in job["static_configs"] for target in part["targets"]
    ]
    assert targets == ["dashboard:8080"]
    assert "--metrics-name=dashboard" in SERVICES["dashboard"]["command"]
    assert "--published-on=127.0.0.1" in SERVICES["dashboard"]["command"]


def test_grafana_finds_its_source_and_its_dashboard_and_lets_nobody_change_them() -> None:
    folder = ROOT / "deploy" / "monitoring" / "grafana"
    source = yaml.safe_load((folder / "provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((folder / "provisioning/dashboards/popmi.yml").read_text())["providers"][0]
    mounts = dict(item.split(":")[:2] for item in SERVICES["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    environment = SERVICES["grafana"]["environment"]
    home = environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    dashboard = json.loads((folder / "dashboards" / Path(home).name).read_text())
    asked = {panel["datasource"]["uid"] for panel in dashboard["panels"]}
    asked |= {target["datasource"]["uid"] for panel in dashboard["panels"] for target in panel["targets"]}
    asked |= {item["datasource"]["uid"] for item in dashboard["templating"]["list"]}
    assert asked == {source["uid"]}
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
