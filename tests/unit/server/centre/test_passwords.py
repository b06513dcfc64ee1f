"""Which passwords are taken, and how they are kept."""

from __future__ import annotations

import threading

import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.low_level import Type

from popmi_core.errors import AccessError
from server.centre import passwords
from server.centre.passwords import check_new, hashed, is_outdated, matches

GOOD = "correct horse battery"


def test_a_password_is_kept_as_argon2id_of_rfc_9106() -> None:
    kept = extract_parameters(hashed(GOOD))
    assert kept.type is Type.ID
    # RFC 9106, section 4, second recommendation: 3 passes, 64 MiB, 4 lanes, 128-bit salt, 256-bit tag.
    assert (kept.time_cost, kept.memory_cost, kept.parallelism, kept.salt_len, kept.hash_len) == (3, 65536, 4, 16, 32)


@pytest.mark.usefixtures("cheap")
def test_the_same_password_is_never_kept_the_same_way_twice() -> None:
    assert hashed(GOOD) != hashed(GOOD)


@pytest.mark.usefixtures("cheap")
def test_only_the_password_itself_fits() -> None:
    kept = hashed(GOOD)
    assert matches(kept, GOOD)
    assert not matches(kept, GOOD.upper())
    assert not matches(kept, "")
    assert not matches(kept, GOOD + "!")
    assert not matches(kept, "x" * 5000)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("kept", [None, "", "no hash at all"])
def test_where_no_password_was_kept_none_fits(kept: str | None) -> None:
    assert not matches(kept, "a password that nobody has")


@pytest.mark.usefixtures("cheap")
def test_an_umlaut_is_the_same_however_the_keyboard_writes_it() -> None:
    assert matches(hashed("grüne wiesen im mai"), "gru\u0308ne wiesen im mai")


def test_an_unknown_name_costs_as_much_as_a_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Counting(PasswordHasher):
        def verify(self, hash: str | bytes, password: str | bytes) -> bool:
            asked.append(str(hash))
            return super().verify(hash, password)

    monkeypatch.setattr(passwords, "_HASHER", Counting(time_cost=1, memory_cost=8, parallelism=1))
    passwords._nobodys.cache_clear()
    matches(None, GOOD)
    matches(hashed(GOOD), GOOD)
    # One verification of the same parameters each.
    assert len(asked) == 2
    assert extract_parameters(asked[0]) == extract_parameters(asked[1])
    passwords._nobodys.cache_clear()


def test_other_parameters_are_outdated() -> None:
    assert is_outdated(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(GOOD))


def test_many_at_once_wait_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, most = [0], [0]
    turn = threading.Lock()

    class Slow:
        def hash(self, _: str) -> str:
            with turn:
                at_work[0] += 1
                most[0] = max(most[0], at_work[0])
            threading.Event().wait(0.02)
            with turn:
                at_work[0] -= 1
            return "kept"

    monkeypatch.setattr(passwords, "_HASHER", Slow())
    threads = [threading.Thread(target=hashed, args=(GOOD,)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == passwords.AT_ONCE


def test_a_crowd_is_turned_away_rather_than_holding_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_PLACES", threading.BoundedSemaphore(1))
    with passwords._turn():
        for act in (lambda: hashed(GOOD), lambda: matches(None, GOOD)):
            with pytest.raises(passwords.CrowdedError, match="too many sign in at this moment"):
                act()
    with passwords._turn():
        pass


@pytest.mark.parametrize("password", ["", "short", "elevenchars", "x" * 1025])
def test_a_password_of_the_wrong_length_is_refused(password: str) -> None:
    with pytest.raises(AccessError, match=rf"the password has {len(password)} letters, expected 12 to 1024"):
        check_new("lin", password)


@pytest.mark.parametrize(
    "password",
    [
        "aaaaaaaaaaaaaa",
        "123456789012",
        "passwordpassword",
        "lin.mei-lin.mei",
        "Password1234",
        "popmi-hospital1",
        "qwertyuiop12",
    ],
)
def test_a_password_that_everybody_tries_is_refused(password: str) -> None:
    with pytest.raises(AccessError, match="without the account's name and the commonest words"):
        check_new("lin.mei", password)


@pytest.mark.parametrize("password", [GOOD, "綠色的草地在五月開花了呀對吧", "kX9#vQ2!mZ7p"])
def test_a_password_of_words_is_taken(password: str) -> None:
    check_new("lin.mei", password)
