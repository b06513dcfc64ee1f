"""Enrolling: a key that is made here, shown once, and never overwritten."""

from __future__ import annotations

import json
import stat
import tomllib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from site_parts import CLASSES, make_home, make_kit
from typer.testing import CliRunner

from client.site.commands import app
from client.site.enrol import enrol, set_key_aside
from client.site.home import SiteHome
from popmi_core.cli.main import commands
from popmi_core.deployment import verify_log
from popmi_core.deployment.enrolment import read_enrolment, write_kit
from popmi_core.errors import SetupError


@pytest.fixture
def kit_file(tmp_path):
    write_kit(tmp_path / "north.zip", make_kit())
    return tmp_path / "north.zip"


def ran(*words, **more):
    return CliRunner().invoke(app, [str(word) for word in words], **more)


def test_the_key_is_one_flowers_node_loads_and_only_its_owner_reads(tmp_path):
    home = make_home(tmp_path / "site")
    key = load_ssh_private_key(home.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    assert {stat.S_IMODE(path.stat().st_mode) for path in (home.key, home.secret)} == {0o600}
    assert len(home.secret.read_bytes()) == 32


def test_the_file_for_the_operator_holds_the_public_half_only(tmp_path):
    home = make_home(tmp_path / "site")
    file = home.folder / "north.enrolment.json"
    enrolment = read_enrolment(file)
    assert (enrolment.project, enrolment.site) == ("moles", "north")
    assert enrolment.public_key == home.public_key.read_text().strip()
    assert enrolment.fingerprint.startswith("SHA256:")
    assert "PRIVATE" not in file.read_text()


def test_the_command_prints_the_fingerprint_and_what_to_do_next(tmp_path, kit_file):
    done = ran("enrol", kit_file, "--data", "phantom:phantom_slide", "--home", tmp_path / "site")
    assert done.exit_code == 0, done.output
    fingerprint = read_enrolment(tmp_path / "site" / "north.enrolment.json").fingerprint
    assert f"Fingerprint: {fingerprint}" in done.output
    assert "by telephone" in done.output
    described = tomllib.loads((tmp_path / "site" / "site.toml").read_text())
    assert described["data"] == "phantom:phantom_slide"
    assert tuple(described["classes"]) == CLASSES


def test_enrolling_again_keeps_the_key_and_takes_the_new_description(tmp_path, kit_file):
    ran("enrol", kit_file, "--data", "phantom:a", "--home", tmp_path / "site")
    before = (tmp_path / "site" / "node.key").read_bytes()
    done = ran("enrol", kit_file, "--data", "phantom:b", "--home", tmp_path / "site")
    assert "The key that was here stays" in done.output
    home = SiteHome(tmp_path / "site")
    assert home.key.read_bytes() == before
    assert home.config().data == "phantom:b"
    done = ran("enrol", kit_file, "--home", tmp_path / "site")
    assert home.config().data == "phantom:b"


def test_a_new_key_is_asked_about_and_the_old_one_kept_aside(tmp_path, kit_file):
    home = make_home(tmp_path / "site")
    before = home.key.read_bytes()
    assert ran("enrol", kit_file, "--new-key", "--home", home.folder, input="n\n").exit_code == 1
    assert home.key.read_bytes() == before
    done = ran("enrol", kit_file, "--new-key", "--home", home.folder, input="y\n")
    assert done.exit_code == 0, done.output
    assert home.key.read_bytes() != before
    assert [path.read_bytes() for path in home.folder.glob("node-*.key.old")] == [before]
    assert {"site.enrolled", "key.set_aside"} <= {entry.event for entry in home.audit.entries()}
    verify_log(home.audit.path)


def test_without_a_key_nothing_is_set_aside(tmp_path):
    assert set_key_aside(SiteHome(tmp_path)) is None


def test_a_kit_of_another_site_does_not_take_over_a_folder(tmp_path):
    home = make_home(tmp_path / "site")
    with pytest.raises(SetupError, match="is site north of project moles; the kit is for site south"):
        enrol(home, make_kit(site="south"), data="phantom:a")


def test_a_key_of_unknown_origin_is_not_overwritten(tmp_path):
    home = SiteHome(tmp_path)
    home.key.write_text("somebody's")
    with pytest.raises(SetupError, match="it is not overwritten"):
        enrol(home, make_kit(), data="phantom:a")
    assert home.key.read_text() == "somebody's"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "site").write_text("a file, no folder")
    with pytest.raises(SetupError, match="cannot write"):
        enrol(SiteHome(tmp_path / "site"), make_kit(), data="phantom:a")


def test_missing_data_and_a_missing_label_map_are_said_at_once(tmp_path, kit_file):
    done = ran("enrol", kit_file, "--home", tmp_path / "site")
    assert isinstance(done.exception, SetupError)
    assert "--data is missing" in str(done.exception)
    done = ran("enrol", kit_file, "--data", "x", "--label-map", tmp_path / "no.csv", "--home", tmp_path / "site")
    assert "there is no label map" in str(done.exception)
    assert not (tmp_path / "site").exists()


def test_a_folder_that_is_no_site_and_damaged_descriptions_are_refused(tmp_path):
    home = SiteHome(tmp_path / "site")
    with pytest.raises(SetupError, match="is no site"):
        home.config()
    home = make_home(tmp_path / "site")
    home.config_file.write_text("project = ")
    with pytest.raises(SetupError, match="is not TOML"):
        home.config()
    home.config_file.write_text('project = "p"\nsite = "s"\nsurprise = 1\n')
    with pytest.raises(SetupError, match="surprise"):
        home.config()
    home.kit_file.write_text("{}")
    with pytest.raises(SetupError, match=r"kit\.json is missing or no kit"):
        home.kit()


def test_what_the_app_is_told_of_the_site_names_its_words_before_its_classes(tmp_path):
    labels = tmp_path / "words.csv"
    labels.write_text("Muttermal,nv\n")
    home = SiteHome(tmp_path / "site")
    enrol(home, make_kit(), data=f"{tmp_path}/images#classes=mel,nv", label_map=labels)
    told = home.node_config(home.config())
    assert told == {
        "site": "north",
        "data": f"{tmp_path}/images#labels={labels}#classes=mel,nv",
        "state": str(home.folder / "state"),
    }


def test_a_relative_path_is_kept_as_the_place_it_is_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = make_home(tmp_path / "site", data="images#part=north")
    assert home.config().data == f"{tmp_path / 'images'}#part=north"


def test_the_home_comes_from_the_environment_when_nobody_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("POPMI_SITE_HOME", str(tmp_path / "there"))
    assert SiteHome().folder == tmp_path / "there"


def test_the_whole_command_knows_the_site_and_keeps_the_audit_log(tmp_path):
    home = make_home(tmp_path / "site")
    done = CliRunner().invoke(commands, ["site", "audit", "verify", "--home", str(home.folder)])
    assert done.exit_code == 0, done.output
    assert "1 lines, whole. Head: " in done.output
    head = done.output.split()[-1]
    assert ran("audit", "verify", "--head", head, "--home", home.folder).exit_code == 0
    shown = ran("audit", "show", "--json", "--home", home.folder)
    assert json.loads(shown.output)["event"] == "site.enrolled"
    assert "site.enrolled" in ran("audit", "show", "--home", home.folder).output
