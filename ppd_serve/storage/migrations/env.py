"""Alembic's entry: runs inside the transaction that ``Database.migrate`` has begun."""

from alembic import context

from ppd_serve.storage import loop_records  # noqa: F401 (its tables belong to the metadata)
from ppd_serve.storage.records import Record

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Record.metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
