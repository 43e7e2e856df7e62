"""`routeur transcribe FILE`: what is said in a recording, from the terminal."""

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from api.audio_forms import TranscriptionForm
from api.multipart import harmless_name
from api.streaming.transcripts import TEXTS, json_body, verbose_body
from cli_runs import background_of, help_out
from core.audio.spool import Spool
from domain.audio import AudioUpload, Transcript
from domain.auth import Principal
from domain.background import RunAccepted
from domain.events import AgentEvent, RunCancelled, RunFailed, RunFinished, RunResumed, RunTimedOut, StateUpdated
from services.background import Background
from services.container import Services
from services.transcription_jobs import JobRequest
from terminal import checked, err, operator_of, with_services

_BLOCK = 1 << 20
_LET_GO = 5.0  # seconds for a run that is cancelled here to end
_INTERRUPTED = 130  # what a shell says of a command that Ctrl-C has ended


class Form(StrEnum):
    """How the transcript is written."""

    TEXT = "text"
    SRT = "srt"
    VTT = "vtt"
    JSON = "json"
    VERBOSE_JSON = "verbose_json"


def transcribe(
    file: Annotated[Path, typer.Argument(help="A recording: wav, mp3, m4a, webm, ogg, flac ...", exists=True,
                                         dir_okay=False, readable=True)],
    model: Annotated[str | None, typer.Option(help="provider/name (TRANSCRIPTION_MODEL).")] = None,
    language: Annotated[str | None, typer.Option(help="Of what is said, such as fr; unset: it is found out.")] = None,
    form: Annotated[Form, typer.Option("--format", help="How it is written.")] = Form.TEXT,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Into this file.", dir_okay=False)] = None,
    user: Annotated[str | None, typer.Option("--user", help="Whose run it is (ADMIN_USERNAME).")] = None,
) -> None:  # fmt: skip
    """Write down what is said in a file. It is a background run: a server or worker on the same DATA_DIR does it, or
    this terminal; Ctrl-C cancels it."""
    wish = {"model": model, "language": language, "response_format": form.value}
    asked = checked(lambda: TranscriptionForm.model_validate(wish))
    if output is not None and not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent}", param_hint="--output")

    async def work(services: Services) -> Transcript:
        background = background_of(services)
        await services.users.ensure_admin()
        caller = await operator_of(services, user)
        async with services.transcription.spool() as spool:
            upload = await _copied(file, spool)
            job = JobRequest(upload, asked.options(), asked.response_format)
            async with background.at_work(takes=False):
                accepted = await services.transcription_jobs.submit(spool, job, caller)
                await _until_it_ends(services, background, accepted, caller)
        return (await services.transcription_jobs.result(accepted.run_id, caller)).transcript

    try:
        transcript = with_services(work)
    except KeyboardInterrupt:
        err.print(Text("cancelled", "yellow"))
        raise typer.Exit(_INTERRUPTED) from None
    _write(_RENDER[form](transcript), output)


async def _copied(file: Path, spool: Spool) -> AudioUpload:
    with await asyncio.to_thread(file.open, "rb") as source:
        while block := await asyncio.to_thread(source.read, _BLOCK):
            await spool.write(block)
    return await spool.upload(harmless_name(file.name))


async def _until_it_ends(services: Services, background: Background, accepted: RunAccepted, caller: Principal) -> None:
    """Show how far it is. Interrupted, it is cancelled."""
    err.print(Text(f"run {accepted.run_id} by {accepted.model}", "dim"), soft_wrap=True)
    helping = asyncio.create_task(help_out(background, accepted))
    try:
        await _follow(services, accepted.run_id)
    except asyncio.CancelledError:
        await background.runs.cancel(accepted.run_id, caller)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LET_GO):
                await background.worker.finished(accepted.run_id)
        raise
    finally:
        helping.cancel()


async def _follow(services: Services, run_id: str) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
               TextColumn("{task.fields[told]}"), TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("waiting", total=100, told="")
        async for batch in services.events.follow(run_id, 0, heartbeat=5):
            for envelope in () if isinstance(batch, tuple) else batch:
                _show(envelope.event, bar, task)


def _show(event: AgentEvent, bar: Progress, task: TaskID) -> None:
    match event:
        case StateUpdated(data=data):
            told = f"{_clock(data['seconds'])} of {_clock(data['duration'])}"
            bar.update(task, completed=data["progress"], description="listening", told=told)
        case RunResumed():
            bar.console.print(Text(f"goes on after {event.reason}, attempt {event.attempt}", "yellow"))
        case RunFinished():
            bar.update(task, completed=100, description="done")
        case RunFailed() | RunTimedOut():
            bar.stop()
            err.print(Text(f"{event.kind.removeprefix('run.')}: {event.message}", "bold red"), soft_wrap=True)
            raise typer.Exit(1)
        case RunCancelled():
            bar.stop()
            err.print(Text(f"cancelled: {event.reason}", "yellow"), soft_wrap=True)
            raise typer.Exit(1)
        case _:
            pass


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _json(body: dict[str, Any]) -> str:
    return orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


_RENDER: dict[Form, Callable[[Transcript], str]] = {
    **{Form(name): render for name, (render, _) in TEXTS.items()},
    Form.JSON: lambda transcript: _json(json_body(transcript)),
    Form.VERBOSE_JSON: lambda transcript: _json(verbose_body(transcript, task="transcribe")),
}


def _write(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"cannot write {output}: {error.strerror}") from error
