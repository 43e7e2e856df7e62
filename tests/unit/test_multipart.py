"""Forms with a file: whatever the pieces they come in, and whatever is wrong with them."""

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from api.multipart import UploadForm, harmless_name, read_upload
from api.streaming.response import ClientLeft
from core.audio.spool import Spool
from domain.errors import InvalidRequest, RouteurError, TooLarge, UnsupportedMedia

pytestmark = pytest.mark.anyio

KNOWN = frozenset({"model", "prompt", "include[]"})
CONTENT = bytes(range(256)) * 40 + b"\r\n--nearly\r\n"


def part(name: str, content: bytes, filename: str | None = None, *more: str) -> bytes:
    named = "" if filename is None else f'; filename="{filename}"'
    head = [f'Content-Disposition: form-data; name="{name}"{named}', *more]
    return b"--x\r\n" + "\r\n".join(head).encode() + b"\r\n\r\n" + content + b"\r\n"


FILE = part("file", CONTENT, "memo.wav", "Content-Type: audio/wav")
END = b"--x--\r\n"


async def read(
    folder: Path, body: bytes, *, cuts: list[int] | None = None, kind: str = "multipart/form-data; boundary=x",
    limit: int = 1_000_000, leaves: bool = False,
) -> tuple[UploadForm, bytes]:  # fmt: skip
    places = [0, *sorted(cut % (len(body) + 1) for cut in cuts or ()), len(body)]
    pieces = [body[start:end] for start, end in pairwise(places)]
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append(
        {"type": "http.disconnect"} if leaves else {"type": "http.request", "body": b"", "more_body": False}
    )

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode())]}
    async with Spool(folder, limit) as spool:
        try:
            form = await read_upload(Request(scope, receive), spool, KNOWN)
            return form, form.upload.path.read_bytes()
        except RouteurError:
            assert not messages, "the client would still be sending, and hear no answer"
            raise


@pytest.fixture(autouse=True)
async def nothing_is_left(tmp_path: Path) -> AsyncIterator[None]:
    yield
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240 - a test


async def test_fields_and_the_file_are_read_in_any_order(tmp_path: Path) -> None:
    before = part("model", b"whisper-1") + part("include[]", b"a")
    after = part("include[]", b"b") + part("prompt", "à tous".encode())
    form, content = await read(tmp_path, before + FILE + after + END)
    assert form.fields == {"model": ["whisper-1"], "include[]": ["a", "b"], "prompt": ["à tous"]}
    assert (form.upload.name, form.upload.size) == ("memo.wav", len(CONTENT))
    assert content == CONTENT


@given(cuts=st.lists(st.integers(0, 12_000), max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
async def test_it_does_not_matter_how_it_is_cut(tmp_path: Path, cuts: list[int]) -> None:
    form, content = await read(tmp_path, part("model", b"m") + FILE + END, cuts=cuts)
    assert (form.fields, content) == ({"model": ["m"]}, CONTENT)


async def test_byte_by_byte(tmp_path: Path) -> None:
    body = part("model", b"m") + part("file", b"\r\n--\r\n-\r", "a.wav") + END
    form, content = await read(tmp_path, body, cuts=list(range(len(body))))
    assert (form.fields, content) == ({"model": ["m"]}, b"\r\n--\r\n-\r")


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (part("model", b"m") + END, "missing_file", "no file"),
        (END, "missing_file", "no file"),
        (FILE + FILE + END, "two_files", "two files"),
        (FILE + part("prompt", b"x", "b.wav") + END, "invalid_form", "second file"),
        (part("file", b"text") + END, "not_a_file", "filename"),
        (part("modle", b"m") + FILE + END, "unknown_field", "'modle'"),
        (part("model", b"m") + part("model", b"n") + FILE + END, "invalid_form", "twice"),
        (part("model", b"\xff\xfe") + FILE + END, "invalid_form", "UTF-8"),
        (part("prompt", b"x" * 70_000) + FILE + END, "invalid_form", "too long"),
        (part("include[]", b"x" * 60_000) * 4 + FILE + END, "invalid_form", "too long"),
        (part("include[]", b"x") * 70 + FILE + END, "invalid_form", "more than 64 parts"),
        (FILE, "invalid_form", "breaks off"),
        (FILE[:500], "invalid_form", "breaks off"),
        (b"", "invalid_form", "breaks off"),
        (b"hello", "invalid_form", "not well-formed"),
        (b"--x\r\nContent-Disposition: attachment\r\n\r\nx\r\n" + END, "invalid_form", "no name"),
        (b"--x\r\nno colon here\r\n\r\nx\r\n" + END, "invalid_form", "not well-formed"),
        (b"--x\r\n" + b"A: b\r\n" * 100 + b"\r\nx\r\n" + END, "invalid_form", "not well-formed"),
        (b"--x\r\nA: " + b"b" * 100_000 + b"\r\n\r\nx\r\n" + END, "invalid_form", "not well-formed"),
        (part("file", b"x", "a.wav", "Content-Transfer-Encoding: base64") + END, "invalid_form", "encoded"),
    ],
)
async def test_what_is_wrong_is_said(tmp_path: Path, body: bytes, code: str, words: str) -> None:
    for cuts in ([], list(range(0, len(body), 97))):
        with pytest.raises(InvalidRequest, match=words) as refused:
            await read(tmp_path, body, cuts=cuts)
        assert refused.value.code == code


async def test_what_follows_the_end_is_nobodys(tmp_path: Path) -> None:
    _, content = await read(tmp_path, FILE + END + b"rubbish --x\r\n" * 100, cuts=[len(FILE + END), 99_999])
    assert content == CONTENT


async def test_a_file_over_the_limit_is_refused_and_gone(tmp_path: Path) -> None:
    with pytest.raises(TooLarge) as refused:
        await read(tmp_path, FILE + END, limit=1_000, cuts=[2_000, 4_000])
    assert refused.value.param == "file"


@pytest.mark.parametrize("kind", ["application/json", "", "text/plain; boundary=x", "multipart/mixed; boundary=x"])
async def test_what_is_no_form_is_said_to_be_none(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UnsupportedMedia):
        await read(tmp_path, FILE + END, kind=kind)


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; x="y'])
async def test_a_form_without_a_boundary_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InvalidRequest, match="boundary"):
        await read(tmp_path, FILE + END, kind=kind)


async def test_a_boundary_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="boundary"):
        await read(tmp_path, FILE + END, kind="multipart/form-data; boundary=" + "x" * 5_000)


async def test_who_leaves_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ClientLeft):
        await read(tmp_path, FILE, leaves=True)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("memo.wav", "memo.wav"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\memo.wav", "memo.wav"),
        ("a\x00b\x1b[31m\r\nSet-Cookie: x.wav", "ab[31mSet-Cookie: x.wav"),
        ("\u202egnp.wav", "gnp.wav"),
        ("..", "audio"),
        ("", "audio"),
        ("/", "audio"),
        ("é" * 500, "é" * 200),
        ("\ud800x.wav", "?x.wav"),
    ],
)
async def test_names_are_made_harmless(sent: str, shown: str) -> None:
    assert harmless_name(sent) == shown
