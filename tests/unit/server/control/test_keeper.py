"""The keeper: what it does when what happens, told by a SuperLink that only remembers and a clock that is set."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from popmi_core.atomic import held_alone
from popmi_core.protocol import LOCK_FILE, PLAN_FILE
from server.control.contract import FlowerRun
from server.control.home import ServerHome
from server.control.keeper import MOST_FALLS, Keeper
from server.control.plans import read_code_hash, read_plan

BUNDLE = (b"packed", "c" * 64)
FALLS = [
    "RunNotRunningException: ",
    "ConnectError: refused",
    "unexpected OperationalError",
    "record /server/runs/first/record.sqlite cannot be written: database is locked. Check free space and rights.",
    "record postgresql+psycopg://db/popmi cannot be read: connection refused. Check that the file is whole.",
]


def pass_time(keeper, clock, seconds):
    clock.now += seconds
    keeper.look()


def starts(control):
    return len(control.bundles)


def test_nothing_wanted_nothing_done(keeper, control):
    keeper.look()
    assert control.asked == [("runs",)]


def test_the_wanted_run_is_started_at_once_and_once(keeper, control, wanted, home, audited):
    keeper.look()
    keeper.look()
    assert [run.name for run in control.known_runs] == ["first"]
    assert control.bundles == [b"packed"]
    assert read_plan(home, "first").resume is False
    assert read_code_hash(home, "first") == "c" * 64
    assert audited("run.starting")["code_hash"] == "c" * 64
    assert audited("run.started")["run_id"] == 1


def test_a_run_whose_server_app_was_killed_goes_on_with_resume(keeper, control, wanted, write, clock, home, audited):
    keeper.look()
    write(rounds=1, opened=True)
    control.end(1, "finished:failed", "no heartbeat")
    keeper.look()
    assert starts(control) == 1
    pass_time(keeper, clock, 4)
    assert starts(control) == 1
    pass_time(keeper, clock, 2)
    assert starts(control) == 2
    assert read_plan(home, "first").resume is True
    assert audited("run.ended")["details"] == "no heartbeat"
    assert audited("run.started")["after_round"] == 1


def test_pauses_grow_to_a_minute_and_shrink_when_a_round_is_done(keeper, control, wanted, write, clock):
    keeper.look()
    pauses = []
    for _ in range(6):
        control.end(control.known_runs[0].run_id)
        before, waited = starts(control), 0
        while starts(control) == before:
            pass_time(keeper, clock, 1)
            waited += 1
        pauses.append(waited - 1)
    assert pauses == [5, 10, 20, 40, 60, 60]
    write(rounds=1)
    keeper.look()
    control.end(control.known_runs[0].run_id)
    keeper.look()
    pass_time(keeper, clock, 5)
    assert starts(control) == 8


def test_a_finished_run_is_left_alone(keeper, control, wanted, write, clock, audited):
    keeper.look()
    write(rounds=3, status="finished")
    control.end(1, "finished:completed")
    for _ in range(3):
        pass_time(keeper, clock, 100)
    assert starts(control) == 1
    assert audited().count("run.finished") == 1


def test_a_run_that_failed_for_a_reason_of_its_own_is_left_alone(keeper, control, wanted, write, clock, audited):
    keeper.look()
    write(
        rounds=1, status="failed", reason="three rounds on end without a usable update: charite: waiting for approval"
    )
    control.end(1)
    for _ in range(3):
        pass_time(keeper, clock, 100)
    assert starts(control) == 1
    assert audited("run.failed")["reason"].startswith("three rounds")


@pytest.mark.parametrize("reason", FALLS)
def test_a_run_that_fell_over_a_lost_connection_is_started_again(keeper, control, wanted, write, clock, reason):
    keeper.look()
    write(rounds=1, status="failed", reason=reason)
    control.end(1)
    keeper.look()
    pass_time(keeper, clock, 6)
    assert starts(control) == 2


def test_a_run_that_falls_again_and_again_is_given_up(keeper, control, wanted, write, clock, audited):
    keeper.look()
    write(status="failed", reason="KeyError: 'blocks'")
    for _ in range(MOST_FALLS + 3):
        control.end(control.known_runs[0].run_id)
        keeper.look()
        pass_time(keeper, clock, 61)
    assert starts(control) == 1 + MOST_FALLS
    assert audited("run.given_up")["falls"] == MOST_FALLS


def test_the_operator_may_have_a_failed_run_go_on(keeper, control, wanted, write, clock, home):
    keeper.look()
    write(rounds=1, status="failed", reason="no site was left to train")
    control.end(1)
    pass_time(keeper, clock, 100)
    assert starts(control) == 1
    home.want("first", "going")
    pass_time(keeper, clock, 1)
    pass_time(keeper, clock, 6)
    assert starts(control) == 2


def test_a_stopped_record_of_a_run_that_is_wanted_is_no_end(keeper, control, wanted, write, clock):
    keeper.look()
    write(rounds=1, status="stopped", reason="interrupted by the operator")
    control.end(1, "finished:stopped")
    keeper.look()
    pass_time(keeper, clock, 6)
    assert starts(control) == 2


def test_two_server_apps_never_write_one_record(keeper, control, wanted, write, clock):
    clock.now = 1.0
    keeper.look()
    write(rounds=1, opened=True)
    control.end(1, "finished:failed")
    # The record's heartbeat is of the true time, which is later than this clock: its writer is alive.
    keeper.look()
    pass_time(keeper, clock, 100)
    assert starts(control) == 1
    clock.now = 4_000_000_000.0
    keeper.look()
    assert starts(control) == 2


def test_a_server_app_that_still_holds_the_run_is_waited_for(keeper, control, wanted, home, clock):
    keeper.look()
    control.end(1)
    with held_alone(home.run_folder("first") / LOCK_FILE):
        keeper.look()
        pass_time(keeper, clock, 100)
        assert starts(control) == 1
    keeper.look()
    assert starts(control) == 2


def seen_alive(keeper, write, clock):
    """Start the run and have its server app give a sign of life."""
    keeper.look()
    write(rounds=1, opened=True)
    clock.now = time.time()
    keeper.look()


def test_a_server_app_that_was_killed_is_not_waited_for_until_flower_notices(
    keeper, control, wanted, write, clock, audited
):
    seen_alive(keeper, write, clock)
    pass_time(keeper, clock, 10)
    assert control.known_runs[0].active
    pass_time(keeper, clock, 10)
    assert not control.known_runs[0].active
    assert audited("run.stopping")["reason"] == "its server app is gone"
    keeper.look()
    pass_time(keeper, clock, 6)
    assert starts(control) == 2


def test_a_keeper_that_was_killed_with_it_notices_too(keeper, control, wanted, write, clock, home):
    seen_alive(keeper, write, clock)
    after = Keeper(home, control, pack=lambda: BUNDLE, clock=clock)
    pass_time(after, clock, 20)
    assert not control.known_runs[0].active


def test_without_its_plan_nothing_is_known_of_its_start(keeper, control, wanted, write, clock, home):
    seen_alive(keeper, write, clock)
    (home.run_folder("first") / PLAN_FILE).unlink()
    pass_time(keeper, clock, 600)
    assert control.known_runs[0].active


def test_one_that_waits_for_room_gives_no_sign_of_life_and_is_left_alone(keeper, control, wanted, write, clock, home):
    seen_alive(keeper, write, clock)
    with held_alone(home.run_folder("first") / LOCK_FILE):
        pass_time(keeper, clock, 600)
    assert control.known_runs[0].active


def test_one_that_has_only_begun_is_not_taken_for_dead(keeper, control, wanted, write, clock):
    seen_alive(keeper, write, clock)
    for number in (1, 2):
        control.end(number)
        keeper.look()
        pass_time(keeper, clock, 600)
        assert starts(control) == number + 1
        # The heartbeat in the record is still the one of the start before.
        pass_time(keeper, clock, 60)
        assert control.known_runs[0].active


def test_a_stop_waits_for_the_round_in_flight(keeper, control, wanted, write, clock, home, audited):
    keeper.look()
    write(rounds=1, opened=True)
    home.want("first", "stopped")
    keeper.look()
    keeper.look()
    assert control.known_runs[0].active
    write(rounds=2, opened=True)
    keeper.look()
    assert not control.known_runs[0].active
    assert "round 2 is done" in audited("run.stopping")["reason"]
    pass_time(keeper, clock, 100)
    assert starts(control) == 1


def test_a_stop_between_rounds_is_at_once(keeper, control, wanted, write, home):
    keeper.look()
    write(rounds=1)
    home.want("first", "stopped")
    keeper.look()
    assert not control.known_runs[0].active


def test_a_stopped_run_goes_on_when_it_is_wanted_again(keeper, control, wanted, write, clock, home):
    keeper.look()
    write(rounds=1, status="stopped", reason="by the operator")
    home.want("first", "stopped")
    keeper.look()
    home.want("first", "going")
    keeper.look()
    pass_time(keeper, clock, 6)
    assert starts(control) == 2
    assert read_plan(home, "first").resume


def test_a_run_nobody_wants_and_a_second_start_are_ended(keeper, control, wanted, audited):
    control.known_runs = [
        FlowerRun(9, "first", True, "running"),
        FlowerRun(8, "first", True, "running"),
        FlowerRun(7, "foreign", True, "running"),
    ]
    keeper.look()
    assert [run.run_id for run in control.known_runs if run.active] == [9]
    assert audited("run.stopping")["reason"] == "nobody wants it"


def test_another_code_is_told_when_a_run_goes_on(home, control, clock, wanted, audited):
    code = ["a" * 64]
    keeper = Keeper(home, control, pack=lambda: (b"", code[0]), clock=clock)
    keeper.look()
    assert audited("run.starting")["code_changed"] is False
    code[0] = "b" * 64
    control.end(1)
    keeper.look()
    pass_time(keeper, clock, 6)
    assert audited("run.starting")["code_changed"] is True
    assert read_code_hash(home, "first") == "b" * 64


def test_a_home_that_was_moved_is_still_found(home, control, clock, wanted, tmp_path):
    moved = Path(shutil.move(home.folder, tmp_path / "elsewhere"))
    Keeper(ServerHome(moved), control, pack=lambda: BUNDLE, clock=clock).look()
    plan = read_plan(ServerHome(moved), "first")
    assert plan.folder == str(moved / "runs" / "first")
    assert plan.sites_file == str(moved / "sites.json")
