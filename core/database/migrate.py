"""Bringing the schema up to date, at start. Two processes that start at once take turns."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from config.settings import SettingsError

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
_LOCK = 7_203_518_864  # any number that nobody else uses for pg_advisory_lock


async def upgrade(engine: AsyncEngine, revision: str = "head") -> None:
    """Run the migrations up to `revision`.

    Raises:
        SettingsError: the database was made by a newer version of this program.
    """
    async with engine.connect() as plain:
        connection = await plain.execution_options(routeur_begin="BEGIN IMMEDIATE")
        async with connection.begin():
            await connection.run_sync(_upgrade, revision)


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection, revision: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    try:
        command.upgrade(alembic_config(connection), revision)
    except CommandError as error:
        if "Can't locate revision" in str(error):
            raise SettingsError("the database was made by a newer version of this program; use that one") from error
        raise
