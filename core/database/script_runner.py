"""Running a write script inside a unit of work (the batching writers run them on connections of their own)."""

from sqlalchemy.ext.asyncio import AsyncConnection

from core.database.record_scripts import Script, T, to_pyformat


async def run_script_on(connection: AsyncConnection, script: Script[T]) -> T:
    """Drive a script to its end on that connection."""
    postgresql = connection.dialect.name == "postgresql"
    try:
        sql, values = next(script)
        while True:
            statement = to_pyformat(sql) if postgresql else sql
            result = await connection.exec_driver_sql(statement, values)
            sql, values = script.send([tuple(row) for row in result] if result.returns_rows else [(result.rowcount,)])
    except StopIteration as end:
        done: T = end.value
        return done
