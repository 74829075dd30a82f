"""Questions, feedback, past embeddings and taste codes.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("embeddings", sa.Column("bits", sa.Double(), nullable=True))
    op.add_column(
        "pairs", sa.Column("version", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.create_table(
        "questions",
        sa.Column("question_id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("left_image_id", sa.String(), nullable=False),
        sa.Column("right_image_id", sa.String(), nullable=False),
        sa.Column("bits", sa.Double(), nullable=False),
        sa.Column("choice", sa.String(), nullable=True),
        sa.Column("pair_id", sa.String(), nullable=True),
        sa.Column("created", sa.Double(), nullable=False),
        _of_user("questions"),
        sa.ForeignKeyConstraint(
            ["pair_id"], ["pairs.pair_id"], name="fk_questions_pair_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("question_id", name="pk_questions"),
    )
    op.create_index("ix_questions_project_user_id", "questions", ["project", "user_id"])
    op.create_index("ix_questions_pair_id", "questions", ["pair_id"])
    op.create_table(
        "feedback",
        sa.Column("feedback_id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("image_id", sa.String(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("liked", sa.Boolean(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        _of_user("feedback"),
        sa.ForeignKeyConstraint(["image_id"], ["images.image_id"], name="fk_feedback_image_id"),
        sa.PrimaryKeyConstraint("feedback_id", name="pk_feedback"),
    )
    op.create_index(
        "ix_feedback_project_user_id_image_id",
        "feedback",
        ["project", "user_id", "image_id"],
        unique=True,
    )
    op.create_index("ix_feedback_image_id", "feedback", ["image_id"])
    op.create_table(
        "past_embeddings",
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("space", sa.String(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("incarnation", sa.String(), nullable=False),
        sa.Column("row_count", sa.BigInteger(), nullable=False),
        sa.Column("dim", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("pairs_used", sa.BigInteger(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=True),
        sa.Column("bits", sa.Double(), nullable=True),
        _of_user("past_embeddings"),
        sa.PrimaryKeyConstraint(
            "project", "user_id", "space", "version", name="pk_past_embeddings"
        ),
    )
    op.create_table(
        "taste_codes",
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        _of_user("taste_codes"),
        sa.PrimaryKeyConstraint("code", name="pk_taste_codes"),
    )
    op.create_index("ix_taste_codes_project_user_id", "taste_codes", ["project", "user_id"])
    op.create_table(
        "generation_codes",
        sa.Column("generation_id", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["generation_id"],
            ["generations.generation_id"],
            name="fk_generation_codes_generation_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["code"], ["taste_codes.code"], name="fk_generation_codes_code", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("generation_id", "code", name="pk_generation_codes"),
    )
    op.create_index("ix_generation_codes_code", "generation_codes", ["code"])


def _of_user(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["project", "user_id"],
        ["users.project", "users.user_id"],
        name=f"fk_{table}_project_user_id",
        ondelete="CASCADE",
    )


def downgrade() -> None:
    for table in ("generation_codes", "taste_codes", "past_embeddings", "feedback", "questions"):
        op.drop_table(table)
    op.drop_column("pairs", "version")
    op.drop_column("embeddings", "bits")
