"""Alembic's entry: the connection is handed over by `core.database.migrate`, inside its transaction."""

from alembic import context

from core.database.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, compare_type=True)
context.run_migrations()
