"""A server app that is killed again and again (server/control/keeper.py, records.py)."""

from __future__ import annotations

import pytest

from popmi_core.atomic import held_alone
from popmi_core.protocol import LOCK_FILE
from server.control.contract import SuperLinkAway
from server.control.keeper import MOST_FALLS
from server.control.records import end_record, standing
from server.store.schema import RECORD_NAME


def pass_time(keeper, clock, seconds):
    clock.now += seconds
    keeper.look()


def starts(control):
    return len(control.bundles)


def killed(control):
    """Have Flower notice that the server app of the newest start is gone; its record says nothing of it."""
    control.end(control.known_runs[0].run_id, "finished:failed", "no heartbeat")


def test_a_server_app_that_is_killed_again_and_again_is_given_up(keeper, control, wanted, write, clock, audited, home):
    keeper.look()
    write(rounds=1, opened=True)
    for _ in range(MOST_FALLS + 3):
        killed(control)
        keeper.look()
        pass_time(keeper, clock, 61)
    assert starts(control) == 1 + MOST_FALLS
    assert audited("run.given_up")["falls"] == MOST_FALLS
    stand = standing(home, "first")
    assert stand.status == "failed"
    assert stand.reason.startswith("its server app was killed 5 times on end without a round between. Look at ")
    assert (stand.fell, stand.rounds_done) == (False, 1)


def test_the_operator_may_have_a_run_go_on_that_was_given_up(keeper, control, wanted, write, clock, home):
    keeper.look()
    write(rounds=1, opened=True)
    for _ in range(MOST_FALLS + 1):
        killed(control)
        keeper.look()
        pass_time(keeper, clock, 61)
    home.want("first", "going")
    pass_time(keeper, clock, 1)
    pass_time(keeper, clock, 6)
    assert starts(control) == 2 + MOST_FALLS


def test_a_round_between_two_kills_begins_the_count_anew(keeper, control, wanted, write, clock, audited):
    keeper.look()
    for number in range(1, MOST_FALLS + 4):
        write(rounds=number, opened=True)
        keeper.look()
        killed(control)
        keeper.look()
        pass_time(keeper, clock, 61)
    assert starts(control) == MOST_FALLS + 4
    assert "run.given_up" not in audited()


def test_a_superlink_that_is_killed_takes_its_server_app_along_and_that_does_not_count(
    keeper, control, wanted, write, clock, audited
):
    keeper.look()
    write(rounds=1, opened=True)
    for _ in range(MOST_FALLS + 3):
        control.away = True
        with pytest.raises(SuperLinkAway):
            keeper.look()
        control.away = False
        killed(control)
        keeper.look()
        pass_time(keeper, clock, 61)
    assert starts(control) == MOST_FALLS + 4
    assert "run.given_up" not in audited()


def test_one_that_still_holds_the_run_is_not_given_up(keeper, control, wanted, write, clock, audited, home):
    keeper.look()
    write(rounds=1, opened=True)
    for _ in range(MOST_FALLS):
        killed(control)
        keeper.look()
        pass_time(keeper, clock, 61)
    killed(control)
    with held_alone(home.run_folder("first") / LOCK_FILE):
        pass_time(keeper, clock, 61)
    assert "run.given_up" not in audited()


def test_the_end_of_a_record_that_was_never_begun_is_nobody_s_to_write(home):
    end_record(home, "first", "gone")
    assert not (home.run_folder("first") / RECORD_NAME).exists()
