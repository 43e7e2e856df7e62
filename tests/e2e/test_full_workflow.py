"""The product as a newcomer meets it: a process, its printed words, a paste, a kill, a start again."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.fakes.processes import ROUTEUR, address_of, environment, routeur, serving

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


def test_what_the_start_prints_can_be_pasted_and_answers(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        address_of(server)
        server.wait_for("Paste this")
        server.wait_for("startup complete")
        text = "".join(server.lines)
        start = text.index("TOKEN=$(")
        call = text[start : text.index("\n\n", start)]
        done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, timeout=20, check=True)
    assert "event: run.started" in done.stdout
    assert '"name":"calculator"' in done.stdout
    assert '"output":"42"' in done.stdout
    assert done.stdout.count("event: run.finished") == 1


def test_a_server_killed_in_the_middle_of_a_stream_starts_again_and_keeps_its_logins(tmp_path: Path) -> None:
    with serving(tmp_path, ADMIN_PASSWORD="a good password") as server:
        address = address_of(server)
        server.wait_for("startup complete")
        form = {"grant_type": "password", "username": "admin", "password": "a good password"}
        tokens = httpx.post(f"{address}/auth/token", data=form).json()
        headers = {"authorization": f"Bearer {tokens['access_token']}"}
        with httpx.stream(
            "POST", f"{address}/completion/stream", json={"message": "x " * 100}, headers=headers
        ) as stream:
            next(stream.iter_bytes())
            server.process.kill()
            server.process.wait()
    with serving(tmp_path) as server:
        address = address_of(server)
        server.wait_for("startup complete")
        assert httpx.get(f"{address}/auth/me", headers=headers).json()["username"] == "admin"
        answer = httpx.post(f"{address}/completion", json={"message": "again"}, headers=headers)
        assert answer.status_code == 200


def test_a_polite_stop_ends_within_its_grace(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.wait_for("startup complete")
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("Application shutdown complete")
        assert server.process.wait(timeout=10) in (0, -signal.SIGTERM)


def test_users_and_keys_are_managed_from_the_side_door_while_the_server_runs(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        address = address_of(server)
        server.wait_for("startup complete")
        added = routeur(tmp_path, "users", "add", "ada", typed="a good password\na good password\n")
        assert added.returncode == 0, added.stderr
        made = routeur(tmp_path, "keys", "create", "ada", "--name", "ci", "--scopes", "completion")
        key = made.stdout.strip()
        assert key.startswith("rk_")
        headers = {"authorization": f"Bearer {key}"}
        assert httpx.get(f"{address}/auth/me", headers=headers).json()["username"] == "ada"
        assert "ada" in routeur(tmp_path, "users", "list").stdout
        listed = routeur(tmp_path, "keys", "list", "ada").stdout
        assert "ci" in listed
        assert key not in listed
        assert routeur(tmp_path, "users", "disable", "ada").returncode == 0
        assert httpx.get(f"{address}/auth/me", headers=headers).status_code == 401
        assert routeur(tmp_path, "users", "disable", "ada", "--undo").returncode == 0
        assert httpx.get(f"{address}/auth/me", headers=headers).status_code == 200
        identity = made.stderr.split("(")[1].split(")")[0]
        assert routeur(tmp_path, "keys", "revoke", "ada", identity).returncode == 0
        assert httpx.get(f"{address}/auth/me", headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("users", "disable", "nobody"), "There is no user 'nobody'"),
        (("keys", "create", "nobody"), "There is no user 'nobody'"),
        (("users", "add", "../x", "--password", "a good password"), "username"),
        (("keys", "create", "admin", "--scopes", "flying"), "flying"),
    ],
)
def test_a_mistake_on_the_command_line_is_a_line_not_a_trace(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = routeur(tmp_path, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_that_cannot_work_stop_the_start_with_their_names(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROUTEUR, "serve"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(tmp_path, SECRET_KEY="short", PORT="x"),
        check=False,
    )
    assert done.returncode == 2
    assert "SECRET_KEY" in done.stderr
    assert "PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_agent_answers_in_the_terminal(tmp_path: Path) -> None:
    done = routeur(tmp_path, "chat", "--agent", "react", "what is 6 times 7?")
    assert done.returncode == 0, done.stderr
    assert "-> calculator {'expression': '6 * 7'}" in done.stdout
    assert "calculator answered: 42" in done.stdout
    assert "offline/rules, 85 + 21 tokens" in done.stdout
    piped = routeur(tmp_path, "chat", typed="hello there\n")
    assert "You said: hello there" in piped.stdout
    missing = routeur(tmp_path, "chat", "--agent", "nobody", "x")
    assert missing.returncode == 2
    assert "Available" in missing.stderr


def test_the_doctor_names_what_is_sick(tmp_path: Path) -> None:
    healthy = routeur(tmp_path, "doctor")
    assert healthy.returncode == 0, healthy.stdout
    assert "calculator, clock" in healthy.stdout
    broken = tmp_path / "plugins" / "broken"
    broken.mkdir(parents=True)
    (broken / "config.yaml").write_text("colour: red\n")
    sick = routeur(tmp_path, "doctor")
    assert sick.returncode == 1
    assert "broken" in sick.stdout


def test_the_app_imports_quickly_without_providers() -> None:
    """The promise is 0.8 s; what is checked is what makes it true on any machine: nothing heavy is imported."""
    code = "import app, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    heavy = {
        "openai",
        "langchain_openai",
        "langchain_mistralai",
        "langchain_ollama",
        "langchain",
        "alembic",
        "numpy",
        "tiktoken",
    }
    assert not heavy & set(done.stdout.split())
