"""The centre's tables, in types that SQLite and PostgreSQL share. Times are seconds since 1970-01-01 UTC.

No secret stands in them: of a session's cookie, an API token and a one-time link only the sha256 (hex), of a password
its argon2id text.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Boolean, Float, ForeignKey, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ROLES = ("viewer", "operator", "admin")
"""Each may what those before it may."""
ORDER_STATES = ("waiting", "done", "refused")
"""A row in the state ``remark`` is no order: see ``server.centre.remarks``."""
ORDER_WAYS = ("page", "api", "terminal")


class CentreBase(DeclarativeBase):
    """Parent of every table."""


def _account() -> Mapped[int]:
    return mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)


class Account(CentreBase):
    """A person who may log in."""

    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(20))
    password: Mapped[str] = mapped_column(Text)
    created: Mapped[float] = mapped_column(Float)
    disabled: Mapped[bool] = mapped_column(Boolean, default=False)


class LoginSession(CentreBase):
    """One login in one browser."""

    __tablename__ = "sessions"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    account_id: Mapped[int] = _account()
    csrf: Mapped[str] = mapped_column(String(64))
    created: Mapped[float] = mapped_column(Float)
    seen: Mapped[float] = mapped_column(Float)
    expires: Mapped[float] = mapped_column(Float)
    address: Mapped[str] = mapped_column(String(64))
    agent: Mapped[str] = mapped_column(String(200))


class ApiToken(CentreBase):
    """A key to the API, of an account and never above its role; ``used`` is when it last was."""

    __tablename__ = "tokens"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    account_id: Mapped[int] = _account()
    name: Mapped[str] = mapped_column(String(80))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(20))
    created: Mapped[float] = mapped_column(Float)
    expires: Mapped[float] = mapped_column(Float)
    used: Mapped[float | None] = mapped_column(Float)
    revoked: Mapped[bool] = mapped_column(Boolean, default=False)


class Attempt(CentreBase):
    """One failed login; ``key`` is ``name:...`` or ``address:...``."""

    __tablename__ = "attempts"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    key: Mapped[str] = mapped_column(String(200), index=True)
    time: Mapped[float] = mapped_column(Float)


class Order(CentreBase):
    """What a person wants done; the keeper does it and answers in words a person reads."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(40))
    arguments: Mapped[dict[str, Any]] = mapped_column(JSON)
    who: Mapped[str] = mapped_column(String(64))
    via: Mapped[str] = mapped_column(String(20))
    created: Mapped[float] = mapped_column(Float)
    state: Mapped[str] = mapped_column(String(20), default="waiting", index=True)
    answer: Mapped[str | None] = mapped_column(Text)
    decided: Mapped[float | None] = mapped_column(Float)


class Board(CentreBase):
    """What the keeper last saw, by subject: ``status``, ``sites``, ``models``, ``plan``."""

    __tablename__ = "board"

    key: Mapped[str] = mapped_column(String(60), primary_key=True)
    value: Mapped[Any] = mapped_column(JSON)
    time: Mapped[float] = mapped_column(Float)


class AuditLine(CentreBase):
    """A copy of one line of the audit log; ``line`` is the text as it stands there, ``digest`` its own."""

    __tablename__ = "audit_lines"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    time: Mapped[float] = mapped_column(Float)
    event: Mapped[str] = mapped_column(String(80), index=True)
    who: Mapped[str | None] = mapped_column(String(120))
    run: Mapped[str | None] = mapped_column(String(120), index=True)
    site: Mapped[str | None] = mapped_column(String(120), index=True)
    digest: Mapped[str] = mapped_column(String(64))
    line: Mapped[str] = mapped_column(Text)


class Secret(CentreBase):
    """A secret used once, such as the first admin's link."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    expires: Mapped[float] = mapped_column(Float)
