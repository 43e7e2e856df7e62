"""Providers that do what a test tells them: OpenAI's wire, Mistral's and Ollama's, with every fault we know of.

The answer of each call is the next `Reply` of the queue, or the default one. What was asked is kept in `asked`; open
and aborted answers are counted, with an event to wait for.
"""

import asyncio
import base64
import io
import math
import struct
from collections import deque
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, Literal

import orjson

Fault = Literal[
    "hang_before", "hang_between", "hang_at_end", "drip", "cut", "malformed", "invalid_utf8", "crlf", "cr", "no_done",
    "no_finish", "usage_missing", "usage_twice", "usage_negative", "unknown_finish", "empty_choices", "error_inside",
    "huge_line", "not_json_arguments", "after_end", "html", "empty_body", "gzip", "redirect", "split",
    "too_few", "index_twice", "index_outside", "not_finite", "huge_number", "uneven", "not_numbers", "no_data",
    "bad_base64", "encoded_nan", "infinite", "other_encoding", "other_size", "usage_zero", "backwards",
    "hang_in_line", "cut_in_line",
]  # fmt: skip
WORDS = ("Bon", "jour ", "à tous ", "👩‍🚀", " — ", "日本", "語\n", '"quoted" ', "\\back", " ok")
TEXT = "".join(WORDS)
INPUT, OUTPUT = 11, len(WORDS)
DIMENSIONS = 8  # of an embedding
SOUND = tuple(bytes([number]) * 4_000 for number in range(1, 9))  # what is spoken, in pieces; no sound at all
SPEECH_TYPES = {"mp3": "audio/mpeg", **{form: f"audio/{form}" for form in ("opus", "aac", "flac", "wav", "pcm")}}


@dataclass
class Reply:
    """How one call is answered."""

    words: tuple[str, ...] = WORDS
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    fault: Fault | None = None
    tool: tuple[str, dict[str, Any]] | None = None
    pause: float = 0.0
    finish: str = "stop"
    reasoning: str = ""
    events: tuple[Any, ...] = ()  # of a chat completions stream, in place of all that; the end is not added
    whole: Any = None  # a whole answer, in place of all that


