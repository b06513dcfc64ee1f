"""The server's home: settings, registry, what is wanted."""

from __future__ import annotations

import getpass
import json
import stat

import pytest

from popmi_core.config import RunConfig
from popmi_core.errors import SetupError
from server.control import ServerHome, ServerSettings
from server.control.home import SiteEntry, operator

DESCRIBED = {"project": "P", "endpoint": "a.example:443", "classes": ("mel", "nv"), "data_name": "d"}


def test_settings_come_back_as_they_were_written(home):
    settings = ServerSettings(
        **DESCRIBED,
        names=("10.0.0.4",),
        phantom=True,
        external="/data/test",
        config=RunConfig(rounds=9, strategy="fedavg"),
    )
    home.write_settings(settings)
    assert home.settings() == settings


def test_a_folder_that_is_no_home_says_how_to_make_one(tmp_path):
    with pytest.raises(SetupError, match=r"is no server's home.*popmi server init"):
        ServerHome(tmp_path).settings()


def test_settings_that_cannot_be_read_are_told(home):
    home.settings_file.unlink()
    home.settings_file.mkdir()
    with pytest.raises(SetupError, match=r"cannot read .*server.toml"):
        home.settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("project = ", "unusable"),
        ('project = "P"', "endpoint: Field required"),
        ('project = "P"\nendpoint = "https://x:1"\nclasses = ["a", "b"]\ndata_name = "d"', "endpoint"),
        ('project = "P"\nendpoint = "x:1"\nclasses = ["a"]\ndata_name = "d"', "classes"),
        ('project = "P"\nendpoint = "x:1"\nclasses = ["a", "b"]\ndata_name = "d"\nport = 3', "port"),
    ],
)
def test_unusable_settings_are_named(home, text, said):
    home.settings_file.write_text(text)
    with pytest.raises(SetupError, match=said):
        home.settings()


def test_settings_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"cannot write .*server.toml"):
        ServerHome(tmp_path / "file" / "home").write_settings(ServerSettings(**DESCRIBED))


def test_the_registry_is_empty_before_the_first_site_and_sorted_after(home):
    assert home.sites() == {}
    with home.changing_sites() as sites:
        sites["zurich"] = SiteEntry(since=2.0)
        sites["basel"] = SiteEntry(public_key="ecdsa-sha2-nistp384 AAAA", node_id=7, state="enrolled", since=1.0)
    assert list(home.sites()) == ["basel", "zurich"]
    assert home.sites()["basel"].node_id == 7
    told = json.loads(home.sites_file.read_text())
    assert set(told["basel"]) == {"public_key", "node_id", "state", "since", "unlogged", "excluded"}


def test_a_change_that_fails_leaves_the_registry_as_it_was(home):
    with home.changing_sites() as sites:
        sites["basel"] = SiteEntry()
    before = home.sites_file.read_bytes()

    def change():
        with home.changing_sites() as sites:
            sites.clear()
            raise KeyError("in between")

    with pytest.raises(KeyError):
        change()
    assert home.sites_file.read_bytes() == before


@pytest.mark.parametrize("text", ["", "[]", '{"../x": {"state": "invited"}}', '{"a": {"state": "gone"}}'])
def test_a_damaged_registry_is_never_taken_for_an_empty_one(home, text):
    home.sites_file.write_text(text)
    with pytest.raises(SetupError, match=r"sites.json is unusable.*backup"):
        home.sites()


def test_nothing_is_wanted_before_the_first_run(home):
    assert home.wanted() is None
    home.want("first", "going")
    assert (home.wanted().run, home.wanted().state) == ("first", "going")


def test_a_damaged_wish_is_told(home):
    home.wanted_file.write_text('{"run": "first"}')
    with pytest.raises(SetupError, match=r"wanted.json is unusable: state: Field required"):
        home.wanted()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 101, "a\nb"])
def test_a_run_name_never_leads_out_of_the_folder_of_runs(home, name):
    with pytest.raises(SetupError, match="run name"):
        home.run_folder(name)


def test_the_audit_log_tells_who_did_it(home, audited, monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    home.note("tried", what="something")
    assert audited("tried") == {"who": "ada", "what": "something"}


def test_a_user_without_a_name_is_told_by_number(monkeypatch):
    def nameless():
        raise KeyError("no such user")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert operator().startswith("uid ")


def test_a_second_process_of_one_kind_is_refused(home):
    with home.alone("keeper"):
        with pytest.raises(SetupError, match="another keeper is running here"), home.alone("keeper"):
            pass
        with home.alone("server"):
            pass
    with home.alone("keeper"):
        pass


def test_a_home_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot write in"), ServerHome(tmp_path / "file").alone("keeper"):
        pass


def test_what_is_secret_is_its_owners_only(home):
    for path in (home.secret, home.key, home.pki / "ca.key", home.settings_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
