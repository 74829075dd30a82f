"""The first schema: users, pairs, embeddings, pictures, answers, generation records.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "answers",
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("route", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("body_hash", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=True),
        sa.Column("added", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("answer", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("project", "route", "key", name="pk_answers"),
    )
    op.create_index("ix_answers_created", "answers", ["created"])
    op.create_index("ix_answers_owner", "answers", ["owner"])
    op.create_table(
        "blobs",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("doomed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_blobs"),
    )
    op.create_index("ix_blobs_doomed", "blobs", ["doomed"])
    op.create_table(
        "change_sequence",
        sa.Column("one", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("one", name="pk_change_sequence"),
    )
    op.create_table(
        "generations",
        sa.Column("generation_id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("request", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("updated", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("generation_id", name="pk_generations"),
    )
    op.create_index("ix_generations_state", "generations", ["state"])
    op.create_table(
        "removals",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("incarnation", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_removals"),
    )
    op.create_table(
        "users",
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("incarnation", sa.String(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("pairs_total", sa.BigInteger(), nullable=False),
        sa.Column("pairs_added", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("project", "user_id", name="pk_users"),
        sa.UniqueConstraint("incarnation", name="uq_users_incarnation"),
    )
    op.create_table(
        "answer_users",
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("route", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project", "route", "key"],
            ["answers.project", "answers.route", "answers.key"],
            name="fk_answer_users_project_route_key",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("project", "route", "key", "user_id", name="pk_answer_users"),
    )
    op.create_index("ix_answer_users_project_user_id", "answer_users", ["project", "user_id"])
    op.create_table(
        "embeddings",
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("space", sa.String(), nullable=False),
        sa.Column("incarnation", sa.String(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("row_count", sa.BigInteger(), nullable=False),
        sa.Column("dim", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("pairs_used", sa.BigInteger(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project", "user_id"],
            ["users.project", "users.user_id"],
            name="fk_embeddings_project_user_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("project", "user_id", "space", name="pk_embeddings"),
    )
    op.create_index(
        "ix_embeddings_space_sequence", "embeddings", ["space", "sequence"], unique=True
    )
    op.create_table(
        "generation_users",
        sa.Column("generation_id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["generation_id"],
            ["generations.generation_id"],
            name="fk_generation_users_generation_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("generation_id", "user_id", name="pk_generation_users"),
    )
    op.create_index(
        "ix_generation_users_project_user_id", "generation_users", ["project", "user_id"]
    )
    op.create_table(
        "images",
        sa.Column("image_id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("media_type", sa.String(), nullable=False),
        sa.Column("width", sa.BigInteger(), nullable=False),
        sa.Column("height", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("generation_id", sa.String(), nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name="fk_images_digest"),
        sa.ForeignKeyConstraint(
            ["generation_id"],
            ["generations.generation_id"],
            name="fk_images_generation_id",
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("image_id", name="pk_images"),
    )
    op.create_index("ix_images_digest", "images", ["digest"])
    op.create_index("ix_images_expires", "images", ["expires"])
    op.create_index("ix_images_generation_id", "images", ["generation_id"])
    op.create_table(
        "pairs",
        sa.Column("pair_id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("preferred_image_id", sa.String(), nullable=False),
        sa.Column("rejected_image_id", sa.String(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["preferred_image_id"], ["images.image_id"], name="fk_pairs_preferred_image_id"
        ),
        sa.ForeignKeyConstraint(
            ["project", "user_id"],
            ["users.project", "users.user_id"],
            name="fk_pairs_project_user_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["rejected_image_id"], ["images.image_id"], name="fk_pairs_rejected_image_id"
        ),
        sa.PrimaryKeyConstraint("pair_id", name="pk_pairs"),
    )
    op.create_index("ix_pairs_preferred_image_id", "pairs", ["preferred_image_id"])
    op.create_index(
        "ix_pairs_project_user_id_position",
        "pairs",
        ["project", "user_id", "position"],
        unique=True,
    )
    op.create_index("ix_pairs_rejected_image_id", "pairs", ["rejected_image_id"])
    op.execute("INSERT INTO change_sequence (one, value) VALUES (1, 0)")


def downgrade() -> None:
    raise NotImplementedError("there is nothing before the first schema")
