"""The tables as releases wrote them before they had revisions.

Those releases had two forms: without ``candidates``, and with sizes of 32 bits. Both become this one; a database that
is there already keeps every row.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Boolean, Column, Float, Integer, MetaData, String, Table, Text

revision = "0001"
down_revision = None

_TABLES = MetaData()


def _run() -> Column[int]:
    return Column("run_id", Integer, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)


def _round() -> Column[int]:
    return Column("round", Integer, primary_key=True, autoincrement=False)


Table(
    "runs", _TABLES,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("status", String(20), nullable=False),
    Column("reason", Text),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("finished", Float),
    Column("heartbeat", Float, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("strategy", String(40), nullable=False),
    Column("seed", Integer, nullable=False),
    Column("rounds_planned", Integer, nullable=False),
    Column("data_name", String(200), nullable=False),
    Column("phantom", Boolean, nullable=False),
    Column("classes", sa.JSON, nullable=False),
    Column("sites", sa.JSON, nullable=False),
    Column("config", sa.JSON, nullable=False),
    Column("environment", sa.JSON, nullable=False),
)  # fmt: skip
Table(
    "rounds", _TABLES, _run(), _round(),
    Column("started", Float, nullable=False),
    Column("finished", Float),
    Column("outcome", String(20), nullable=False),
    Column("seconds_total", Float),
    Column("seconds_train", Float),
    Column("seconds_fuse", Float),
    Column("seconds_evaluate", Float),
    Column("notes", sa.JSON, nullable=False),
    Column("model_sha256", String(64)),
)  # fmt: skip
Table(
    "site_rounds", _TABLES, _run(), _round(),
    Column("site", String(200), primary_key=True),
    Column("phase", String(20), primary_key=True),
    Column("outcome", String(20), nullable=False),
    Column("reason", Text),
    Column("num_examples", Integer),
    Column("seconds", Float),
    Column("bytes_up", sa.BigInteger),
    Column("bytes_down", sa.BigInteger),
    Column("epsilon", Float),
    Column("train_loss", Float),
)  # fmt: skip
Table(
    "metrics", _TABLES, _run(), _round(),
    Column("scope", String(200), primary_key=True),
    Column("split", String(20), primary_key=True),
    Column("name", String(60), primary_key=True),
    Column("value", Float),
    Column("lower", Float),
    Column("upper", Float),
    sa.Index("metrics_by_name", "run_id", "name", "split"),
)  # fmt: skip
Table(
    "match_layers", _TABLES, _run(), _round(),
    Column("site", String(200), primary_key=True),
    Column("layer", String(200), primary_key=True),
    Column("gain", Float),
    Column("identity", Boolean, nullable=False),
    Column("note", Text),
)  # fmt: skip
Table(
    "candidates", _TABLES, _run(), _round(),
    Column("candidate", String(200), primary_key=True),
    Column("site", String(200), primary_key=True),
    Column("num_examples", Integer, nullable=False),
    Column("loss", Float),
    Column("accuracy", Float),
    Column("auroc", Float),
)  # fmt: skip
Table(
    "events", _TABLES,
    Column("id", Integer, primary_key=True),
    Column("run_id", Integer, sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("round", Integer),
    Column("time", Float, nullable=False),
    Column("level", String(20), nullable=False),
    Column("text", Text, nullable=False),
)  # fmt: skip


def upgrade() -> None:
    """Make the tables that are missing; let sizes hold 64 bits, because a candidate of a large model weighs more."""
    connection = op.get_bind()
    _TABLES.create_all(connection)
    # SQLite's whole numbers have 64 bits whatever the column says.
    if connection.dialect.name == "sqlite":
        return
    for column in sa.inspect(connection).get_columns("site_rounds"):
        if column["name"] in ("bytes_up", "bytes_down") and not isinstance(column["type"], sa.BigInteger):
            op.alter_column("site_rounds", column["name"], type_=sa.BigInteger)


def downgrade() -> None:
    """Change nothing: a release without revisions reads and writes these very tables."""
