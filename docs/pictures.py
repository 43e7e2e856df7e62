"""Takes the pictures of the documentation from the running product: `.venv/bin/python docs/pictures.py`.

It starts `routeur serve` in an empty folder, pastes the call that it prints, and draws what the terminal showed.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
ROUTEUR = Path(sys.executable).with_name("routeur")
WIDTH = 108


def main() -> None:
    """Start, paste, draw, stop."""
    with tempfile.TemporaryDirectory() as folder:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        plain = {
            **kept,
            "DISCOVER_LOCAL": "false",
            "LOG_LEVEL": "WARNING",
            "COLUMNS": str(WIDTH),
            "PYTHONUNBUFFERED": "1",
        }
        environment = {**plain, "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm-256color"}
        with subprocess.Popen(
            [ROUTEUR, "serve"], stdout=subprocess.PIPE, text=True, cwd=folder, env=environment
        ) as server:
            try:
                shown = read_welcome(server)
                call = re.sub(r"\x1b\[[0-9;]*m", "", shown[shown.index("TOKEN=") :])
                answer = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=True).stdout
            finally:
                server.terminate()
        asked = [ROUTEUR, "run", "react", "--follow", "What is 6 times 7?"]
        run = subprocess.run(
            asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, cwd=folder, env=environment
        ).stdout
        listed = subprocess.run(
            [ROUTEUR, "runs", "list"], capture_output=True, text=True, check=True, cwd=folder, env=environment
        ).stdout
        transcribe(folder, environment)
    run = "\n".join(line for line in re.split(r"[\r\n]+", run) if "in the queue" not in line)  # a spinner's many steps
    said = f'$ routeur run react --follow "What is 6 times 7?"\n{run}\n$ routeur runs list\n{listed}'
    draw(said, "a run in the background", HERE / "images" / "run.svg")
    draw("$ make run\n" + shown, "make run", HERE / "images" / "start.svg")
    short = re.sub(r'"(run_id|at|message_id|call_id)":"[^"]*",?', "", answer)
    question = '{"message": "What is 6 times 7?", "agent": "react"}'
    asked = f"$ curl -N .../completion/stream -d '{question}'\n"
    draw(asked + short.strip(), "a streamed answer (ids and times left out)", HERE / "images" / "stream.svg")


def transcribe(folder: str, environment: dict[str, str]) -> None:
    """A memo, spoken by flite, from the terminal."""
    memo = (
        "The weather is very nice today and we will go to the park. My brother lives in a small house near the river."
    )
    subprocess.run(["flite", "-voice", "rms", "-t", memo, "-o", "memo.wav"], check=True, cwd=folder)
    plain = {**environment, "TTY_INTERACTIVE": "0"}  # the bar as it stands at the end
    done = subprocess.run(
        [ROUTEUR, "transcribe", "memo.wav", "--format", "srt"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, cwd=folder, env=plain,
    )  # fmt: skip
    said = f"$ routeur transcribe memo.wav --format srt\n{done.stdout.strip()}"
    draw(said, "a recording, from the terminal", HERE / "images" / "transcribe.svg")


def read_welcome(server: subprocess.Popen[str]) -> str:
    """Everything up to the end of the call that is to be pasted."""
    lines = []
    assert server.stdout is not None
    for line in server.stdout:
        lines.append(line)
        if "6 times 7" in line:
            return "".join(lines)
    raise SystemExit("the server ended before it had said how to reach it")


def draw(ansi: str, title: str, path: Path) -> None:
    """Terminal output as a picture."""
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: PTH123, SIM115
    console.print(Text.from_ansi(ansi))
    console.save_svg(str(path), title=title)
    print(f"{path}")


if __name__ == "__main__":
    main()
