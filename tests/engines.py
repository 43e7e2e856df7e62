"""The servers that tests run on: SQLite always, PostgreSQL when TEST_POSTGRES_URL names one, Redis where there is one.

`.ci/run` installs and starts them, so there nothing is left out. The report's header says what there is.
"""

import os
import shutil
from pathlib import Path

POSTGRES_URL = os.environ.get("TEST_POSTGRES_URL")
ENGINES = ("sqlite", "postgresql") if POSTGRES_URL else ("sqlite",)
#: initdb and pg_ctl, for tests that stop a server of their own.
POSTGRES_PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
REDIS_SERVER = shutil.which("redis-server")
