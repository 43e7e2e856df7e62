"""Documentation is tested like code."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from config.environment import setting_fields
from tests.fakes.processes import address_of, serving

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"))
    if ".venv" not in path.parts
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readmes_settings_exist() -> None:
    known = {field.env for field in setting_fields()} | {f"{field.env}_FILE" for field in setting_fields()}
    named = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=[^`]*)?`", (ROOT / "README.md").read_text()))
    assert named
    assert named <= known


@pytest.mark.e2e
def test_the_sixty_seconds_of_the_readme_work_by_pasting(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().split("## Sixty seconds")[1].split("\n## ")[0]
    start, *calls = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    password = re.search(r'ADMIN_PASSWORD="([^"]+)" make run', start)
    assert password
    with serving(tmp_path, ADMIN_PASSWORD=password[1]) as server:
        address = address_of(server)
        server.wait_for("startup complete")
        script = "set -e\n" + "\n".join(calls).replace("http://127.0.0.1:8000", address)
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, timeout=60, env=dict(os.environ), check=False
        )
    assert done.returncode == 0, done.stderr
    assert '"output":"42"' in done.stdout
    assert '"id": "offline/rules"' in done.stdout
    assert '"agent":"simple"' in done.stdout
    assert "calculator answered: 56" in done.stdout, "the background run"
    assert "problem" not in done.stdout
