"""One who guesses is not listened to for long, and his neighbours are."""

from __future__ import annotations

from fake_superlink import PULL, FakeSuperLink, ask_raw, behind

from server.control.refusals import KNOWN_FOR, WINDOW, Refusals

CONTROL = b"/v1/control/list-runs"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def guessing(gateway, times, *, target=CONTROL, client=("198.51.100.7", 5), headers=()):
    return [ask_raw(gateway, target, client=client, headers=headers)["status"] for _ in range(times)]


def test_one_who_guesses_is_soon_not_listened_to():
    clock, superlink = Clock(), FakeSuperLink()
    gateway = behind(superlink, refusals=Refusals(limit=5, clock=clock))
    assert guessing(gateway, 7) == [404] * 5 + [429] * 2
    answer = ask_raw(gateway, PULL.encode())
    assert (answer["status"], answer["headers"][b"retry-after"], superlink.seen) == (429, b"60", [])
    assert ask_raw(gateway, PULL.encode(), client=("203.0.113.9", 5))["status"] == 200
    clock.now += WINDOW
    assert ask_raw(gateway, PULL.encode())["status"] == 200


def test_guessing_keys_counts_and_being_too_large_too():
    gateway = behind(FakeSuperLink(401), refusals=Refusals(limit=2, clock=Clock()))
    assert guessing(gateway, 3, target=PULL.encode()) == [401, 401, 429]
    gateway = behind(FakeSuperLink(), refusals=Refusals(limit=1, clock=Clock()))
    assert guessing(gateway, 2, target=PULL.encode(), headers=[(b"content-length", b"99999999")]) == [413, 429]


def test_health_answers_whoever_guesses():
    gateway = behind(FakeSuperLink(), refusals=Refusals(limit=1, clock=Clock()))
    guessing(gateway, 3)
    assert ask_raw(gateway, b"/health", method="GET")["status"] == 200


def test_a_site_that_was_let_in_is_not_shut_out_by_its_neighbour():
    clock = Clock()
    gateway = behind(FakeSuperLink(), refusals=Refusals(limit=2, clock=clock))
    known, strange = [(b"flwr-public-key", b"known")], [(b"flwr-public-key", b"strange")]
    assert ask_raw(gateway, PULL.encode(), headers=known)["status"] == 200
    guessing(gateway, 3)
    assert ask_raw(gateway, PULL.encode(), headers=known)["status"] == 200
    assert ask_raw(gateway, PULL.encode(), headers=strange)["status"] == 429
    # The same key from elsewhere is nobody known.
    guessing(gateway, 3, client=("203.0.113.9", 5))
    assert ask_raw(gateway, PULL.encode(), headers=known, client=("203.0.113.9", 5))["status"] == 429


def test_being_known_does_not_last_for_ever():
    clock = Clock()
    refusals = Refusals(limit=1, clock=clock)
    refusals.let_in("a", "key")
    clock.now += KNOWN_FOR
    refusals.refused("a")
    assert refusals.blocked("a", "key")


def test_the_memory_of_addresses_is_bounded(monkeypatch):
    monkeypatch.setattr("server.control.refusals.REMEMBERED", 3)
    refusals = Refusals(limit=1, clock=Clock())
    for number in range(5):
        refusals.refused(f"10.0.0.{number}")
        refusals.let_in(f"10.0.0.{number}", "key")
    assert [refusals.blocked(f"10.0.0.{number}") for number in range(5)] == [False, False, True, True, True]
    assert len(refusals._known) == 3
