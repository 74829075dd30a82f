"""A database knows itself from another.

Revision ID: 0003
"""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    identity = op.create_table(
        "identity",
        sa.Column("database_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("database_id", name="pk_identity"),
    )
    op.bulk_insert(identity, [{"database_id": secrets.token_hex(16)}])


def downgrade() -> None:
    op.drop_table("identity")
