"""Node and the packages of `tests/clients/node`: found, installed once from their lock, or the reason why not."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "node"
REQUIRED = "ROUTEUR_REQUIRE_CLIENTS"
_OLDEST = (18, 19)


@cache
def why_not() -> str | None:
    """What is missing; None when the scripts can run. Installs the packages when their lock has changed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "install Node.js 18.19 or newer and npm (Debian: apt-get install nodejs npm)"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.match(r"v(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < _OLDEST:
        return f"install Node.js 18.19 or newer; this is {version.strip()}"
    return _install()


def _install() -> str | None:
    wanted = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    stamp = FOLDER / "node_modules" / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return None
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        return f"npm ci failed in tests/clients/node: {done.stderr.strip()[-300:]}"
    stamp.write_text(wanted)
    return None


def required() -> bool:
    """Whether these tests must run, as in CI."""
    return os.environ.get(REQUIRED, "") not in ("", "0")


def run(script: str, scenario: str, **environment: str) -> Any:
    """What a script prints, as JSON."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        ["node", script, scenario],
        cwd=FOLDER,
        env={**kept, "AI_SDK_LOG_WARNINGS": "false", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    return json.loads(done.stdout)
