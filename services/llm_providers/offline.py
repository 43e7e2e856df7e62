"""The embedded models: no network, no weights, no chance. One answers by rules, one embeds by hashing, and they say so.

Two more speak, where their programs (flite, espeak-ng) are on this machine.

It is for the first minute of a newcomer, for demonstrations and for tests. It streams, calls tools, fills JSON schemas
and counts tokens, so that everything around a model can be seen at work; it understands nothing.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from importlib.util import find_spec
from typing import Any, cast

import orjson
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage, convert_to_messages
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from uuid_utils import uuid7

from core.audio.encoding import StreamEncoder
from core.audio.resampling import resampler
from core.http import PROVIDERS_OWN, Patience
from domain.agents import ModelParameters
from domain.embeddings import Embedded, EmbeddingRequest
from domain.errors import InvalidRequest, ModelNotFound
from domain.models import Abilities
from domain.speech import PCM_RATE, SpeechFormat, SpeechRequest, Spoken
from domain.usage import Usage
from services.feature_hashing import DIMENSIONS, MAX_DIMENSIONS, embed_ids, embed_text
from services.llm_providers.base import BaseProvider, ListedModel, ProviderConfig
from services.llm_providers.wire.answer import Answer, Delta, Fragment
from services.llm_providers.wire.completions import OFFLINE
from services.llm_providers.wire.parameters import given
from services.llm_providers.wire.routed import RoutedChat
from services.model_router import Route
from services.question_reading import Reading, arguments_for, asked_call, instance_of, wanted_keys
from services.speech_engines import ENGINES, SpeechEngine, found_engines

NAME = "rules"
HASH = "hash"
EARS = "pocketsphinx"
_TOKEN = re.compile(r"\w+|[^\w\s]")
_PIECE = re.compile(r"\s*\S+\s*?")
_CALL = re.compile(r"\bcall\s+(?P<name>[\w-]+)\s+with\s+(?P<arguments>\{.*\})", re.IGNORECASE | re.DOTALL)
_SUM = re.compile(r"[-+(]*\s*\d[\d\s.,()]*(?:(?:\*\*|[-+*/^])[\s(]*-?\s*\d[\d\s.()]*\)*)+")
_TIME = re.compile(r"\b(time|date|day|clock|today|now)\b", re.IGNORECASE)
_WORDS = {" times ": " * ", " plus ": " + ", " minus ": " - ", " divided by ": " / ", "×": "*", "÷": "/", " x ": " * "}
_ECHO_CHARS = 400
_READ_CHARS, _SUM_CHARS = 20_000, 1_000  # of a question, where calls and sums are looked for: patterns are not linear
_SLICE = 64_000  # bytes of sound encoded in one go, two seconds


class OfflineChat(RoutedChat):
    """A chat model made of rules."""

    max_tokens: int | None = None
    stop: list[str] | None = None

    @property
    def _llm_type(self) -> str:
        return "routeur-offline"

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[Any, AIMessage]:
        """This model, knowing these tools. `tool_choice`: `any` or `required` for some call, a name for that one."""
        known = [convert_to_openai_tool(tool) for tool in tools]
        return cast(Runnable[Any, AIMessage], self.bind(tools=known, tool_choice=tool_choice, **kwargs))

    async def _deltas(
        self,
        answer: Answer,
        messages: list[BaseMessage],
        stop: list[str] | None,
        kwargs: dict[str, Any],
        route: Route | None = None,
    ) -> AsyncGenerator[list[Delta]]:
        for delta in self._compose(answer, messages, stop, kwargs):
            answer.add(delta)
            yield [delta]
            await asyncio.sleep(0)  # others have their turn, as with a model that has to be waited for

    async def _whole(
        self,
        answer: Answer,
        messages: list[BaseMessage],
        stop: list[str] | None,
        kwargs: dict[str, Any],
        route: Route | None = None,
    ) -> Delta:
        deltas = self._compose(answer, messages, stop, kwargs)
        for delta in deltas:
            answer.add(delta)
        return Delta("".join(delta.text for delta in deltas))

    def _compose(
        self, answer: Answer, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> list[Delta]:
        """All pieces of the answer; its end and its usage are noted at once."""
        tools = {tool["function"]["name"]: tool["function"] for tool in kwargs.get("tools") or []}
        with _readable_schemas("tools"):
            call = _tool_call(messages, tools, kwargs.get("tool_choice"))
        answer.served = NAME
        asked = sum(count_tokens(str(message.text)) for message in messages)
        if call is not None:
            answer.finish = "tool_calls"
            answer.usage = _usage(asked, count_tokens(call.arguments) + 1)
            return [Delta(fragments=(call,))]
        text = _words(messages, kwargs.get("response_format"))
        answer.finish = "stop"
        for ending in stop or self.stop or ():
            text = text.split(ending, 1)[0]
        pieces, written = [], 0
        for piece in _PIECE.findall(text):
            size = count_tokens(piece)
            if self.max_tokens is not None and written + size > self.max_tokens:
                answer.finish = "length"
                break
            written += size
            pieces.append(Delta(piece))
        answer.usage = _usage(asked, written)
        return pieces


class Provider(BaseProvider):
    """The models inside the house."""

    vendor = OFFLINE

    def __init__(self, config: ProviderConfig) -> None:
        super().__init__(config)
        self._engines = found_engines()
        self._encoding = asyncio.Semaphore(1)  # threads that want the interpreter would hold up the loop together

    def chat_model(self, name: str, parameters: ModelParameters) -> RoutedChat:
        """The model of rules; it takes every parameter and heeds `max_tokens` and `stop`."""
        _check_chats(name)
        return OfflineChat(routeur_id=f"offline/{name}", **given(parameters, max_tokens="max_tokens", stop="stop"))

    def completions_body(self, name: str, asked: Mapping[str, Any], *, streamed: bool) -> dict[str, Any]:
        """Raises InvalidRequest also for the model that only embeds, ModelNotFound for one that is not there."""
        _check_chats(name)
        body = super().completions_body(name, asked, streamed=streamed)
        return {**body, "messages": [_known_fields(message) for message in body["messages"]]}

    async def completion(
        self, body: dict[str, Any], model: str, patience: Patience = PROVIDERS_OWN
    ) -> tuple[bytes, dict[str, Any]]:
        """One whole answer, as OpenAI's wire says it."""
        answer, deltas = _asked_directly(body, model)
        for delta in deltas:
            answer.add(delta)
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None}
        if answer.calls:
            message["tool_calls"] = [_wire_call(call) for call in answer.calls.values()]
        whole = {
            **_head(model, "chat.completion"),
            "choices": [{"index": 0, "message": message, "finish_reason": answer.finish, "logprobs": None}],
            "usage": _wire_usage(answer.usage),
        }
        return orjson.dumps(whole), whole

    @asynccontextmanager
    async def completion_reads(
        self, body: dict[str, Any], model: str, patience: Patience = PROVIDERS_OWN
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The same, in pieces."""
        answer, deltas = _asked_directly(body, model)
        yield _told(_head(model, "chat.completion.chunk"), answer, deltas)

    async def list_models(self, within: float) -> list[ListedModel]:
        """The two there are; one that listens, and those that speak, where what they need is installed."""
        heard = [ListedModel(EARS, "transcription")] if find_spec("pocketsphinx") else []
        return [
            ListedModel(
                NAME,
                description="Offline demonstration: answers by rules, understands nothing",
                context_window=1_000_000,
                abilities=Abilities(streaming=True, tools=True, vision=False, json_schema=True, reasoning=False),
            ),
            ListedModel(
                HASH, "embedding", description="Offline demonstration: embeds by hashing words, knows no meanings"
            ),
            *heard,
            *(
                ListedModel(name, "speech", description=f"Offline demonstration: {one.program} speaks. {one.says}")
                for name, one in self._engines.items()
            ),
        ]

    async def embed(self, name: str, asked: EmbeddingRequest) -> Embedded:
        """By feature hashing, in as many dimensions as are wanted, up to 4,096."""
        if name in (NAME, EARS):
            raise InvalidRequest(
                f"The model 'offline/{name}' has no embeddings; 'offline/hash' has.",
                code="embeddings_not_supported",
                param="model",
            )
        if name != HASH:
            raise ModelNotFound(f"offline/{name}", [f"offline/{HASH}"])
        dimensions = asked.dimensions or DIMENSIONS
        if dimensions > MAX_DIMENSIONS:
            raise InvalidRequest(f"The model 'offline/hash' has 1 to {MAX_DIMENSIONS} dimensions.", param="dimensions")
        data, tokens = [], 0
        inputs: Sequence[str | list[int]] = asked.inputs
        for index, one in enumerate(inputs):
            made = embed_text(one, dimensions) if isinstance(one, str) else embed_ids(one, dimensions)
            vector, counted = await made
            data.append({"index": index, "embedding": vector})
            tokens += counted
            await asyncio.sleep(0)  # others have their turn
        return Embedded(data, _usage(tokens, 0))

    @asynccontextmanager
    async def speak(self, name: str, asked: SpeechRequest, patience: Patience = PROVIDERS_OWN) -> AsyncIterator[Spoken]:
        """By the program of that name, sentence by sentence."""
        engine = self._engine(name)
        voice, pieces = await engine.prepare(asked)
        usage = _usage(count_tokens(asked.text), 0)
        async with aclosing(self._encoded(engine, pieces, voice, asked)) as chunks:
            yield Spoken(chunks, usage=usage)

    async def _encoded(
        self, engine: SpeechEngine, pieces: list[str], voice: str, asked: SpeechRequest
    ) -> AsyncGenerator[bytes]:
        """The sound in the form that was asked for, a few seconds at a time and away from the event loop."""
        voiced: _Voiced | None = None
        async with aclosing(engine.speak(pieces, voice, asked.speed)) as sounds:
            async for rate, pcm in sounds:
                if voiced is None:
                    voiced = await asyncio.to_thread(_Voiced, asked.form, rate)
                for start in range(0, len(pcm), _SLICE):
                    async with self._encoding:
                        made = await asyncio.to_thread(voiced.feed, pcm[start : start + _SLICE])
                    yield made
        if voiced is None:
            raise InvalidRequest(
                f"{engine.program} finds nothing to say in that text.", code="nothing_to_say", param="input"
            )
        yield await asyncio.to_thread(voiced.end)

    def _engine(self, name: str) -> SpeechEngine:
        if name in self._engines:
            return self._engines[name]
        if name in (NAME, HASH, EARS):
            raise InvalidRequest(
                f"The model 'offline/{name}' does not speak.", code="speech_not_supported", param="model"
            )
        missing = ENGINES.get(name)
        reason = ""
        if missing is not None:
            reason = f"It needs the program {missing.program} (Debian package {missing.package})."
        raise ModelNotFound(f"offline/{name}", [f"offline/{one}" for one in self._engines], reason=reason)


class _Voiced:
    """An encoder; raw PCM, which cannot tell its rate, is brought to the one that everybody expects."""

    def __init__(self, form: SpeechFormat, rate: int) -> None:
        self._resampler = resampler(rate, PCM_RATE) if form is SpeechFormat.PCM else None
        self._encoder = StreamEncoder(form.value, rate)

    def feed(self, pcm: bytes) -> bytes:
        return self._encoder.feed(self._resampler.feed(pcm) if self._resampler else pcm)

    def end(self) -> bytes:
        rest = self._encoder.feed(self._resampler.end()) if self._resampler else b""
        return rest + self._encoder.end()


def _known_fields(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what this model does not read: LangChain refuses odd values in odd fields."""
    more = {"assistant": ("tool_calls",), "tool": ("tool_call_id",)}.get(message["role"], ())
    known = {name: message[name] for name in ("role", "content", *more) if name in message}
    return {**known, "name": message["name"]} if isinstance(message.get("name"), str) else known


def _check_chats(name: str) -> None:
    does = {HASH: "embeds", EARS: "transcribes"}.get(name, "speaks" if name in ENGINES else None)
    if does is not None:
        raise InvalidRequest(
            f"The model 'offline/{name}' {does}; it does not answer.", code="not_a_chat_model", param="model"
        )
    if name != NAME:
        raise ModelNotFound(f"offline/{name}", [f"offline/{NAME}"])


def _asked_directly(body: dict[str, Any], model: str) -> tuple[Answer, list[Delta]]:
    """The pieces of the answer to a chat completions body."""
    llm = OfflineChat(routeur_id=model, max_tokens=body.get("max_tokens"))
    stop = body.get("stop")
    answer = Answer()
    return answer, llm._compose(
        answer,
        convert_to_messages([_readable(message) for message in body["messages"]]),
        [stop] if isinstance(stop, str) else stop,
        {name: body.get(name) for name in ("tools", "tool_choice", "response_format")},
    )


def _readable(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as LangChain reads it: calls may stand without content, and their arguments need be no JSON object."""
    read = {"content": "", **message}
    if calls := message.get("tool_calls"):
        read["tool_calls"] = [_readable_call(call) for call in calls]
    return read


def _readable_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        given_as_object = isinstance(orjson.loads(function["arguments"]), dict)
    except orjson.JSONDecodeError:
        given_as_object = False
    return dict(call) if given_as_object else {**call, "function": {**function, "arguments": "{}"}}


async def _told(head: dict[str, Any], answer: Answer, deltas: list[Delta]) -> AsyncIterator[bytes]:
    def line(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: " + orjson.dumps({**head, "choices": choices, **more}) + b"\n\n"

    def choice(delta: dict[str, Any], finish: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]

    yield line(choice({"role": "assistant", "content": ""}))
    for delta in deltas:
        if delta.fragments:
            calls = [{"index": part.index, **_wire_call(part)} for part in delta.fragments]
            yield line(choice({"tool_calls": calls}))
        else:
            yield line(choice({"content": delta.text}))
        await asyncio.sleep(0)  # others have their turn
    yield line(choice({}, answer.finish)) + line([], usage=_wire_usage(answer.usage)) + b"data: [DONE]\n\n"


def _head(model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid7().hex}", "object": kind, "created": int(time.time()), "model": model}


def _wire_call(call: Fragment) -> dict[str, Any]:
    call_id = call.id or f"call_{uuid7().hex}"
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _wire_usage(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }


def count_tokens(text: str) -> int:
    """Words and signs: what this model counts as tokens."""
    return len(_TOKEN.findall(text))


def _usage(inputs: int, outputs: int) -> Usage:
    return Usage(input_tokens=inputs, output_tokens=outputs, total_tokens=inputs + outputs)


@contextmanager
def _readable_schemas(param: str) -> Iterator[None]:
    """Raises:
    InvalidRequest: a JSON schema of the caller's cannot be read; `param` is where it stood.
    """
    try:
        yield
    except ValueError:
        raise InvalidRequest("That JSON schema cannot be read.", code="invalid_schema", param=param) from None


def _words(messages: list[BaseMessage], response_format: Any) -> str:
    schema = _schema_of(response_format, messages)
    if schema is not None:
        with _readable_schemas("response_format"):
            return orjson.dumps(instance_of(schema, Reading(_last_question(messages)))).decode()
    results = _last_results(messages)
    if results:
        names = _called(messages)
        told = "; ".join(
            f"{result.name or names.get(result.tool_call_id, 'the tool')} answered: {str(result.text).strip()}"
            for result in results
        )
        return f"{told} (offline demonstration model)"
    said = _last_question(messages).strip()
    said = said if len(said) <= _ECHO_CHARS else said[:_ECHO_CHARS] + " …"
    return (
        "This is the offline demonstration model, which answers by rules. Set OPENAI_API_KEY, MISTRAL_API_KEY or "
        f"OLLAMA_BASE_URL for a real one. You said: {said}"
    )


def _tool_call(messages: list[BaseMessage], tools: dict[str, Any], choice: Any) -> Fragment | None:
    """The call that the last question asks for, or that `choice` forces."""
    if not tools or choice == "none":
        return None
    question = _last_question(messages)[:_READ_CHARS]
    if isinstance(choice, dict):
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, dict) else None
    if isinstance(choice, str) and choice in tools:
        return _fragment(choice, _arguments_for(tools[choice], question))
    must = choice in ("any", "required")
    if _last_results(messages):
        if not must:
            return None  # it has been called; now answer
        called = set(_called(messages).values())
        tools = {name: tool for name, tool in tools.items() if name not in called} or tools
    asked = _CALL.search(question)
    if asked and asked["name"] in tools:
        with suppress(orjson.JSONDecodeError):
            return _fragment(asked["name"], orjson.loads(asked["arguments"]))
    if meant := asked_call(question, tools):
        return _fragment(*meant)
    for name, tool in tools.items():
        if "expression" in _properties(tool) and (expression := _expression(question)):
            return _fragment(name, {"expression": expression})
    for name in tools:
        if re.search("clock|time|date", name) and _TIME.search(question):
            return _fragment(name, {})
    if must:
        name = next(iter(tools))
        return _fragment(name, _arguments_for(tools[name], question))
    return None


def _fragment(name: str, arguments: dict[str, Any]) -> Fragment:
    text = orjson.dumps(arguments).decode()
    return Fragment(0, None, name, text)


def _arguments_for(tool: dict[str, Any], question: str) -> dict[str, Any]:
    arguments = arguments_for(tool, question)
    if "expression" in _properties(tool) and (expression := _expression(question)):
        arguments["expression"] = expression
    return arguments


def _properties(tool: dict[str, Any]) -> dict[str, Any]:
    properties = (tool.get("parameters") or {}).get("properties")
    return properties if isinstance(properties, dict) else {}


def _expression(question: str) -> str | None:
    question = question[:_SUM_CHARS]
    for word, sign in _WORDS.items():
        question = question.replace(word, sign)
    found = _SUM.search(question)
    return found.group().strip().rstrip(".,") if found else None


def _last_question(messages: list[BaseMessage]) -> str:
    return next((str(message.text) for message in reversed(messages) if isinstance(message, HumanMessage)), "")


def _last_results(messages: list[BaseMessage]) -> list[ToolMessage]:
    """The tool answers at the end of the conversation."""
    results: list[ToolMessage] = []
    for message in reversed(messages):
        if not isinstance(message, ToolMessage):
            break
        results.insert(0, message)
    return results


def _called(messages: list[BaseMessage]) -> dict[str | None, str]:
    """The tools that were called since the last question, by the ids of their calls."""
    called: dict[str | None, str] = {}
    for message in reversed(messages):
        if isinstance(message, HumanMessage):
            break
        if isinstance(message, AIMessage):
            called |= {call["id"]: call["name"] for call in message.tool_calls}
    return called


def _schema_of(response_format: Any, messages: list[BaseMessage]) -> dict[str, Any] | None:
    if isinstance(response_format, type):
        return convert_to_json_schema(response_format)
    if not isinstance(response_format, dict):
        return None
    if response_format.get("type") == "json_object":
        keys = wanted_keys(_last_question(messages)) or ["answer"]
        return {"type": "object", "properties": {key: {"type": "string"} for key in keys}, "required": keys}
    wanted = response_format.get("json_schema")
    return wanted.get("schema") if isinstance(wanted, dict) else None