class FakeProvider:
    """The ASGI application; one for all wires."""

    def __init__(self) -> None:
        self.url = ""
        self.models = ["gpt-4o-mini", "fake-large"]
        self.open = 0
        self.reset()

    def reset(self) -> None:
        """As new, for the next test."""
        self.replies: deque[Reply] = deque()
        self.default = Reply()
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.connections: set[int] = set()
        self.aborted = 0
        self.calls = 0
        self.abort_seen = asyncio.Event()
        self.begun = asyncio.Event()
        self.ledger: list[tuple[int, int]] = []  # input and output tokens of each call, as the provider counts them

    def then(self, *replies: Reply) -> "FakeProvider":
        """Answer the next calls like that."""
        self.replies.extend(replies)
        return self

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        self.paths.append(path)
        self.connections.add(scope["client"][1])
        if scope["method"] == "GET":
            await self._listing(path, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        if "/audio/trans" in path:
            self.asked.append(form_of(self.headers[-1]["content-type"], body))
        else:
            self.asked.append(orjson.loads(body))
        self.calls += 1
        reply = self.replies.popleft() if self.replies else self.default
        self.open += 1
        gone = asyncio.create_task(self._gone(receive))
        answer = asyncio.create_task(self._answer(path, reply, send))
        try:
            await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
            else:
                self.aborted += 1
                self.abort_seen.set()
        finally:
            self.open -= 1
            gone.cancel()
            answer.cancel()

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _listing(self, path: str, send: Any) -> None:
        if path == "/api/tags":
            body: Any = {"models": [{"name": name, "model": name} for name in self.models]}
        elif path == "/api/version":
            body = {"version": "0.13.0"}
        elif path.endswith("/models"):
            body = {
                "object": "list",
                "data": [{"id": name, "object": "model", "owned_by": "vllm"} for name in self.models],
            }
        else:
            await _respond(send, 404, b"{}")
            return
        await _respond(send, 200, orjson.dumps(body))

    async def _answer(self, path: str, reply: Reply, send: Any) -> None:
        asked = self.asked[-1]
        streamed = bool(asked.get("stream"))
        if reply.fault == "hang_before":
            self.begun.set()
            await asyncio.Event().wait()
        if reply.status != 200 or (reply.error is not None and reply.fault is None):
            error = reply.error or {"message": "sk-secret-key-of-ours was refused", "type": "error", "code": None}
            await _respond(send, reply.status, orjson.dumps({"error": error}), reply.headers)
            return
        if reply.fault == "redirect":
            await _respond(send, 302, b"", {"location": "http://127.0.0.1:1/elsewhere"})
            return
        if reply.fault == "html":
            await _respond(send, 200, b"<html>welcome to the proxy</html>")
            return
        if reply.fault == "empty_body":
            await _respond(send, 200, b"")
            return
        if reply.fault == "gzip":
            await _respond(send, 200, b"\x1f\x8b" + b"0" * 50, {"content-encoding": "gzip"})
            return
        if path.endswith("/embeddings"):
            await self._embeddings(asked, reply, send)
            return
        if "/audio/trans" in path:
            await self._transcribe(path, asked, reply, send)
            return
        if path.endswith("/audio/speech"):
            await self._speech(path, asked, reply, send)
            return
        self.ledger.append((INPUT, 0))
        if not streamed:
            self.ledger[-1] = (INPUT, OUTPUT if path == "/api/chat" else len(reply.words))
            await self._whole(path, asked, reply, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        frames = (
            _ollama_frames(asked, reply)
            if path == "/api/chat"
            else [b"data: " + (one if isinstance(one, bytes) else orjson.dumps(one)) + b"\n\n" for one in reply.events]
            or _openai_frames(asked, reply, mistral="mistral" in path)
        )
        failed = False
        for number, frame in enumerate(frames):
            failed = failed or b'"error"' in frame  # what it still says then is not charged
            if reply.fault in ("hang_in_line", "cut_in_line"):
                await send({"type": "http.response.body", "body": b'data: {"cho', "more_body": True})
                if reply.fault == "cut_in_line":
                    return
                await asyncio.Event().wait()
            if reply.fault == "hang_between" and number == 3:
                await asyncio.Event().wait()
            if reply.fault == "cut" and number == 4:
                return
            if b'"completion_tokens":' in frame and not failed:
                self.ledger[-1] = (INPUT, _completion_tokens(frame))
            elif path == "/api/chat" and b'"eval_count":' in frame:
                self.ledger[-1] = (INPUT, OUTPUT)
            if reply.fault == "crlf":
                frame = frame.replace(b"\n", b"\r\n")
            if reply.fault == "cr" and path != "/api/chat":
                frame = frame.replace(b"\n", b"\r")
            if reply.fault == "split":
                for position in range(0, len(frame), 3):
                    await send(
                        {"type": "http.response.body", "body": frame[position : position + 3], "more_body": True}
                    )
            else:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            self.begun.set()
            if reply.fault == "drip":
                await asyncio.sleep(0.05)
            if reply.pause:
                await asyncio.sleep(reply.pause)
        if reply.fault == "hang_at_end":
            await asyncio.Event().wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _speech(self, path: str, asked: dict[str, Any], reply: Reply, send: Any) -> None:
        """`SOUND` in pieces: as audio, or as the events of OpenAI or of Mistral."""
        mistral = "mistral" in path
        events = mistral or asked.get("stream_format") == "sse"
        kind = "text/event-stream" if events else SPEECH_TYPES[asked["response_format"]]
        self.ledger.append((len(asked["input"]), OUTPUT))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode())]})
        for number, piece in enumerate(SOUND):
            if reply.fault == "hang_between" and number == 3:
                await asyncio.Event().wait()
            if reply.fault == "cut" and number == 4:
                return
            if reply.fault == "error_inside" and number == 4:
                piece = b""
                await _more(send, b'data: {"error": {"message": "overloaded sk-secret-key-of-ours"}}\n\n')
            text = base64.b64encode(piece).decode()
            event = {"type": "speech.audio.delta", "audio_data" if mistral else "audio": text}
            await _more(send, b"data: " + orjson.dumps(event) + b"\n\n" if events else piece)
            self.begun.set()
            await asyncio.sleep(reply.pause)
        if events and reply.fault != "no_done":
            counts = (len(asked["input"]), OUTPUT)
            names = ("prompt_tokens", "completion_tokens") if mistral else ("input_tokens", "output_tokens")
            usage = None if reply.fault == "usage_missing" else {**dict(zip(names, counts, strict=True))}
            if usage is not None:
                usage["total_tokens"] = sum(counts)
            await _more(send, b"data: " + orjson.dumps({"type": "speech.audio.done", "usage": usage}) + b"\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _embeddings(self, asked: dict[str, Any], reply: Reply, send: Any) -> None:
        tokens = sum(map(len, asked["input"]))
        self.ledger.append((tokens, 0))
        await asyncio.sleep(reply.pause)
        if reply.fault in ("malformed", "cut"):
            await _respond(send, 200, b'{"object": "list", "data": [{"emb')
            return
        size = asked.get("dimensions") or asked.get("output_dimension") or DIMENSIONS
        size += reply.fault == "other_size"
        encoded = (asked.get("encoding_format") == "base64") != (reply.fault == "other_encoding")
        data: list[dict[str, Any]] = []
        for index, one in enumerate(asked["input"]):
            vector = vector_of(one, size)
            data.append({"object": "embedding", "index": index, "embedding": as_base64(vector) if encoded else vector})
        last = data[-1]
        match reply.fault:
            case "too_few":
                data.pop()
            case "index_twice":
                last["index"] = 0 if len(data) > 1 else 1
            case "index_outside":
                last["index"] = len(data)
            case "huge_number":
                last["embedding"] = [1e300] * size
            case "uneven":
                last["embedding"] = last["embedding"][:-4]
            case "not_numbers":
                last["embedding"] = ["a"] * size
            case "bad_base64":
                last["embedding"] = "!" * (len(as_base64(vector)) - 1) + "="
            case "encoded_nan":
                last["embedding"] = as_base64([math.nan] * size)
            case "infinite":  # as the text of a number that is too large
                last["embedding"] = [1.0] * (size - 1)
            case "backwards":
                data.reverse()
        body: dict[str, Any] = {"object": "list", "model": asked["model"], "data": data}
        if reply.fault == "no_data":
            del body["data"]
        if reply.fault == "error_inside":
            body = {"error": {"message": "overloaded sk-secret-key-of-ours", "type": "server_error"}}
        if reply.fault != "usage_missing":
            told = {"usage_negative": -5, "usage_zero": 0}.get(reply.fault or "", tokens)
            body["usage"] = {"prompt_tokens": told, "total_tokens": told}
        raw = orjson.dumps(body)
        if reply.fault == "not_finite":  # as Python's own json writes it
            raw = raw.replace(b'"embedding":[', b'"embedding":[NaN,')
        if reply.fault == "infinite":
            raw = raw.replace(b'"embedding":[1.0,', b'"embedding":[1e999,1.0,')
        await _respond(send, 200, raw)

    async def _transcribe(self, path: str, asked: dict[str, Any], reply: Reply, send: Any) -> None:
        """The words are `reply.words`, or else tell how many seconds were sent; times are those of their middle."""
        await asyncio.sleep(reply.pause)
        seconds = seconds_of(asked["file"][2])
        said = "".join(reply.words) if reply.words is not WORDS else f"{seconds:.2f} seconds"
        if reply.fault in ("malformed", "cut"):
            await _respond(send, 200, b'{"text": "half of')
            return
        if asked.get("stream") == ["true"]:
            await self._transcribe_in_pieces(path, said, reply, send)
            return
        body: dict[str, Any] = {"text": said}
        form = asked.get("response_format", ["json"])[0]
        segment = {"id": 0, "start": 0.25, "end": seconds - 0.25, "text": f" {said}"}
        if form == "verbose_json":
            more = {"tokens": [1, 2], "temperature": 0.0, "avg_logprob": -0.5, "compression_ratio": 1.1, "seek": 0}
            segment |= {**more, "no_speech_prob": 0.01}
            body |= {"task": "transcribe", "language": "french", "duration": seconds, "segments": [segment]}
            if "word" in asked.get("timestamp_granularities[]", []):
                body["words"] = [{"word": said, "start": 0.25, "end": seconds - 0.25}]
        elif form == "diarized_json":
            body |= {"segments": [{**segment, "id": "seg_1", "type": "transcript.text.segment", "speaker": "A"}]}
        elif "mistral" in path:
            body |= {"model": asked["model"][0], "language": "fr", "segments": []}
            if "timestamp_granularities" in asked:
                body["segments"] = [
                    {"text": f" {said}", "start": 0.25, "end": seconds - 0.25, "speaker_id": "speaker_1"}
                ]
        match reply.fault:
            case "no_data":
                del body["text"]
            case "not_numbers":
                body["segments"] = [{**segment, "start": "soon"}]
            case "error_inside":
                body = {"error": {"message": "overloaded sk-secret-key-of-ours", "type": "server_error"}}
            case None if form == "json":
                details = {"audio_tokens": INPUT - 1, "text_tokens": 1}
                body["usage"] = {"type": "tokens", "input_tokens": INPUT, "output_tokens": OUTPUT}
                body["usage"] |= {"total_tokens": INPUT + OUTPUT, "input_token_details": details}
        raw = orjson.dumps(body)
        await _respond(send, 200, raw.replace(b'"start":0.25', b'"start":NaN') if reply.fault == "not_finite" else raw)

    async def _transcribe_in_pieces(self, path: str, said: str, reply: Reply, send: Any) -> None:
        kind, place, done = ("transcript.text.delta", "delta", "transcript.text.done")
        if "mistral" in path:
            kind, place, done = ("transcription.text.delta", "text", "transcription.done")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        usage = {"type": "tokens", "input_tokens": INPUT, "output_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
        events: list[dict[str, Any]] = [{"type": kind, place: word} for word in reply.words]
        if reply.fault == "error_inside":
            events.insert(2, {"error": {"message": "overloaded sk-secret-key-of-ours", "type": "server_error"}})
        if reply.fault != "no_finish":
            events.append({"type": done, "text": "".join(reply.words), "usage": usage})
        for number, event in enumerate(events):
            if reply.fault == "hang_between" and number == 3:
                await asyncio.Event().wait()
            await send(
                {"type": "http.response.body", "body": b"data: " + orjson.dumps(event) + b"\n\n", "more_body": True}
            )
            self.begun.set()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _whole(self, path: str, asked: dict[str, Any], reply: Reply, send: Any) -> None:
        await asyncio.sleep(reply.pause)
        if reply.whole is not None:
            await _respond(send, 200, orjson.dumps(reply.whole))
            return
        if reply.fault in ("malformed", "cut"):
            await _respond(send, 200, b'{"choices": [{"mess')
            return
        if reply.fault in ("hang_between", "hang_at_end", "drip"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b" ", "more_body": True})
            await asyncio.Event().wait()
        finish = (
            None if reply.fault == "no_finish" else "gone-fishing" if reply.fault == "unknown_finish" else reply.finish
        )
        text = "".join(reply.words)
        if path == "/api/chat":
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if reply.tool:
                message = {"role": "assistant", "content": "", "tool_calls": _ollama_call(reply)}
            body = {"model": asked["model"], "message": message, "done": finish is not None, "done_reason": finish}
            if reply.fault != "usage_missing":
                body |= {"prompt_eval_count": -1 if reply.fault == "usage_negative" else INPUT, "eval_count": OUTPUT}
        else:
            message = {"role": "assistant", "content": text}
            if reply.reasoning:
                message["reasoning_content"] = reply.reasoning
            if reply.tool:
                message = {"role": "assistant", "content": None, "tool_calls": [_openai_call(reply)]}
            body = {
                "id": "x",
                "object": "chat.completion",
                "model": asked["model"],
                "choices": []
                if reply.fault == "empty_choices"
                else [{"index": 0, "message": message, "finish_reason": finish}],
            }
            if reply.fault != "usage_missing":
                body["usage"] = _usage(reply)
            if reply.fault == "error_inside":
                body = {"error": {"message": "overloaded", "type": "server_error"}}
        await _respond(send, 200, orjson.dumps(body))


def vector_of(one: str | list[int], size: int) -> list[float]:
    """The vector of one input: numbers that float32 holds exactly."""
    first = float(sum(one) if isinstance(one, list) else sum(map(ord, one)))
    return [first, *(place / 8 - 0.5 for place in range(1, size))]


def as_base64(vector: list[float]) -> str:
    """As OpenAI encodes it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def form_of(content_type: str, body: bytes) -> dict[str, Any]:
    """A multipart form: each field's texts, and `file` as (name, type, content)."""
    message = BytesParser(policy=HTTP).parsebytes(b"content-type: " + content_type.encode() + b"\r\n\r\n" + body)
    found: dict[str, Any] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        assert isinstance(name, str)
        assert isinstance(content, bytes)
        if part.get_filename() is None:
            found.setdefault(name, []).append(content.decode())
        else:
            found[name] = (part.get_filename(), part.get_content_type(), content)
    return found


def seconds_of(content: bytes) -> float:
    """How much sound a file holds."""
    import av

    with av.open(io.BytesIO(content)) as opened:
        samples = sum(frame.samples for frame in opened.decode(audio=0))
        return samples / opened.streams.audio[0].rate


async def _respond(send: Any, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    pairs = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    pairs += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


async def _more(send: Any, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _completion_tokens(frame: bytes) -> int:
    return int(orjson.loads(frame.removeprefix(b"data: "))["usage"]["completion_tokens"])


def _usage(reply: Reply, written: int | None = None) -> dict[str, Any]:
    written = len(reply.words) if written is None else written
    return {
        "prompt_tokens": -5 if reply.fault == "usage_negative" else INPUT,
        "completion_tokens": written,
        "total_tokens": INPUT + written,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }


def _arguments(reply: Reply) -> str:
    assert reply.tool is not None
    return '{"expression": 6*7' if reply.fault == "not_json_arguments" else orjson.dumps(reply.tool[1]).decode()


def _openai_call(reply: Reply) -> dict[str, Any]:
    assert reply.tool is not None
    return {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": reply.tool[0], "arguments": _arguments(reply)},
    }


def _ollama_call(reply: Reply) -> list[dict[str, Any]]:
    assert reply.tool is not None
    return [{"function": {"name": reply.tool[0], "arguments": reply.tool[1]}}]


def _openai_frames(asked: dict[str, Any], reply: Reply, *, mistral: bool) -> list[bytes]:
    def frame(choices: list[Any], **more: Any) -> bytes:
        event = {
            "id": "x",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": asked["model"],
            "choices": choices,
            **more,
        }
        return b"data: " + orjson.dumps(event) + b"\n\n"

    def delta(content: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        return frame([{"index": 0, "delta": content, "finish_reason": finish}], **more)

    frames = [b": welcome\n\n", delta({"role": "assistant", "content": ""})]
    if reply.reasoning:
        frames.append(delta({"reasoning_content": reply.reasoning}))
    if reply.tool:
        call, arguments = _openai_call(reply), _arguments(reply)
        half = len(arguments) // 2
        frames.append(delta({"tool_calls": [{**call, "function": {"name": reply.tool[0], "arguments": ""}}]}))
        for part in (arguments[:half], arguments[half:]):
            frames.append(delta({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}))
    else:
        running = (asked.get("stream_options") or {}).get("continuous_usage_stats")
        frames += [
            delta({"content": word}, **({"usage": _usage(reply, number)} if running else {}))
            for number, word in enumerate(reply.words, 1)
        ]
    if reply.fault == "malformed":
        frames.insert(5, b'data: {"choices": [{"del\n\n')
    if reply.fault == "invalid_utf8":
        frames.insert(5, b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n')
    if reply.fault == "huge_line":
        frames.insert(5, b'data: {"x": "' + b"y" * 10_000_000 + b'"}\n\n')
    if reply.fault == "error_inside":
        frames.insert(
            5, b'data: {"error": {"message": "overloaded sk-secret-key-of-ours", "type": "server_error"}}\n\n'
        )
    if reply.fault == "empty_choices":
        frames.insert(3, frame([]))
    finish = "gone-fishing" if reply.fault == "unknown_finish" else "tool_calls" if reply.tool else reply.finish
    last_usage = {} if reply.fault == "usage_missing" else {"usage": _usage(reply)}
    if reply.fault != "no_finish":
        frames.append(delta({"content": ""}, finish, **(last_usage if mistral else {})))
    if reply.fault == "after_end":
        frames.append(delta({"content": "words after the end"}))
    if last_usage and not mistral:
        frames.append(frame([], **last_usage))
    if reply.fault == "usage_twice":
        frames.append(frame([], **last_usage))
    if reply.fault not in ("no_done", "no_finish"):
        frames.append(b"data: [DONE]\n\n")
    return frames


def _ollama_frames(asked: dict[str, Any], reply: Reply) -> list[bytes]:
    def line(**fields: Any) -> bytes:
        return orjson.dumps({"model": asked["model"], "created_at": "2026-11-20T00:00:00Z", **fields}) + b"\n"

    frames = []
    if reply.reasoning:
        frames.append(line(message={"role": "assistant", "content": "", "thinking": reply.reasoning}, done=False))
    if reply.tool:
        frames.append(line(message={"role": "assistant", "content": "", "tool_calls": _ollama_call(reply)}, done=False))
    else:
        frames += [line(message={"role": "assistant", "content": word}, done=False) for word in reply.words]
    if reply.fault == "malformed":
        frames.insert(4, b'{"message": {"con\n')
    if reply.fault == "invalid_utf8":
        frames.insert(4, b'{"message": {"content": "\xff"}}\n')
    if reply.fault == "huge_line":
        frames.insert(4, b'{"x": "' + b"y" * 10_000_000 + b'"}\n')
    if reply.fault == "error_inside":
        frames.insert(4, b'{"error": "overloaded"}\n')
    usage = {} if reply.fault == "usage_missing" else {"prompt_eval_count": INPUT, "eval_count": OUTPUT}
    if reply.fault == "usage_negative":
        usage["prompt_eval_count"] = -5
    if reply.fault != "no_finish":
        finish = "gone-fishing" if reply.fault == "unknown_finish" else reply.finish
        frames.append(line(message={"role": "assistant", "content": ""}, done=True, done_reason=finish, **usage))
    if reply.fault == "after_end":
        frames.append(line(message={"role": "assistant", "content": "words after the end"}, done=False))
    return frames
