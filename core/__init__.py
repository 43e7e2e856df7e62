"""The machinery under the floor: security, database, outgoing HTTP, logs, metrics. No business rules."""
