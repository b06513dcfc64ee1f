"""The doctor's look at the machine: room, memory, versions, key, data, approval."""

from __future__ import annotations

import pytest
from site_parts import make_home

from client.site import machine
from client.site.approval import Approvals
from client.site.machine import data_is_there, disk_room, key_rights, memory_left, versions
from popmi_core import __version__


@pytest.fixture
def home(tmp_path):
    return make_home(tmp_path / "site")


def with_data(home, data: str, label_map: str | None = None):
    return home.config().model_copy(update={"data": data, "label_map": label_map})


def test_little_room_on_the_disk_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "LITTLE_DISK", 1e18)
    assert disk_room(tmp_path).state == "failed"
    monkeypatch.setattr(machine, "LITTLE_DISK", 0.0)
    assert disk_room(tmp_path).state == "ok"


def test_memory_is_what_the_kernel_says(tmp_path):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal: 99 kB\nMemAvailable:    8000000 kB\n")
    assert memory_left(told).found == "8.2 GB free"
    told.write_text("MemAvailable:    1000000 kB\n")
    assert memory_left(told).state == "warning"
    assert memory_left(tmp_path / "no").state == "warning"


def test_another_version_than_the_kits_fails_with_the_command_that_mends_it():
    findings = {item.name: item for item in versions("9.9")}
    assert findings["POPMI"].state == "failed"
    assert findings["POPMI"].remedy.endswith('pip install "popmi[site]==9.9".')
    assert {item.state for item in versions(__version__)} == {"ok"}


def test_a_missing_or_other_package_fails(monkeypatch):
    monkeypatch.setattr(machine, "installed", {"flwr": "1.30.0"}.get)
    findings = {item.name: item for item in versions(__version__)}
    assert findings["flwr"].found == "1.30.0, expected 1.41.0"
    assert findings["torch"].found == "not installed"


def test_a_package_that_is_not_there_has_no_version():
    assert machine.installed("no-such-package-anywhere") is None


def test_a_key_others_can_read_fails(home):
    assert key_rights(home).state == "ok"
    home.key.chmod(0o640)
    assert key_rights(home).found == "others can read it (mode 0640, expected 0600)"
    home.key.unlink()
    assert key_rights(home).state == "failed"


def test_data_must_be_there_readable_and_of_a_known_shape(home, tmp_path):
    assert data_is_there(home.config()).state == "warning"
    assert data_is_there(with_data(home, str(tmp_path / "no"))).found == "there is nothing at the path of site.toml"
    (tmp_path / "empty").mkdir()
    assert data_is_there(with_data(home, str(tmp_path / "empty"))).found == "it is there, but of no shape POPMI knows"
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "labels.csv").write_text("image,label\n")
    assert data_is_there(with_data(home, str(tmp_path / "north"))).state == "ok"
    assert data_is_there(with_data(home, str(tmp_path))).found == "it holds several sites"
    missing = data_is_there(with_data(home, str(tmp_path / "north"), str(tmp_path / "words.csv")))
    assert missing.found == "label map: there is nothing at the path of site.toml"


def test_a_folder_this_user_may_not_read_is_told(home, tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    assert data_is_there(with_data(home, str(tmp_path / "closed"))).found == "this user may not read it"


def test_approved_code_is_none_then_waiting_then_there(home):
    approvals = Approvals(home)
    assert machine.approved_code(home).found == "none yet"
    code = approvals.keep({"client/app.py": b"x"})
    assert machine.approved_code(home).found == f"{code[:12]} waits for approval"
    approvals.approve(code)
    assert machine.approved_code(home).found == code[:12]
    home.approved.write_text("[")
    assert machine.approved_code(home).state == "failed"
