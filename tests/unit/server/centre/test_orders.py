"""Orders: given by persons, taken and answered by the keeper (server/centre/orders.py, kinds.py)."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from popmi_core.errors import ConfigError, RecordError, RunError
from server.centre import open_centre
from server.centre.kinds import KINDS, parse_order
from server.centre.orders import MOST_WAITING, decide, find, history, place, take, withdraw
from server.centre.people import Doer
from server.centre.reaching import reaching
from server.centre.remarks import unwritten

BEN = Doer("ben", "page")


@pytest.fixture
def centre(database):
    engine = open_centre(database)
    yield engine
    engine.dispose()


def given(centre, site="basel", **changes):
    return place(centre, "include", {"site": site}, **{"who": "anna", "via": "page", "clock": lambda: 5.0, **changes})


def test_orders_are_taken_oldest_first_and_answered_once(centre):
    first, second = given(centre), given(centre, "zurich")
    row, before = take(centre, clock=lambda: 7.0)
    assert (row.id, row.kind, row.arguments, row.who, row.via) == (first, "include", {"site": "basel"}, "anna", "page")
    assert (row.created, row.state, row.answer, before, row.about) == (5.0, "waiting", None, False, "basel")
    assert find(centre, first).decided == 7.0
    assert decide(centre, first, "done", "basel takes part again", clock=lambda: 8.0)
    assert not decide(centre, first, "refused", "too late")
    told = find(centre, first)
    assert (told.state, told.answer, told.decided) == ("done", "basel takes part again", 8.0)
    assert take(centre)[0].id == second


def test_an_order_that_was_taken_and_never_answered_is_taken_again_and_says_so(centre):
    number = given(centre)
    assert take(centre)[1] is False
    row, before = take(centre)
    assert (row.id, before) == (number, True)


def test_orders_that_are_being_seen_to_are_passed_over(centre):
    first, second = given(centre), given(centre, "zurich")
    assert take(centre, besides=[first])[0].id == second
    assert take(centre, besides=[first, second]) is None


def test_history_is_newest_first_by_state_and_in_pages(centre):
    numbers = [given(centre, f"site{number}") for number in range(5)]
    decide(centre, numbers[0], "done", "x")
    assert [row.id for row in history(centre, limit=2)] == numbers[:-3:-1]
    assert [row.id for row in history(centre, before=numbers[1])] == [numbers[0]]
    assert [row.id for row in history(centre, state="done")] == [numbers[0]]
    assert history(centre, before=2**70, limit=1)[0].id == numbers[-1]
    assert find(centre, 2**70) is None
    assert find(centre, 12345) is None


def test_an_order_can_be_taken_back_until_the_keeper_takes_it_up(centre):
    first = given(centre)
    assert withdraw(centre, first, BEN)
    assert (find(centre, first).state, find(centre, first).answer) == ("refused", "withdrawn by ben")
    assert take(centre) is None
    (said,) = unwritten(centre)
    assert (said.event, said.by.who, said.details["kind"], said.details["about"]) == (
        "order.withdrawn", "ben", "include", "basel",
    )  # fmt: skip
    second = given(centre)
    take(centre)
    assert not withdraw(centre, second, BEN)
    assert not withdraw(centre, 999, BEN)


def test_too_many_that_wait_are_refused(centre):
    for number in range(MOST_WAITING):
        given(centre, f"site{number}")
    with pytest.raises(RunError, match="50 orders wait already, at most 50 may"):
        given(centre)


def test_an_answer_with_a_nul_is_kept_on_both_databases(centre):
    number = given(centre)
    decide(centre, number, "refused", "a\x00b")
    assert find(centre, number).answer == "a�b"


@pytest.mark.parametrize(
    ("kind", "arguments", "match"),
    [
        ("format-disk", {}, "there is no order 'format-disk'. Expected one of start, stop"),
        ("stop", {}, "the order stop cannot be given: run: Field required"),
        ("stop", {"run": "../etc"}, "run: String should match pattern"),
        ("stop", {"run": "a", "more": 1}, "more: Extra inputs are not permitted"),
        ("exclude", {"site": "basel", "reason": "  "}, "reason: String should have at least 1 character"),
        ("exclude", {"site": "Basel", "reason": "x"}, "site: String should match pattern"),
        ("pin", {"run": "a", "round": 0}, "round: Input should be greater than or equal to 1"),
        ("pin", {"run": "a", "round": 1, "note": "x" * 501}, "note: String should have at most 500"),
        ("confirm", {"enrolment": "{}", "read_out": "short"}, "read_out: String should have at least 8"),
        ("confirm", {"enrolment": "{}", "read_out": "ä" * 8}, "expected the last 8 letters of the fingerprint"),
        ("confirm", {"enrolment": "x" * 20_001, "read_out": "a" * 8}, "enrolment: String should have at most"),
        ("start", {"name": "a", "config": {"rounds": 0}}, "config.rounds: Input should be greater"),
        ("start", {"config": {}}, "name: Field required"),
        ("stop", ["run"], "the whole: Input should be a valid dictionary"),
    ],
)
def test_what_is_no_order_is_never_written(kind, arguments, match):
    with pytest.raises(ConfigError, match=match):
        parse_order(kind, arguments)


def test_a_run_s_description_is_written_whole_into_its_order(centre):
    place(centre, "start", {"name": "first", "config": {"strategy": "fedavg", "rounds": 2}}, who="anna", via="api")
    told = take(centre)[0].arguments
    assert (told["config"]["strategy"], told["config"]["rounds"]) == ("fedavg", 2)
    assert parse_order("start", told).config.rounds == 2
    assert set(KINDS) == {
        "start", "stop", "resume", "exclude", "include", "revoke", "invite", "confirm", "pin", "unpin", "onnx",
    }  # fmt: skip


def test_a_centre_without_its_tables_is_told_by_every_function(centre, database):
    with centre.begin() as connection:
        connection.execute(text("DROP TABLE orders"))
    for act in (lambda: given(centre), lambda: take(centre), lambda: find(centre, 1), lambda: history(centre),
                lambda: decide(centre, 1, "done", ""), lambda: withdraw(centre, 1, BEN)):  # fmt: skip
        with pytest.raises(RunError, match=r"centre: cannot .* order"):
            act()


def test_what_a_database_refuses_for_good_is_no_passing_trouble(centre):
    with (
        pytest.raises(RecordError, match=r"centre: cannot write it: .*Check this user's rights"),
        reaching(centre, "write it"),
    ):
        raise ProgrammingError("INSERT", {}, Exception("permission denied"))
