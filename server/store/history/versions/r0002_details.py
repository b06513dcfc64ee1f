"""Details of a round (curves, counts, similarities) and how far matching turned and moved a layer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the table ``details``, and three columns that are empty for older rounds."""
    op.create_table(
        "details",
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("scope", sa.String(200), primary_key=True),
        sa.Column("split", sa.String(20), primary_key=True),
        sa.Column("kind", sa.String(40), primary_key=True),
        sa.Column("value", sa.JSON, nullable=False),
    )
    op.create_index("details_by_kind", "details", ["run_id", "kind", "scope"])
    op.add_column("match_layers", sa.Column("angle", sa.Float))
    op.add_column("match_layers", sa.Column("moved", sa.Integer))
    op.add_column("match_layers", sa.Column("units", sa.Integer))


def downgrade() -> None:
    """Drop them; every other row stays."""
    with op.batch_alter_table("match_layers") as table:
        for name in ("units", "moved", "angle"):
            table.drop_column(name)
    op.drop_table("details")
