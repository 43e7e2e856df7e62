"""`routeur transcribe`: alone, beside a server, interrupted, and with mistakes."""

import re
import signal
from pathlib import Path

import pytest

from tests.fakes.hearing import SENTENCES, accuracy, recording
from tests.fakes.processes import routeur, serving, start
from tests.fakes.speech import file_of, need_speech

pytestmark = pytest.mark.e2e

RUN_ID = r"[0-9a-f]{8}-[0-9a-f-]{27}"


def memo(folder: Path, times: int = 1, name: str = "memo.mp3") -> Path:
    need_speech()
    path = folder / name
    path.write_bytes(file_of(recording(SENTENCES * times)[0], "mp3", "libmp3lame", rate=44_100))
    return path


def uploads(folder: Path) -> list[Path]:
    return [*folder.rglob("uploads/*")]


def test_a_file_is_transcribed_in_the_terminal_alone(tmp_path: Path) -> None:
    done = routeur(tmp_path, "transcribe", str(memo(tmp_path)), "--format", "srt")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1\n00:00:0")
    assert done.stdout.count("-->") == len(SENTENCES)
    assert "100 %" in done.stderr
    assert not uploads(tmp_path)
    found = re.search(RUN_ID, done.stderr)
    assert found
    assert "completed" in routeur(tmp_path, "runs", "show", found[0]).stdout


def test_a_server_does_what_the_terminal_follows_and_the_file_gets_the_words(tmp_path: Path) -> None:
    file = memo(tmp_path)
    with serving(tmp_path) as server:
        server.wait_for("startup complete")
        done = routeur(tmp_path, "transcribe", str(file), "--output", "out.txt", "--language", "en")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert accuracy(" ".join(SENTENCES), (tmp_path / "out.txt").read_text()) >= 0.85
        server.wait_for("run ended")


def test_ctrl_c_cancels_and_leaves_nothing(tmp_path: Path) -> None:
    file = memo(tmp_path, 20)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs us in the background has it ignored
    command = start(tmp_path, "transcribe", str(file))
    run_id = command.wait_for(RUN_ID)[0]
    until_it_runs = ""
    while "running" not in until_it_runs:
        until_it_runs = routeur(tmp_path, "runs", "show", run_id).stdout
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(timeout=45) == 130
    assert "Traceback" not in command.rest()
    assert "cancelled" in routeur(tmp_path, "runs", "show", run_id).stdout
    assert not uploads(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nothing.mp3",), 2, "does not exist"),
        (("text.wav",), 2, "not audio"),
        (("empty.wav",), 2, "empty"),
        (("text.wav", "--format", "docx"), 2, "docx"),
        (("text.wav", "--model", "nobody/x"), 2, "nobody"),
        (("text.wav", "--language", "x y"), 2, "language"),
        (("text.wav", "--output", "no/such/folder.srt"), 2, "no folder"),
    ],
)
def test_a_mistake_is_a_line_and_not_a_trace(tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    (tmp_path / "text.wav").write_text("this is no sound, whatever it is called")
    (tmp_path / "empty.wav").touch()
    done = routeur(tmp_path, "transcribe", *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not uploads(tmp_path)


def test_a_file_that_breaks_off_while_it_is_decoded_is_a_line_too(tmp_path: Path) -> None:
    whole = memo(tmp_path).read_bytes()
    (tmp_path / "short.mp3").write_bytes(whole[:900])
    done = routeur(tmp_path, "transcribe", "short.mp3")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert not uploads(tmp_path)
