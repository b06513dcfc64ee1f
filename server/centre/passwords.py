"""Passwords: which are taken, how they are kept, and a check that takes as long for a name nobody has."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from popmi_core.errors import AccessError
from server.centre.words import N_

FEWEST_LETTERS, MOST_LETTERS = 12, 1024
DIFFERENT_LETTERS = 6
"""How many different letters must remain of a password without the words that everybody tries."""
AT_ONCE, WAITING = 2, 16
# What the lists of stolen passwords begin with, and what is obvious here.
_COMMONEST = (
    "1234567890",
    "123456789",
    "password",
    "passwort",
    "qwertyuiop",
    "qwertz",
    "qwerty",
    "asdfghjkl",
    "abcdefgh",
    "iloveyou",
    "letmein",
    "welcome",
    "administrator",
    "admin",
    "operator",
    "viewer",
    "dashboard",
    "hospital",
    "federated",
    "popmi",
)
# RFC 9106's second recommendation: three passes over 64 MiB, four lanes.
_HASHER = PasswordHasher(time_cost=3, memory_cost=65536, parallelism=4)
# A hundred log-ins at once would take 6 GB; they wait for one another instead, and only so many: whoever waits holds
# one of the threads that everybody's pages are made in.
_TURN, _PLACES = threading.BoundedSemaphore(AT_ONCE), threading.BoundedSemaphore(WAITING)


class CrowdedError(AccessError):
    """Too many sign in at this moment."""


def check_new(name: str, password: str) -> None:
    """Refuse a password that would be guessed.

    Raises:
        AccessError: If it is too short or too long, or little remains of it without the account's name and the
            commonest words.
    """
    text = _plain(password)
    if not FEWEST_LETTERS <= len(text) <= MOST_LETTERS:
        raise AccessError(
            N_(
                "account %(name)s: the password has %(length)s letters, expected %(fewest)s to %(most)s. Several words "
                "in a row are easy to keep in mind."
            ),
            name=name,
            length=len(text),
            fewest=FEWEST_LETTERS,
            most=MOST_LETTERS,
        )
    rest = text.casefold()
    for word in (name.casefold(), *_COMMONEST):
        rest = rest.replace(word, "")
    if len(set(rest)) < DIFFERENT_LETTERS:
        raise AccessError(
            N_(
                "account %(name)s: without the account's name and the commonest words, %(found)s different letters "
                "remain of the password, expected %(fewest)s. Take words that have nothing to do with this place."
            ),
            name=name,
            found=len(set(rest)),
            fewest=DIFFERENT_LETTERS,
        )


def hashed(password: str) -> str:
    """Return what is kept of a password: argon2id with its parameters and salt.

    Raises:
        CrowdedError: If too many wait for this.
    """
    with _turn():
        return _HASHER.hash(_plain(password))


def matches(kept: str | None, password: str) -> bool:
    """Say whether a password is the one that was kept; costs the same where none was (None, or empty).

    Raises:
        CrowdedError: If too many wait for this.
    """
    if len(password) > MOST_LETTERS:
        return False
    known = bool(kept)
    with _turn():
        try:
            return _HASHER.verify(kept if kept else _nobodys(), _plain(password)) and known
        except (VerificationError, InvalidHashError):
            return False


def is_outdated(kept: str) -> bool:
    """Say whether a password was kept with other parameters than today's."""
    return _HASHER.check_needs_rehash(kept)


@contextmanager
def _turn() -> Iterator[None]:
    if not _PLACES.acquire(blocking=False):
        raise CrowdedError(N_("too many sign in at this moment. Try again in a few seconds."))
    try:
        with _TURN:
            yield
    finally:
        _PLACES.release()


def _plain(password: str) -> str:
    # One keyboard composes an umlaut of two signs, another has it as one.
    return unicodedata.normalize("NFKC", password)


@lru_cache(maxsize=1)
def _nobodys() -> str:
    return _HASHER.hash("a password that nobody has")
