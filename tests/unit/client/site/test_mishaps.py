"""What goes wrong in a hospital beside the known: rights, damaged files, settings half edited, old authorities."""

from __future__ import annotations

from pathlib import Path

import pytest
from site_parts import Authority, make_home, make_kit
from small_hospital import CLASSES, write_hospital
from typer.testing import CliRunner

from client.site import machine, run
from client.site.commands import app
from client.site.connection import target_of
from client.site.datacheck import check_data
from client.site.doctor import examine
from client.site.machine import data_is_there, folder_rights, key_rights
from client.site.network import certificate_dates, check_network
from client.site.run import check_ready
from popmi_core.data import read_site
from popmi_core.errors import DataError, SetupError


@pytest.fixture
def home(tmp_path):
    return make_home(tmp_path / "site")


@pytest.fixture
def closed(monkeypatch):
    """Make places refuse, as they refuse a user without rights; root, who often runs tests, is refused nowhere."""

    def close(*names: str) -> None:
        look = Path.iterdir

        def refused(path: Path):
            if path.name in names:
                raise PermissionError(13, "Permission denied", str(path))
            return look(path)

        monkeypatch.setattr(Path, "iterdir", refused)

    return close


def ran(home, *words):
    return CliRunner().invoke(app, [*words, "--home", str(home.folder)])


@pytest.mark.parametrize(
    "text", ["no certificate", "", "-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n", "ü"]
)
def test_a_damaged_authority_is_one_finding_and_the_machine_is_looked_at_all_the_same(home, text):
    home.ca.write_text(text)
    findings = {item.name: item for item in examine(home)}
    assert findings["certificate authority"].state == "failed"
    assert "holds no certificate in PEM form" in findings["certificate authority"].found
    assert "enrol KIT` again" in findings["certificate authority"].remedy
    assert findings["disk"].state


def test_a_missing_authority_is_a_finding_as_the_node_could_not_start(home):
    home.ca.unlink()
    findings = {item.name: item for item in examine(home)}
    assert "No such file" in findings["certificate authority"].found


@pytest.mark.parametrize("endpoint", ["localhost", "https://localhost:1", "localhost:", "a b:1"])
def test_an_endpoint_edited_wrongly_is_said_and_where(home, endpoint):
    text = home.config_file.read_text().replace("localhost:1", endpoint)
    home.config_file.write_text(text)
    with pytest.raises(SetupError, match=r"does not describe a site: endpoint"):
        home.config()
    done = ran(home, "doctor")
    assert done.exit_code == 1
    assert "endpoint" in done.output


@pytest.mark.parametrize(
    "proxy", ["http://", "http://:3128", "http://user:secret@proxy:99999", "http://[secret", "http://p:0"]
)
def test_a_proxy_without_host_or_port_is_refused_and_no_password_shown(proxy):
    with pytest.raises(SetupError, match=r"no usable host or port") as told:
        target_of("localhost:1", proxy)
    assert "secret" not in str(told.value)
    assert next(check_network("localhost:1", "", proxy, lambda: 0.0)).state == "failed"


def test_a_host_that_no_proxy_names_is_reached_directly_as_the_node_does(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "gateway.example")
    assert target_of("gateway.example:1", "http://proxy:1").proxy is None
    assert target_of("other.example:1", "http://proxy:1").proxy == "http://proxy:1"


def test_a_name_no_name_server_could_know_is_a_finding(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    *_, last = check_network(f"{'a' * 70}.example:1", "", None, lambda: 0.0)
    assert (last.name, last.state) == ("DNS", "failed")


def test_a_folder_the_service_may_not_write_is_a_finding(home, monkeypatch):
    assert folder_rights(home).state == "ok"
    monkeypatch.setattr(machine.os, "access", lambda path, _: path != home.audit.path)
    assert folder_rights(home).found == f"this user may not write audit.jsonl in {home.folder}"
    assert "chown -R" in folder_rights(home).remedy


def test_a_key_that_is_none_is_a_finding_and_a_good_one_shows_its_fingerprint(home):
    assert "fingerprint SHA256:" in key_rights(home).found
    home.key.write_text("half")
    assert key_rights(home).state == "failed"
    assert "damaged" in key_rights(home).found


def test_a_key_this_user_cannot_read_is_said_before_anything_starts(home, monkeypatch):
    monkeypatch.setattr(run.os, "access", lambda path, _: path != home.key)
    with pytest.raises(SetupError, match=r"cannot be read by this user"):
        check_ready(home)


def test_class_folders_that_may_not_be_opened_are_a_finding_and_a_reason(home, tmp_path, closed):
    folder = tmp_path / "Meier"
    for name in ("mel", "nv"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.png").touch()
    closed("nv")
    told = home.config().model_copy(update={"data": str(folder)})
    assert data_is_there(told).found == "a folder or file inside cannot be read (Permission denied)"
    report = check_data(str(folder), CLASSES, None, 8)
    assert report.verdict == "refused"
    assert "cannot be read (Permission denied)" in report.reasons[0]
    assert "Meier" not in report.model_dump_json()


def test_pictures_that_may_not_be_read_are_told_as_that(tmp_path, monkeypatch):
    folder = write_hospital(tmp_path)
    look = Path.is_file

    def refused(path: Path) -> bool:
        if path.parent.name == "images":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(DataError, match=r"image file may not be read by this user \(rows 2, 3, 4, 5 and 40 more\)"):
        read_site(folder, image_size=8, classes=CLASSES)


def test_a_label_map_inside_the_specification_is_looked_for_too(home, tmp_path):
    folder = write_hospital(tmp_path)
    told = home.config().model_copy(update={"data": f"{folder}#labels={tmp_path / 'gone.csv'}"})
    assert data_is_there(told).found == "label map: there is nothing at the path of site.toml"


def test_an_authority_that_is_out_of_its_dates_is_told_with_them():
    authority = Authority()
    later = authority.certificate.not_valid_after_utc.timestamp() + 3 * 86400
    assert certificate_dates(authority.certificate, later).found.startswith("expired 3 days ago")


def test_a_dry_run_that_fails_stands_in_the_log_and_a_wrong_place_costs_no_training(tmp_path):
    home = make_home(tmp_path / "site", make_kit(), data=str(tmp_path / "nothing"))
    done = ran(home, "dry-run", "--out", str(tmp_path / "no" / "list.json"))
    assert "there is no folder" in str(done.exception)
    assert list(home.audit.entries())[-1].event == "site.enrolled"
    done = ran(home, "dry-run")
    assert isinstance(done.exception, SetupError)
    entry = list(home.audit.entries())[-1]
    assert entry.event == "dry_run.failed"
    assert "there are no images" in entry.details["why"]
