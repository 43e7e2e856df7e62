"""Documentation is tested like code."""

import os
import re
import subprocess
import sys
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path

import pytest

from config.environment import setting_fields
from tests.fakes.processes import address_of, environment, routeur, serving

END_OF_BLOCK = "=-=-= end of block"
#: What is another each time: ids, moments.
CHANGING = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}|\b1\d{9}\b")
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


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("page", "language"),
    [("openai-python", "python"), ("langchain", "python"), ("curl", "bash"), ("librechat", "bash")],
)
def test_the_pages_of_clients_show_what_happens(tmp_path: Path, page: str, language: str) -> None:
    """The blocks of a page, run in its order by one program, print what stands under each ("..." is anything)."""
    blocks = blocks_of((ROOT / "docs" / "clients" / f"{page}.md").read_text(), language)
    assert any(shown for _, shown in blocks)
    with serving(tmp_path, ADMIN_PASSWORD="correct horse") as server:
        address = address_of(server)
        server.wait_for("startup complete")
        key = routeur(tmp_path, "keys", "create", "admin").stdout.strip()
        say = f"\nprint('{END_OF_BLOCK}', flush=True)\n" if language == "python" else f"\necho; echo '{END_OF_BLOCK}'\n"
        script = "".join(code + say for code, _ in blocks).replace("http://127.0.0.1:8000", address)
        done = subprocess.run(
            [sys.executable, "-"] if language == "python" else ["bash", "-s"],
            input=script,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env=environment(tmp_path, OPENAI_BASE_URL=f"{address}/v1", OPENAI_API_KEY=key, URL=address, KEY=key),
            check=False,
        )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(f"{END_OF_BLOCK}\n")[:-1]
    assert len(printed) == len(blocks), done.stderr
    for (code, shown), happened in zip(blocks, printed, strict=True):
        wanted, got = (CHANGING.sub("<>", text.strip()) for text in (shown, happened))
        assert OutputChecker().check_output(wanted, got, ELLIPSIS | NORMALIZE_WHITESPACE), f"{code}\n{happened}"


def blocks_of(page: str, language: str) -> list[tuple[str, str]]:
    """The code blocks of a page in that language, each with the text block right under it."""
    found = re.findall(rf"```{language}\n(.*?)```(?:\n\n```text\n(.*?)```)?", page, re.DOTALL)
    return [(code, shown) for code, shown in found if not code.startswith("pip install")]
