"""`popmi server` as the operator types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import server.control.flower
import server.control.running
from popmi_core.deployment.enrolment import read_enrolment
from popmi_core.errors import AuditError, ConfigError, PopmiError, SetupError
from server.control.commands import app
from server.control.home import ServerHome

ROOT = Path(__file__).parents[4]


@pytest.fixture
def home(invited):
    return invited


@pytest.fixture
def popmi(home, control, monkeypatch):
    """Return a function that runs a command at the home, with a SuperLink that only remembers."""
    monkeypatch.setattr(server.control.flower, "FlowerControl", lambda *_: control)
    monkeypatch.setattr("server.control.status.gateway_answers", lambda *_: True)

    def run(*words, answer=None, place=home.folder):
        done = CliRunner().invoke(app, list(words), input=answer, env={"POPMI_SERVER_HOME": str(place)})
        if isinstance(done.exception, PopmiError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_a_home_is_made_and_says_what_is_next(popmi, tmp_path):
    said = popmi(
        "init", "--project", "P", "--endpoint", "a.example:443", "--name", "b.example", "--name", "10.0.0.9",
        "--classes", "mel, nv", "--superlink", "superlink:18000", place=tmp_path / "new",
    )  # fmt: skip
    assert "Next: popmi server add-site NAME" in said
    settings = ServerHome(tmp_path / "new").settings()
    assert (settings.names, settings.classes) == (("b.example", "10.0.0.9"), ("mel", "nv"))
    assert settings.superlink == "superlink:18000"


def test_a_home_needs_a_project_and_an_endpoint(tmp_path):
    done = CliRunner().invoke(app, ["init", "--home", str(tmp_path)])
    assert done.exit_code == 2
    assert "--project" in done.output


@pytest.mark.parametrize(
    "words",
    [("stop",), ("resume",), ("status",), ("sites",), ("export", "r", "r.zip"), ("revoke", "a", "--reason", "x"),
     ("start",), ("renew",), ("add-site", "a"), ("confirm", "a.json"), ("up",)],
    ids=lambda words: words[0],
)  # fmt: skip
def test_every_command_says_that_a_folder_is_no_home(popmi, tmp_path, words):
    with pytest.raises(SetupError, match=r"is no server's home: it has no server\.toml"):
        popmi(*words, place=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("endpoint", "classes", "why"),
    [
        ("a.example", "mel,nv", "endpoint: String should match pattern"),
        ("a.example:99999", "mel,nv", "endpoint: Value error, the port must be 1 to 65535"),
        ("a.example:443", "mel", "classes: Tuple should have at least 2 items"),
    ],
)
def test_what_cannot_be_a_server_is_said_in_one_line(popmi, tmp_path, endpoint, classes, why):
    with pytest.raises(SetupError, match=f"this describes no server: {why}") as error:
        popmi("init", "--project", "P", "--endpoint", endpoint, "--classes", classes, place=tmp_path / "new")
    assert "\n" not in str(error.value)


def test_a_site_comes_in_by_its_fingerprint(popmi, enrolment_of):
    assert "charite.zip" in popmi("add-site", "charite")
    file = enrolment_of("charite")
    with pytest.raises(SetupError, match="is not the one the site read out"):
        popmi("confirm", str(file), "--fingerprint", "SHA256:guessed")
    said = popmi("confirm", str(file), "--fingerprint", f" {read_enrolment(file).fingerprint} ")
    assert "enrolled as node 1001" in said


def test_without_a_fingerprint_the_operator_is_asked(popmi, enrolment_of, audited):
    popmi("add-site", "charite")
    file = enrolment_of("charite")
    with pytest.raises(SetupError, match="is not the one the site read out"):
        popmi("confirm", str(file), answer="n\n")
    said = popmi("confirm", str(file), answer="y\n")
    assert read_enrolment(file).fingerprint in said
    assert audited("site.confirmed")["how"] == "asked at the terminal"


def test_sites_and_status_as_json_are_json_only(popmi, enrolment_of):
    popmi("add-site", "charite")
    assert json.loads(popmi("sites", "--json"))["sites"][0]["state"] == "invited"
    assert json.loads(popmi("status", "--json"))["superlink"] is True
    assert "charite" in popmi("sites")
    assert "SuperLink answers" in popmi("status")


def test_revoking_wants_a_reason(popmi, enrolment_of, control):
    popmi("add-site", "charite")
    popmi("confirm", str(enrolment_of("charite")), answer="y\n")
    assert CliRunner().invoke(app, ["revoke", "charite"]).exit_code == 2
    assert "charite is cut off" in popmi("revoke", "charite", "--reason", "stolen")
    assert control.known_nodes == []


def test_a_run_from_start_to_resume(popmi, home):
    assert "run first is wanted" in popmi("start", "--name", "first")
    assert "rests after the round in flight" in popmi("stop")
    assert "run first goes on" in popmi("resume")
    assert home.wanted().state == "going"


def test_the_log_is_verified_against_a_head_kept_elsewhere(popmi, home):
    head = popmi("audit", "verify").split("head ")[1].strip()
    popmi("start", "--name", "first")
    assert "lines, whole" in popmi("audit", "verify", "--head", head)
    lines = home.audit_file.read_text().splitlines(keepends=True)
    home.audit_file.write_text("".join(lines[:1]))
    with pytest.raises(AuditError, match="cut off or written anew"):
        popmi("audit", "verify", "--head", head)


def test_the_log_is_shown_newest_last(popmi, home):
    popmi("start", "--name", "first")
    home.note("site.quarantined", site="north", reason="\x1b[2Jgone\nall is well")
    run, fault = popmi("audit", "show", "--last", "2").splitlines()
    assert "run.wanted" in run
    assert "reason= [2Jgone all is well" in fault
    assert json.loads(popmi("audit", "show", "--last", "1", "--json"))["event"] == "site.quarantined"


def test_a_line_that_was_not_finished_is_told(popmi, home):
    with home.audit_file.open("a") as file:
        file.write('{"number"')
    assert "9 bytes of a line that was not finished follow" in popmi("audit", "verify")


@pytest.mark.parametrize("left", ["", '{"number": 1'])
def test_a_log_that_was_emptied_is_not_called_whole(popmi, home, left):
    home.audit_file.write_text(left)
    with pytest.raises(AuditError, match=r"audit.jsonl is empty, expected the line of this server's making"):
        popmi("audit", "verify")


def test_a_log_that_is_gone_is_missed(popmi, home):
    home.audit_file.unlink()
    with pytest.raises(AuditError, match="is missing, expected a file"):
        popmi("audit", "verify")


def test_a_copy_of_an_empty_log_without_its_home_is_called_empty(popmi, tmp_path):
    (tmp_path / "audit.jsonl").touch()
    assert "the log is empty" in popmi("audit", "verify", place=tmp_path)


def test_an_export_tells_its_file(popmi, home, believable, tmp_path):
    popmi("start", "--name", "first")
    believable.write_run(home.run_folder("first") / "record.sqlite", name="first", rounds=2)
    assert "checksums in SHA256SUMS" in popmi("export", "first", str(tmp_path / "out.zip"))


def test_a_stolen_key_is_cut_off_without_an_audit_log_and_the_operator_is_told(popmi, enrolment_of, control, home):
    popmi("add-site", "charite")
    popmi("confirm", str(enrolment_of("charite")), answer="y\n")
    home.audit_file.unlink()
    home.audit_file.mkdir()
    with pytest.raises(AuditError, match="charite IS cut off"):
        popmi("revoke", "charite", "--reason", "stolen")
    assert control.known_nodes == []


def test_a_home_is_renewed_and_its_settings_stay(popmi, home):
    before = home.settings_file.read_bytes()
    home.certificate.unlink()
    said = popmi("renew", "--classes", "mel, nv")
    assert "server of Melanoma; classes mel, nv" in said
    assert "certificate good for 36" in said
    assert home.certificate.exists()
    assert home.settings_file.read_bytes() == before


def test_up_gives_every_part_its_place(popmi, monkeypatch):
    seen = []
    monkeypatch.setattr(server.control.running, "run_all", lambda home, places: seen.append(places))
    monkeypatch.setattr(server.control.running, "run_part", lambda home, part, places: seen.append((part, places)))
    popmi("up", "--host", "10.0.0.1", "--port", "444", "--confirm-from", "in", "--refused-file", "/x/y")
    popmi("up", "--only", "dashboard", "--host", "0.0.0.0", "--port", "8081")
    popmi("up", "--only", "superlink", "--internal-host", "0.0.0.0")
    assert (seen[0].host, seen[0].port, seen[0].dashboard_host) == ("10.0.0.1", 444, "127.0.0.1")
    assert seen[0].confirm_from.is_absolute()
    assert str(seen[0].refused) == "/x/y"
    part, places = seen[1]
    assert (part, places.dashboard_host, places.dashboard_port) == ("dashboard", "0.0.0.0", 8081)
    part, places = seen[2]
    assert (part, places.superlink, places.host, places.port) == ("superlink", "0.0.0.0", "0.0.0.0", None)


def test_a_slim_installation_says_what_is_missing(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "server.control.flower", None)
    done = CliRunner().invoke(app, ["sites", "--home", str(home.folder)])
    assert isinstance(done.exception, SetupError | ConfigError)
    assert "Install popmi[server]" in str(done.exception)


def test_help_loads_neither_torch_nor_flower_nor_the_web():
    code = (
        "import sys; from popmi_core.cli.main import commands; from typer.testing import CliRunner;"
        "out = CliRunner().invoke(commands, ['server', '--help']).output; assert 'add-site' in out, out;"
        "print(sorted({'torch', 'flwr', 'starlette', 'uvicorn', 'cryptography', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
