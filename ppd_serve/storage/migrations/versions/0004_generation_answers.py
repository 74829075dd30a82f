"""Generation records keep what is answered about them.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("generations", sa.Column("answer", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("generations", "answer")
