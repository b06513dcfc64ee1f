"""`docker compose up --build`: a run that starts by itself, and containers that reach only what they may."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]
SITES = {"site-1": "phantom_contact", "site-2": "phantom_polarised", "site-3": "phantom_ruler"}
OWN = ("dashboard", "runner", "keeper", "superlink", "gateway", *SITES)
MODEL = "/home/popmi/server/runs/compose/models/round-002.safetensors"


@pytest.fixture(scope="session")
def run(stage: Any) -> dict[str, Any]:
    """The run's head, once it has ended."""
    head = stage.finished()
    assert head["status"] == "finished", head
    return dict(head)


def reaches(stage: Any, service: str, host: str, port: int) -> bool:
    code = f"""
import socket
try:
    socket.create_connection(({host!r}, {port}), 4).close()
    print("reached")
except OSError as error:
    print(type(error).__name__)
"""
    return bool(stage.python(service, code) == "reached")


def addresses(stage: Any, service: str) -> list[str]:
    """Return a container's own addresses, one a network."""
    return stage.python(
        service,
        "import socket; print(*sorted({a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None)}))",
    ).split()


def test_the_run_starts_by_itself_and_finishes_every_round_with_every_site(stage: Any, run: dict[str, Any]) -> None:
    assert (run["name"], run["rounds_done"], run["rounds_planned"]) == ("compose", 2, 2)
    assert sorted(run["sites"]) == sorted(SITES.values())
    assert run["phantom"] is True
    rounds = [row for row in stage.api(f"/runs/{run['key']}/rounds") if row["server_round"] > 0]
    assert [(row["server_round"], row["outcome"]) for row in rounds] == [(1, "ok"), (2, "ok")]
    rows = stage.api(f"/runs/{run['key']}/sites")
    trained = {(row["server_round"], row["site"], row["outcome"]) for row in rows if row["phase"] == "train"}
    assert trained == {(number, site, "ok") for number in (1, 2) for site in SITES.values()}
    assert all(row["num_examples"] > 0 and row["bytes_up"] > 0 for row in rows if row["phase"] == "train")


def test_the_model_in_the_volume_is_the_one_in_the_record(stage: Any, run: dict[str, Any]) -> None:
    code = f"import hashlib, pathlib; print(hashlib.sha256(pathlib.Path({MODEL!r}).read_bytes()).hexdigest())"
    recorded = stage.api(f"/runs/{run['key']}/rounds")[-1]["model_sha256"]
    assert stage.python("keeper", code) == recorded
    # It is a whole model, not only a file with the right hash.
    code = f"import safetensors.torch as s; print(sum(t.numel() for t in s.load_file({MODEL!r}).values()))"
    assert int(stage.python("keeper", code)) > 10_000


