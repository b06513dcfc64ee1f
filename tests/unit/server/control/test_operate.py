"""Making a home, beginning, stopping and resuming runs."""

from __future__ import annotations

import tomllib

import pytest

from popmi_core.atomic import held_alone
from popmi_core.config import RunConfig
from popmi_core.errors import ConfigError, RunError, SetupError
from popmi_core.protocol import LOCK_FILE
from server.control.home import ServerHome, SiteEntry, Wanted
from server.control.operate import init_home, prepare, resume, settings_from, start, stop
from server.control.plans import (
    expected_sites,
    is_held,
    make_plan,
    read_code_hash,
    read_plan,
    reopen_plan,
    run_names,
    write_code_hash,
)
from server.control.records import Standing, standing
from server.store import RunWriter
from server.store.schema import RECORD_NAME

DESCRIBED = {
    "project": "P", "endpoint": "a.example:443", "superlink": "127.0.0.1:18000", "names": (), "classes": ("mel", "nv"),
    "data": None, "config": None,
}  # fmt: skip


@pytest.fixture
def home(invited):
    return invited


def record(home, name, status=None, reason=None, rounds=0):
    writer = RunWriter(home.run_folder(name) / RECORD_NAME, heartbeat=0)
    writer.start_run(
        name, config={}, environment={}, strategy="opm", seed=0, rounds_planned=3, data_name="d", phantom=False,
        classes=["mel", "nv"], sites=[],
    )  # fmt: skip
    for number in range(1, rounds + 1):
        writer.start_round(number)
        writer.finish_round(
            number, outcome="ok", seconds_total=1.0, seconds_train=1.0, seconds_fuse=1.0, seconds_evaluate=1.0,
            notes={}, model_sha256=None,
        )  # fmt: skip
    if status:
        writer.finish_run(status, reason)


def test_a_home_is_made_whole_and_said_again_left_as_it_is(tmp_path):
    home, settings = ServerHome(tmp_path / "h"), settings_from(**DESCRIBED)
    assert init_home(home, settings).made
    before = {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()}
    assert not init_home(home, settings).made
    assert {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()} == before
    assert len(home.secret.read_bytes()) == 32
    assert all(folder.is_dir() for folder in (home.kits, home.runs, home.processes))


def test_another_servers_home_is_never_taken_over(tmp_path):
    home = ServerHome(tmp_path / "h")
    init_home(home, settings_from(**DESCRIBED))
    with pytest.raises(SetupError, match="set up already, with other project, classes"):
        init_home(home, settings_from(**DESCRIBED | {"project": "Q", "classes": ("a", "b")}))


def test_a_home_that_cannot_hold_its_folders_is_told(home):
    home.kits.rmdir()
    home.kits.write_text("")
    with pytest.raises(SetupError, match="cannot write in"):
        prepare(home, home.settings())


def test_a_secret_that_cannot_be_written_is_told(home):
    home.secret.unlink()
    home.secret.parent.rmdir()
    home.secret.parent.write_text("")
    with pytest.raises(SetupError, match=r"cannot write .*superexec"):
        prepare(home, home.settings())


