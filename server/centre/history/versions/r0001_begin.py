"""The centre's first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Boolean, Column, Float, Integer, String, Text

revision = "0001"
down_revision = None


def _account() -> Column[int]:
    return Column("account_id", Integer, sa.ForeignKey("accounts.id", ondelete="CASCADE"), nullable=False, index=True)


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "accounts",
        Column("id", Integer, primary_key=True),
        Column("name", String(64), nullable=False, unique=True),
        Column("role", String(20), nullable=False),
        Column("password", Text, nullable=False),
        Column("created", Float, nullable=False),
        Column("disabled", Boolean, nullable=False),
    )
    op.create_table(
        "sessions",
        Column("digest", String(64), primary_key=True),
        _account(),
        Column("csrf", String(64), nullable=False),
        Column("created", Float, nullable=False),
        Column("seen", Float, nullable=False),
        Column("expires", Float, nullable=False),
        Column("address", String(64), nullable=False),
        Column("agent", String(200), nullable=False),
    )
    op.create_table(
        "tokens",
        Column("id", Integer, primary_key=True),
        _account(),
        Column("name", String(80), nullable=False),
        Column("digest", String(64), nullable=False, unique=True),
        Column("role", String(20), nullable=False),
        Column("created", Float, nullable=False),
        Column("expires", Float, nullable=False),
        Column("used", Float),
        Column("revoked", Boolean, nullable=False),
    )
    op.create_table(
        "attempts",
        Column("id", Integer, primary_key=True),
        Column("key", String(200), nullable=False, index=True),
        Column("time", Float, nullable=False),
    )
    _acts_and_shown()


def _acts_and_shown() -> None:
    op.create_table(
        "orders",
        Column("id", Integer, primary_key=True),
        Column("kind", String(40), nullable=False),
        Column("arguments", sa.JSON, nullable=False),
        Column("who", String(64), nullable=False),
        Column("via", String(20), nullable=False),
        Column("created", Float, nullable=False),
        Column("state", String(20), nullable=False, index=True),
        Column("answer", Text),
        Column("decided", Float),
    )
    op.create_table(
        "board",
        Column("key", String(60), primary_key=True),
        Column("value", sa.JSON, nullable=False),
        Column("time", Float, nullable=False),
    )
    op.create_table(
        "audit_lines",
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("time", Float, nullable=False),
        Column("event", String(80), nullable=False, index=True),
        Column("who", String(120)),
        Column("run", String(120), index=True),
        Column("site", String(120), index=True),
        Column("digest", String(64), nullable=False),
        Column("line", Text, nullable=False),
    )
    op.create_table(
        "secrets",
        Column("name", String(40), primary_key=True),
        Column("digest", String(64), nullable=False),
        Column("expires", Float, nullable=False),
    )


def downgrade() -> None:
    """Drop them with all accounts, orders and copies: a release before them knows no centre."""
    for table in ("secrets", "audit_lines", "board", "orders", "attempts", "tokens", "sessions", "accounts"):
        op.drop_table(table)