def test_the_pages_answer_on_this_machine_and_to_its_names_only(stage: Any, run: dict[str, Any]) -> None:
    assert b"compose" in stage.ask("/")
    assert b"compose" in stage.ask("/sites")
    assert b"finished" in stage.ask(f"/runs/{run['key']}")
    request = urllib.request.Request(f"http://127.0.0.1:{stage.port}/", headers={"Host": "dashboard:8080"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=10)
    ports = [port for item in stage.containers() for port in item["Publishers"] or () if port["PublishedPort"]]
    assert {port["URL"] for port in ports} == {"127.0.0.1"}


@pytest.mark.parametrize("service", OWN)
def test_every_container_is_nobody_on_a_disk_it_cannot_write(stage: Any, run: dict[str, Any], service: str) -> None:
    code = """
import os
print(os.getuid(), os.geteuid(), os.getgid())
for path in ("/", "/opt/popmi", "/opt/venv/bin", "/home/popmi", "/etc", "/usr/local/bin", "/runs"):
    try:
        open(os.path.join(path, "probe"), "w")
        print("wrote into", path)
    except OSError:
        pass
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["CapEff"], 16), int(status["CapBnd"], 16), int(status["NoNewPrivs"]))
"""
    assert stage.python(service, code).splitlines() == ["10001 10001 10001", "0 0 1"]


def test_a_site_reaches_the_gateway_and_nobody_else(stage: Any, run: dict[str, Any]) -> None:
    assert reaches(stage, "site-1", "gateway", 8443)
    others = {
        "superlink": 8000,
        "database": 5432,
        "dashboard": 8080,
        "site-2": 8443,
        "site-3": 8443,
        "prometheus": 9090,
    }
    assert [name for name, port in others.items() if reaches(stage, "site-1", name, port)] == []
    # Names may merely not be known there: by their addresses as well.
    for name in ("superlink", "dashboard", "site-2", "runner", "keeper"):
        found = addresses(stage, name)
        assert found
        for address in found:
            assert not reaches(stage, "site-1", address, others.get(name, 8443)), (name, address)


def test_a_site_reaches_nothing_outside(stage: Any, run: dict[str, Any]) -> None:
    # A public address, and this machine's pages by the bridge's own.
    assert not reaches(stage, "site-1", "1.1.1.1", 443)
    own = next(address for address in addresses(stage, "site-1") if "." in address)
    bridge = own.rsplit(".", 1)[0] + ".1"
    assert not reaches(stage, "site-1", bridge, stage.port)


def test_the_gateway_passes_fleet_and_health_only(stage: Any, run: dict[str, Any]) -> None:
    code = """
import ssl, urllib.error, urllib.request as u
trust = ssl.create_default_context(cafile="/home/popmi/site/ca.pem")
for path in ("/health", "/v1/control/list-runs", "/v1/runtime/pull-app-messages", "/", "/v1/fleet/../control/x"):
    try:
        request = u.Request("https://gateway:8443" + path, data=None if path in ("/", "/health") else b"{}")
        print(path, u.urlopen(request, context=trust, timeout=5).status)
    except urllib.error.HTTPError as error:
        print(path, error.code)
"""
    told = dict(line.rsplit(" ", 1) for line in stage.python("site-1", code).splitlines())
    assert told.pop("/health") == "200"
    assert set(told.values()) <= {"403", "404"}


def test_a_site_sees_its_own_kit_and_images_only(stage: Any, run: dict[str, Any]) -> None:
    code = "import os; print(*sorted(os.listdir('/handover')), os.path.exists('/home/popmi/server/pki'))"
    for site in SITES:
        assert stage.python(site, code) == "enrolment.json kit.zip False"
    with_key = stage.python("site-1", "import os; print(oct(os.stat('/home/popmi/site/node.key').st_mode & 0o777))")
    assert with_key == "0o600"


def test_what_was_done_is_in_whole_logs(stage: Any, run: dict[str, Any]) -> None:
    assert "lines, whole; head" in stage.compose("exec", "-T", "keeper", "popmi", "server", "audit", "verify")
    assert stage.compose("exec", "-T", "site-1", "popmi", "site", "audit", "verify")
    log = stage.compose("exec", "-T", "keeper", "cat", "/home/popmi/server/audit.jsonl")
    assert "nobody compared the fingerprint" in log
    assert '"run.finished"' in log


def test_every_container_that_runs_on_says_that_it_is_well(stage: Any, run: dict[str, Any]) -> None:
    def all_well() -> bool:
        running = {item["Service"]: item["Health"] for item in stage.containers() if item["State"] == "running"}
        return running.keys() == {*OWN, "database"} and set(running.values()) == {"healthy"}

    assert stage.until("every container is well", all_well)
    ended = [(item["Service"], item["ExitCode"]) for item in stage.containers() if item["State"] != "running"]
    assert ended == [("certificates", 0)]


def test_the_gateway_finds_its_certificate_and_no_other_secret_of_the_centre(stage: Any, run: dict[str, Any]) -> None:
    code = (
        "import pathlib; print(*sorted(str(p) for p in pathlib.Path('/home/popmi/server').rglob('*') if p.is_file()))"
    )
    here = "/home/popmi/server"
    needed = [f"{here}/{name}" for name in ("pki/ca.pem", "pki/server.key", "pki/server.pem", "server.toml")]
    assert stage.python("gateway", code).split() == needed
    assert stage.python("gateway", "import os; print(os.path.exists('/password/password'))") == "False"


def test_the_database_lets_in_who_reads_its_password_and_nobody_else(stage: Any, run: dict[str, Any]) -> None:
    code = """
import psycopg
for words in ({}, {"password": "popmi"}, {"passfile": "/nowhere"}):
    try:
        psycopg.connect("host=database dbname=popmi user=popmi", **words).close()
        print("in")
    except psycopg.OperationalError as error:
        print("no password" if "no password" in str(error) else "refused")
"""
    assert stage.python("keeper", code).splitlines() == ["in", "refused", "no password"]
    readers = ("keeper", "runner", "dashboard")
    code = "import os; print(os.path.exists('/password'), os.access('/password/password', os.R_OK))"
    for service in OWN:
        assert stage.python(service, code).split()[1] == str(service in readers), service
    # Nor does the engine tell it to whoever may ask it about containers.
    described = subprocess.run(
        ["docker", "inspect", *(item["ID"] for item in stage.containers())], capture_output=True, text=True, check=True
    )
    assert stage.python("keeper", "print(open('/password/password').read())") not in described.stdout
