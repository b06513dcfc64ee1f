"""How fast passwords can be tried."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from server.centre import Attempt, open_centre, throttle
from server.centre.opening import writing
from server.centre.remarks import unwritten
from server.centre.throttle import FREE_BY_NAME, address_key, begin, failed, forgive, name_key, succeeded, wait_after

KEYS = (name_key("lin"), address_key("192.0.2.7"))


def fail(centre: Engine, times: int, keys: tuple[str, ...] = KEYS) -> None:
    for _ in range(times):
        with writing(centre) as session:
            session.add_all(Attempt(key=key, time=time.time()) for key in keys)


def written(centre: Engine) -> int:
    with Session(centre) as session:
        return session.scalar(select(func.count()).select_from(Attempt)) or 0


def test_waits_double_up_to_a_quarter_of_an_hour() -> None:
    waits = [wait_after(tries, 5) for tries in range(17)]
    assert waits == [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]
    assert wait_after(10**6, 5) == 900


def test_the_first_tries_are_free_and_then_they_wait(centre: Engine) -> None:
    for _ in range(FREE_BY_NAME):
        tried = begin(centre, KEYS)
        assert tried.wait == 0
        failed(centre, tried, "192.0.2.7")
    assert 0 < begin(centre, KEYS).wait <= 1


def test_a_try_that_comes_too_early_does_not_count(centre: Engine) -> None:
    fail(centre, FREE_BY_NAME + 4)
    before = written(centre)
    waits = [begin(centre, KEYS).wait for _ in range(3)]
    assert written(centre) == before
    assert all(8 < wait <= 16 for wait in waits)


def test_after_the_wait_one_more_try_is_let_through(centre: Engine) -> None:
    fail(centre, FREE_BY_NAME + 4)
    with writing(centre) as session:
        session.execute(update(Attempt).values(time=Attempt.time - 17))
    assert begin(centre, KEYS).wait == 0


def test_an_unknown_name_waits_like_a_known_one(centre: Engine) -> None:
    fail(centre, FREE_BY_NAME + 1, (name_key("nobody at all"),))
    assert begin(centre, (name_key("nobody at all"),)).wait > 0


def test_one_name_from_many_addresses_waits(centre: Engine) -> None:
    for number in range(FREE_BY_NAME):
        fail(centre, 1, (name_key("lin"), address_key(f"192.0.2.{number}")))
    assert begin(centre, (name_key("LIN "), address_key("198.51.100.1"))).wait > 0
    assert begin(centre, (name_key("chen"), address_key("198.51.100.1"))).wait == 0


def test_many_names_from_one_address_wait(centre: Engine) -> None:
    for number in range(throttle.FREE_BY_ADDRESS):
        fail(centre, 1, (name_key(f"name{number}"), address_key("192.0.2.7")))
    assert begin(centre, (name_key("another"), address_key("192.0.2.7"))).wait > 0
    assert begin(centre, (name_key("another"), address_key("192.0.2.8"))).wait == 0


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "address:192.0.2.7"),
        ("::ffff:192.0.2.7", "address:192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "address:2001:db8:1:2::"),
        ("2001:db8:1:2::ffff", "address:2001:db8:1:2::"),
        ("fe80::1%eth0", "address:fe80::"),
        ("", "address:"),
        ("testclient", "address:testclient"),
    ],
)
def test_an_ipv6_network_is_one_address(address: str, key: str) -> None:
    assert address_key(address) == key


def test_success_forgets_the_names_failures_but_not_the_addresss(centre: Engine) -> None:
    fail(centre, 4)
    tried = begin(centre, KEYS)
    succeeded(centre, tried)
    with Session(centre) as session:
        assert session.scalars(select(Attempt.key).distinct()).all() == [KEYS[1]]
    assert written(centre) == 4


def test_forgiving_forgets_one_name(centre: Engine) -> None:
    fail(centre, 9)
    forgive(centre, KEYS[0])
    assert begin(centre, KEYS).wait == 0


def test_old_tries_are_cleared_away(centre: Engine) -> None:
    fail(centre, 9)
    with writing(centre) as session:
        session.execute(update(Attempt).values(time=time.time() - throttle.WINDOW_SECONDS - 1))
    assert begin(centre, KEYS).wait == 0
    assert written(centre) == 2


def test_a_hundred_tries_at_once_at_two_processes_see_one_another(database: str, centre: Engine) -> None:
    other = open_centre(database)
    free: list[float] = []
    start = threading.Barrier(10)

    def attack(number: int) -> None:
        start.wait()
        for _ in range(5):
            tried = begin(other if number % 2 else centre, KEYS)
            if tried.wait == 0:
                failed(centre, tried, "192.0.2.7")
                free.append(tried.wait)

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(10)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.dispose()
    # One more for each doubling of the seconds that this took.
    assert len(free) <= FREE_BY_NAME + max(1, (time.monotonic() - began)).__ceil__().bit_length()


def test_the_audit_log_is_told_once_where_waits_begin(centre: Engine) -> None:
    for _ in range(FREE_BY_NAME + 3):
        failed(centre, begin(centre, (KEYS[0],)), "192.0.2.7")
        with writing(centre) as session:
            session.execute(update(Attempt).values(time=Attempt.time - 60))
    told = unwritten(centre)
    assert [item.event for item in told] == ["account.guessed"]
    assert told[0].details == {"tried": "name:lin", "address": "192.0.2.7", "tries": FREE_BY_NAME}
