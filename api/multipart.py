"""A form with a file, read as it comes: its texts are bounded, its file goes to disk piece by piece.

Never more than a piece of it is in memory, and what is wrong is refused as soon as it is seen. Starlette's
`request.form()` would first store everything, whatever its names, and look afterwards.
"""

import re
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from api.streaming.response import ClientLeft
from core.audio.spool import Spool
from domain.audio import AudioUpload
from domain.errors import InvalidRequest, RouteurError, UnsupportedMedia
from domain.text import clean_text

FORM_BYTES = 200_000  # what a form may hold besides its file
_FIELD_BYTES = 65_536
_FIELDS = 64
_NAME_CHARS = 200
_DRAINED = 32_000_000  # bytes of a refused form that are read and dropped: who still sends hears no answer
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
FILE = "file"
_PLAIN = (b"binary", b"8bit", b"7bit")


@dataclass(frozen=True, slots=True)
class UploadForm:
    """What was sent: the texts of each field in their order, and the file."""

    fields: dict[str, list[str]]
    upload: AudioUpload


@dataclass(slots=True)
class _Part:
    """One part of the form, as far as it has come."""

    headers: dict[str, bytes] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None
    content: bytearray = field(default_factory=bytearray)


async def read_upload(request: Request, spool: Spool, known: Collection[str]) -> UploadForm:
    """The form of a request, its one `file` in `spool`.

    Args:
        known: the names of fields that are taken; `x[]` is one that may be repeated.

    Raises:
        UnsupportedMedia: it is no multipart form.
        InvalidRequest: what is wrong with it.
        TooLarge: the file is larger than the spool takes.
        ClientLeft: the client went away.
    """
    try:
        async with aclosing(request.stream()) as stream:
            try:
                parser = _FormParser(_boundary(request), known)
                async for chunk in stream:
                    for piece in parser.feed(chunk):
                        await spool.write(piece)
                parser.check_end()
            except RouteurError:
                await _drain(stream)
                raise
    except ClientDisconnect:
        raise ClientLeft("The client left.") from None
    return UploadForm(parser.fields, await spool.upload(harmless_name(parser.filename)))


def harmless_name(name: str) -> str:
    """What somebody calls a file, fit to be shown: no path, no control characters, not long."""
    last = re.split(r"[/\\]", clean_text(name))[-1]
    return _CONTROL.sub("", last).strip(" .")[:_NAME_CHARS] or "audio"


def _boundary(request: Request) -> bytes:
    try:
        kind, options = parse_options_header(request.headers.get("content-type"))
    except (ValueError, UnicodeError):
        kind, options = b"", {}
    if kind != b"multipart/form-data":
        raise UnsupportedMedia("Send the file as multipart/form-data.", code="not_multipart")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise InvalidRequest("The Content-Type of the form names no boundary.", code="no_boundary")
    return boundary


async def _drain(stream: AsyncGenerator[bytes]) -> None:
    drained = 0
    async for chunk in stream:
        drained += len(chunk)
        if drained > _DRAINED:
            return


class _FormParser:
    """python-multipart's state machine, and what we ask of each part."""

    def __init__(self, boundary: bytes, known: Collection[str]) -> None:
        self.fields: dict[str, list[str]] = {}
        self.filename = ""
        self._known = known
        self._seen_file = False
        self._ended = False
        self._parts = 0
        self._bytes = 0
        self._part = _Part()
        self._header = (bytearray(), bytearray())
        self._pieces: list[bytes] = []
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_part_data": self._data,
                    "on_part_end": self._finish,
                    "on_header_begin": self._begin_header,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise InvalidRequest("The boundary of the form is too long.", code="invalid_form") from error

    def feed(self, chunk: bytes) -> list[bytes]:
        """The pieces of the file that this chunk brings.

        Raises:
            InvalidRequest: what is wrong with the form.
        """
        if self._ended:  # what follows the last boundary is nobody's
            return []
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _invalid("The form cannot be read: it is not well-formed multipart.") from error
        pieces, self._pieces = self._pieces, []
        return pieces

    def check_end(self) -> None:
        """Raises:
        InvalidRequest: it broke off, or had no file.
        """
        if not self._ended:
            raise _invalid("The form breaks off before its end.")
        if not self._seen_file:
            raise InvalidRequest("The form has no file: send it as the field 'file'.", code="missing_file", param=FILE)

    # -- called by the parser --

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _FIELDS:
            raise _invalid(f"The form has more than {_FIELDS} parts.")
        self._part = _Part()

    def _begin_header(self) -> None:
        self._header = (bytearray(), bytearray())

    def _end_header(self) -> None:
        name, value = self._header
        self._part.headers[bytes(name).decode("latin-1").lower()] = bytes(value)

    def _open(self) -> None:
        """The head of a part is here: is it one that we take?"""
        part = self._part
        try:
            kind, options = parse_options_header(part.headers.get("content-disposition", b""))
        except (ValueError, UnicodeError):
            kind, options = b"", {}
        if kind != b"form-data" or b"name" not in options:
            raise _invalid("A part of the form has no name.")
        part.name = _decoded(options[b"name"], "The name of a field")
        if b"filename" in options:
            part.filename = options[b"filename"].decode("utf-8", "replace")
        if part.headers.get("content-transfer-encoding", b"binary").strip().lower() not in _PLAIN:
            raise _invalid("A part of the form is encoded: send it as it is.")
        if part.name == FILE:
            self._open_file(part)
        elif part.name not in self._known:
            shown = harmless_name(part.name)[:60]
            raise InvalidRequest(f"The field '{shown}' is not known here.", code="unknown_field", param=shown)
        elif part.filename is not None:
            raise _invalid("The form has a second file: one at a time.", part.name)

    def _open_file(self, part: _Part) -> None:
        if self._seen_file:
            raise InvalidRequest("The form has two files: one at a time.", code="two_files", param=FILE)
        if part.filename is None:
            raise InvalidRequest(
                "The field 'file' is a text: send a file, with its filename.", code="not_a_file", param=FILE
            )
        self._seen_file, self.filename = True, part.filename

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.name == FILE:
            self._pieces.append(data[start:end])
            return
        part.content += data[start:end]
        self._bytes += end - start
        if len(part.content) > _FIELD_BYTES or self._bytes > FORM_BYTES - _FIELD_BYTES:
            raise _invalid(f"The field '{part.name}' is too long.", part.name)

    def _finish(self) -> None:
        part = self._part
        if part.name == FILE:
            return
        texts = self.fields.setdefault(part.name, [])
        texts.append(_decoded(bytes(part.content), f"The field '{part.name}'", part.name))
        if len(texts) > 1 and not part.name.endswith("[]"):
            raise _invalid(f"The field '{part.name}' is there twice.", part.name)

    def _end(self) -> None:
        self._ended = True


def _decoded(value: bytes, what: str, param: str | None = None) -> str:
    try:
        return clean_text(value.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _invalid(f"{what} is not UTF-8.", param) from error


def _invalid(message: str, param: str | None = None) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_form", param=param)
