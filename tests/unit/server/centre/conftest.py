"""A centre of each kind, and passwords that cost little to keep."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import Engine

from server.centre import open_centre, passwords


@pytest.fixture
def centre(database: str) -> Iterator[Engine]:
    engine = open_centre(database)
    yield engine
    engine.dispose()


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep passwords with the least work: 64 MiB for each of many would be all that these tests do."""
    monkeypatch.setattr(passwords, "_HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    passwords._nobodys.cache_clear()
