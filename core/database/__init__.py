"""SQLAlchemy's only room: engine, tables, units of work and repositories."""