def test_classes_are_given_or_taken_from_a_data_set(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("rounds = 4\n")
    settings = settings_from(**DESCRIBED | {"classes": (), "data": "phantom", "config": file})
    assert (settings.data_name, settings.phantom, settings.config.rounds) == ("phantom", True, 4)
    assert "mel" in settings.classes
    for wrong in ({"data": "phantom"}, {"classes": ()}):
        with pytest.raises(SetupError, match="give either --classes"):
            settings_from(**DESCRIBED | wrong)


@pytest.mark.parametrize("wrong", [{"endpoint": "no port"}, {"classes": ("one",)}, {"project": ""}, {"superlink": "x"}])
def test_what_describes_no_server_is_told(wrong):
    with pytest.raises(SetupError, match="this describes no server"):
        settings_from(**DESCRIBED | wrong)


def test_a_run_is_planned_for_the_network_and_wanted(home, audited):
    plan = start(home, None, "first")
    assert read_plan(home, "first") == plan
    assert (plan.lineup, plan.resume, plan.classes) == ((), False, ("mel", "nv"))
    assert (plan.folder, plan.sites_file) == (str(home.runs / "first"), str(home.sites_file))
    assert (plan.names, plan.sites) == (("charite",), ("charite",))
    assert plan.patience >= 3600
    assert plan.config.rounds == 3
    assert tomllib.loads((home.runs / "first" / "config.toml").read_text())["rounds"] == 3
    assert (home.wanted().run, home.wanted().state) == ("first", "going")
    assert audited("run.wanted")["run"] == "first"


def test_a_file_describes_the_run_instead_of_the_plan(home, tmp_path):
    (tmp_path / "run.toml").write_text('strategy = "fedavg"\nrounds = 2\nseed = 5\n')
    plan = start(home, tmp_path / "run.toml", None)
    assert (plan.config.strategy, plan.config.rounds) == ("fedavg", 2)
    assert plan.run.endswith("-fedavg-seed5")


@pytest.mark.parametrize(
    ("text", "said"),
    [('strategy = "pooled"', "needs all images in one place"), ('[model.adapter]\ngroup = "auto"', "chosen by pilots")],
)
def test_what_needs_the_sites_images_here_is_refused(home, tmp_path, text, said):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        start(home, tmp_path / "run.toml", None)
    assert home.wanted() is None


def test_a_run_waits_for_all_sites_that_are_not_revoked_or_for_those_it_names(home, tmp_path):
    with home.changing_sites() as sites:
        sites["basel"] = SiteEntry(state="enrolled")
        sites["gone"] = SiteEntry(state="revoked")
    assert expected_sites(home, RunConfig()) == ("basel", "charite")
    assert expected_sites(home, RunConfig(sites=("charite",))) == ("charite",)
    with pytest.raises(ConfigError, match="sites gone, nowhere are none of this server's: basel, charite"):
        expected_sites(home, RunConfig(sites=("basel", "gone", "nowhere")))
    with pytest.raises(ConfigError, match=r"the run has 2 site\(s\), expected at least min_sites = 3"):
        expected_sites(home, RunConfig(min_sites=3))


def test_a_run_without_a_site_is_refused(home):
    with home.changing_sites() as sites:
        sites.clear()
    with pytest.raises(ConfigError, match=r"the run has 0 site\(s\)"):
        start(home, None, "first")


def test_a_run_is_held_while_its_server_app_lives(home):
    start(home, None, "first")
    assert not is_held(home, "first")
    assert not is_held(home, "unknown")
    with held_alone(home.run_folder("first") / LOCK_FILE):
        assert is_held(home, "first")


def test_a_second_run_waits_for_the_end_of_the_first(home):
    start(home, None, "first")
    with pytest.raises(RunError, match="run first is still going"):
        start(home, None, "second")
    record(home, "first", "finished", rounds=3)
    assert start(home, None, "second").run == "second"


def test_a_failed_or_stopped_run_makes_room(home):
    start(home, None, "first")
    record(home, "first", "failed", "no site was left")
    start(home, None, "second")
    stop(home)
    assert start(home, None, "third").run == "third"


def test_a_run_that_failed_and_was_resumed_is_going(home):
    start(home, None, "first")
    record(home, "first", "failed", "no site was left")
    assert resume(home, None) == "first"
    with pytest.raises(RunError, match="run first is still going"):
        start(home, None, "second")


def test_a_run_of_this_name_is_never_overwritten(home):
    start(home, None, "first")
    stop(home)
    with pytest.raises(RunError, match="there is a run first already"):
        start(home, None, "first")


def test_a_run_folder_that_cannot_be_written_is_told(home):
    home.runs.rmdir()
    home.runs.write_text("")
    with pytest.raises(RunError, match="cannot write run folder"):
        make_plan(home, RunConfig(), "first")


def test_stop_and_resume_say_what_is_wanted(home, audited):
    start(home, None, "first")
    assert stop(home) == "first"
    assert home.wanted().state == "stopped"
    assert resume(home, None) == "first"
    assert home.wanted().state == "going"
    assert audited()[-2:] == ["run.stop", "run.resume"]


def test_without_a_run_there_is_nothing_to_stop_or_resume(home):
    for act in (stop, lambda place: resume(place, None)):
        with pytest.raises(RunError, match="no run was ever started here"):
            act(home)
    with pytest.raises(RunError, match=r"there is no run other. The runs are: none yet"):
        resume(home, "other")


def test_a_finished_run_is_not_resumed(home):
    start(home, None, "first")
    record(home, "first", "finished", rounds=3)
    with pytest.raises(RunError, match="run first has finished"):
        resume(home, "first")


def test_an_earlier_run_is_resumed_when_the_present_one_rests(home):
    start(home, None, "first")
    stop(home)
    start(home, None, "second")
    with pytest.raises(RunError, match="run second is still going"):
        resume(home, "first")
    stop(home)
    assert resume(home, "first") == "first"


def test_a_damaged_plan_is_told(home):
    start(home, None, "first")
    (home.runs / "first" / "plan.json").write_text("{}")
    with pytest.raises(RunError, match=r"plan.json is missing or damaged"):
        read_plan(home, "first")


def test_a_plan_is_only_written_when_it_changes(home):
    start(home, None, "first")
    path = home.runs / "first" / "plan.json"
    before = path.stat().st_ino
    reopen_plan(home, "first", resume=False)
    assert path.stat().st_ino == before
    reopen_plan(home, "first", resume=True)
    assert read_plan(home, "first").resume


def test_a_plan_that_cannot_be_written_is_told(home, monkeypatch):
    start(home, None, "first")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.control.plans.replace_atomically", full)
    with pytest.raises(RunError, match=r"cannot write the plan in .*No space left"):
        reopen_plan(home, "first", resume=True)
    with pytest.raises(RunError, match=r"cannot write .*code.json: No space left"):
        write_code_hash(home, "first", "a")


def test_the_code_of_a_run_is_noted(home):
    start(home, None, "first")
    assert read_code_hash(home, "first") is None
    assert write_code_hash(home, "first", "a") is False
    assert write_code_hash(home, "first", "a") is False
    assert write_code_hash(home, "first", "b") is True
    assert read_code_hash(home, "first") == "b"
    (home.runs / "first" / "code.json").write_text("[]")
    assert read_code_hash(home, "first") is None


def test_folders_without_a_plan_are_no_runs(home):
    start(home, None, "first")
    (home.runs / "stray").mkdir()
    assert run_names(home) == ("first",)
    assert run_names(ServerHome(home.folder / "none")) == ()


def test_a_record_that_was_not_begun_stands_nowhere(home):
    start(home, None, "first")
    assert standing(home, "first") == Standing()
    assert not standing(home, "first").begun


def test_how_far_a_run_is(home):
    start(home, None, "first")
    record(home, "first", "failed", "ValueError: x", rounds=2)
    stand = standing(home, "first")
    assert (stand.status, stand.rounds_done, stand.rounds_planned, stand.open_round) == ("failed", 2, 3, False)
    assert stand.fell
    assert stand.begun


@pytest.mark.parametrize(
    ("reason", "fell"),
    [
        ("RunNotRunningException: ", True), ("OSError: [Errno 28]", True), ("unexpected ReadTimeout", True),
        ("unexpected HTTPStatusError", True), ("three rounds on end without a usable update", False),
        ("Every site failed: charite (late)", False), ("site charite: KeyError in training", False), ("", False),
    ],
)  # fmt: skip
def test_a_fall_is_told_from_a_reason(reason, fell):
    assert Standing(status="failed", reason=reason).fell is fell


def test_the_database_is_read_where_the_environment_names_one(home, tmp_path, monkeypatch):
    start(home, None, "first")
    monkeypatch.setenv("POPMI_DATABASE", f"sqlite:///{tmp_path}/all.sqlite")
    for name in ("other", "first", "later"):
        writer = RunWriter(tmp_path / "all.sqlite", heartbeat=0)
        writer.start_run(
            name, config={}, environment={}, strategy="opm", seed=0, rounds_planned=len(name), data_name="d",
            phantom=False, classes=["a", "b"], sites=[],
        )  # fmt: skip
    assert standing(home, "first").rounds_planned == 5
    assert standing(home, "absent") == Standing()


def test_a_wish_is_a_name_and_a_state():
    assert Wanted(run="first", state="going").since == 0.0
