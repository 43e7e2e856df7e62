"""Background runs from the terminal, with a server at work on the same database and without one."""

import re
import signal
from pathlib import Path

import pytest

from tests.fakes.processes import AGENTS, routeur, running, serving, start

pytestmark = pytest.mark.e2e

RUN_ID = r"[0-9a-f]{8}-[0-9a-f-]{27}"


def test_a_run_is_followed_to_its_end_in_the_terminal_alone(tmp_path: Path) -> None:
    done = routeur(tmp_path, "run", "react", "--follow", "What is 6 times 7?")
    assert done.returncode == 0, done.stderr
    assert "-> calculator {'expression': '6 * 7'}" in done.stdout
    assert "calculator answered: 42" in done.stdout
    assert "completed by offline/rules" in done.stderr
    found = re.search(RUN_ID, done.stderr)
    assert found
    shown = routeur(tmp_path, "runs", "show", found[0])
    assert "completed" in shown.stdout
    assert "calculator answered: 42" in shown.stdout
    listed = routeur(tmp_path, "runs", "list").stdout
    assert found[0] in listed
    assert "What is 6 times 7?" in listed


def test_a_run_is_done_by_whoever_is_at_work(tmp_path: Path) -> None:
    queued = routeur(tmp_path, "run", "simple", "hello")
    found = re.search(RUN_ID, queued.stdout)
    assert found
    assert "queued" in routeur(tmp_path, "runs", "show", found[0]).stdout
    with running(tmp_path, "worker") as worker:
        worker.wait_for(r"takes \d+ runs at once")
        worker.wait_for("run ended")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(timeout=10) == 0
    shown = routeur(tmp_path, "runs", "show", found[0]).stdout
    assert "completed" in shown
    assert "hello" in shown


def test_a_server_does_what_the_terminal_follows_and_the_terminal_cancels(tmp_path: Path) -> None:
    with serving(tmp_path, PLUGINS_DIR=str(AGENTS)) as server:
        server.wait_for("startup complete")
        follower = start(tmp_path, "run", "misfit", "--follow", "hang 60", PLUGINS_DIR=str(AGENTS))
        run_id = follower.wait_for(RUN_ID)[0]
        listed = ""
        while "running" not in listed:
            listed = routeur(tmp_path, "runs", "list", "--status", "running").stdout
        cancelled = routeur(tmp_path, "runs", "cancel", run_id)
        assert "cancel" in cancelled.stdout
        follower.wait_for("cancelled: Cancelled by its owner")
        assert follower.process.wait(timeout=10) == 1


def test_a_failed_run_is_a_dead_letter_and_is_sent_again(tmp_path: Path) -> None:
    failed = routeur(tmp_path, "run", "misfit", "--follow", "fail 1", PLUGINS_DIR=str(AGENTS))
    assert failed.returncode == 1
    assert "failed: The agent 'misfit' failed." in failed.stderr
    found = re.search(RUN_ID, failed.stderr)
    assert found
    assert found[0] in routeur(tmp_path, "runs", "list", "--dead").stdout
    again = routeur(tmp_path, "runs", "requeue", found[0], PLUGINS_DIR=str(AGENTS))
    assert "is in the queue" in again.stdout
    twice = routeur(tmp_path, "runs", "requeue", found[0], PLUGINS_DIR=str(AGENTS))
    assert twice.returncode == 2
    assert "only once" in twice.stderr
    for command in ("show", "cancel", "requeue"):
        unknown = routeur(tmp_path, "runs", command, "nothing", PLUGINS_DIR=str(AGENTS))
        assert (unknown.returncode, "no such run" in unknown.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "nobody", "x"), "nobody"),
        (("runs", "list", "--status", "flying"), "flying"),
        (("run", "simple", " "), "empty"),
    ],
)
def test_a_mistake_is_a_line_and_not_a_trace(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = routeur(tmp_path, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
