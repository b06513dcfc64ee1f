"""Enrolling a second time, with the wrong kit, on a full disk, with a damaged key: nothing is lost unseen."""

from __future__ import annotations

import zipfile

import pytest
from site_parts import Authority, make_home, make_kit
from typer.testing import CliRunner

from client.site import enrol as enrolling
from client.site.commands import app
from client.site.enrol import enrol, public_half, write_key
from client.site.home import SiteHome
from popmi_core.deployment import fingerprint, read_kit
from popmi_core.deployment.enrolment import write_kit
from popmi_core.errors import SetupError


def ran(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_enrolling_again_keeps_label_map_and_proxy_and_says_so(tmp_path):
    home = SiteHome(tmp_path / "site")
    words = tmp_path / "words.csv"
    words.write_text("Muttermal,nv\n")
    enrol(home, make_kit(), data="phantom:a", label_map=words, proxy="http://proxy:3128")
    write_kit(tmp_path / "north.zip", make_kit())
    done = ran("enrol", tmp_path / "north.zip", "--home", home.folder)
    assert done.exit_code == 0, done.output
    assert (home.config().label_map, home.config().proxy) == (str(words), "http://proxy:3128")
    assert f"The label map stays: {words}" in done.output
    assert "The proxy of site.toml stays." in done.output


def test_the_wrong_kit_costs_a_site_no_key(tmp_path):
    home = make_home(tmp_path / "site")
    before = home.key.read_bytes()
    write_kit(tmp_path / "south.zip", make_kit(site="south"))
    done = ran("enrol", tmp_path / "south.zip", "--new-key", "--yes", "--home", home.folder)
    assert isinstance(done.exception, SetupError)
    assert home.key.read_bytes() == before
    assert not list(home.folder.glob("*.old"))


def test_a_key_without_a_description_is_set_aside_when_asked(tmp_path):
    home = SiteHome(tmp_path / "site")
    home.folder.mkdir()
    home.key.write_text("somebody's")
    write_kit(tmp_path / "north.zip", make_kit())
    done = ran("enrol", tmp_path / "north.zip", "--data", "phantom:a", "--new-key", "--yes", "--home", home.folder)
    assert done.exit_code == 0, done.output
    assert [path.read_text() for path in home.folder.glob("node-*.key.old")] == ["somebody's"]


def test_a_disk_that_fills_up_leaves_no_half_of_a_key(tmp_path, monkeypatch):
    home = SiteHome(tmp_path / "site")
    whole = enrolling.replace_atomically

    def full(path, payload):
        if path == home.key:
            raise OSError(28, "No space left on device")
        whole(path, payload)

    monkeypatch.setattr(enrolling, "replace_atomically", full)
    with pytest.raises(SetupError, match=r"No space left on device\. Check its owner and its room"):
        enrol(home, make_kit(), data="phantom:a")
    assert not home.key.exists()
    monkeypatch.undo()
    assert enrol(home, make_kit(), data="phantom:a").new_key


def test_a_damaged_key_is_told_and_not_enrolled_with_another_fingerprint(tmp_path):
    home = make_home(tmp_path / "site")
    home.key.write_bytes(home.key.read_bytes()[:200])
    with pytest.raises(SetupError, match=r"no private key in OpenSSH's form: it was damaged.*--new-key"):
        enrol(home, make_kit(), data="phantom:a")


def test_the_fingerprint_is_the_private_keys_whatever_lies_beside_it(tmp_path):
    home = make_home(tmp_path / "site")
    right = home.public_key.read_text()
    home.public_key.unlink()
    assert enrol(home, make_kit(), data="phantom:a").fingerprint == fingerprint(right)
    home.public_key.write_text(make_home(tmp_path / "other").public_key.read_text())
    assert public_half(home) == right.strip()
    assert home.public_key.read_text() == right


def test_a_private_file_is_never_overwritten(tmp_path):
    home = make_home(tmp_path / "site")
    with pytest.raises(FileExistsError):
        write_key(home)


def test_an_authority_the_hospital_added_is_kept_aside_and_told_of(tmp_path):
    kit = make_kit(ca_pem=Authority().pem)
    home = make_home(tmp_path / "site", kit)
    assert enrol(home, kit, data="phantom:a").notes == ()
    added = kit.ca_pem + Authority("our device").pem
    home.ca.write_text(added)
    notes = enrol(home, kit, data="phantom:a").notes
    assert len(notes) == 1
    assert "must be added again" in notes[0]
    assert (home.folder / "ca.pem.old").read_text() == added
    assert home.ca.read_text() == kit.ca_pem


def test_a_site_may_lie_in_a_folder_with_an_odd_name(tmp_path):
    place = tmp_path / 'Klinik für Haut\'s "Bilder" #1'
    home = make_home(place / "site", data=str(place / "a=b [c]"))
    assert home.config().data == str(place / "a=b [c]")
    assert ran("audit", "verify", "--home", home.folder).exit_code == 0


def test_a_kit_whose_members_cannot_be_decoded_is_told(tmp_path):
    write_kit(tmp_path / "kit.zip", make_kit())
    content = bytearray((tmp_path / "kit.zip").read_bytes())
    # The flag for encryption, in the member's own header and in the directory's.
    content[6] |= 1
    with zipfile.ZipFile(tmp_path / "kit.zip") as file:
        content[file.start_dir + 8] |= 1
    (tmp_path / "kit.zip").write_bytes(content)
    with pytest.raises(SetupError, match="is no site kit of POPMI"):
        read_kit(tmp_path / "kit.zip")


def test_a_kit_holds_no_private_key(tmp_path):
    write_kit(tmp_path / "kit.zip", make_kit(ca_pem=Authority().pem))
    with zipfile.ZipFile(tmp_path / "kit.zip") as file:
        assert sorted(file.namelist()) == ["README.txt", "ca.pem", "kit.json"]
        assert not any(b"PRIVATE" in file.read(name) for name in file.namelist())
