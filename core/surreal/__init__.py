"""SurrealDB's only room: sessions and runs in the embedded engine."""
