"""The database engines that contract tests run on: SQLite always, PostgreSQL when TEST_POSTGRES_URL names a server.

`.ci/run` starts one, so there nothing is left out. The report's header says which engines there are.
"""

import os

POSTGRES_URL = os.environ.get("TEST_POSTGRES_URL")
ENGINES = ("sqlite", "postgresql") if POSTGRES_URL else ("sqlite",)
