"""The house as OpenAI's own client sees it, with every vendor behind it."""

import re
from typing import Any

import httpx
import orjson
from openai import AsyncOpenAI
from pydantic import SecretStr

from config.settings import CompatibleProvider, ProviderSettings, Settings
from tests.fakes.house import House
from tests.fakes.providers import FakeProvider

KEY = "sk-secret-key-of-ours"
WIRES = ("openai", "mistral", "ollama", "vllm")
MODELS = tuple(f"{wire}/fake-large" for wire in WIRES)
AGENTS = tuple(f"agent/simple@{model}" for model in MODELS)
#: Whoever speaks the words of the fake provider.
VENDED = (*MODELS, *AGENTS)
#: All kinds of `model`.
TARGETS = (*VENDED, "offline/rules", "agent/simple@offline/rules")


def reaching(settings: Settings, provider: FakeProvider, **more: Any) -> Settings:
    """Settings of a house with the fake provider behind each vendor."""
    providers = ProviderSettings(
        discover_local=False,
        openai_api_key=SecretStr(KEY),
        openai_base_url=f"{provider.url}/v1",
        mistral_base_url=f"{provider.url}/mistral/v1",
        ollama_base_url=provider.url,
        compatible={"vllm": CompatibleProvider(base_url=f"{provider.url}/vllm/v1")},
        **{"total_timeout": 20.0, "max_retries": 0, **more},
    )
    return settings.model_copy(update={"providers": providers})


def sdk(house: House, token: str = "", **more: Any) -> AsyncOpenAI:
    """The official client; it repeats nothing by itself."""
    key = token or house.tokens["access_token"]
    return AsyncOpenAI(base_url=f"{house.url}/v1", api_key=key, **{"max_retries": 0, "timeout": 20, **more})


def says(text: str = "Salut") -> list[Any]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


async def post(house: House, body: dict[str, Any], **headers: str) -> httpx.Response:
    """A plain request, as curl would send it. Underscores of a header's name become dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await house.client.post("/v1/chat/completions", json=body, headers=named)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of a well-formed OpenAI body that tells nothing of ours."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert KEY not in answer.text
    assert "Traceback" not in answer.text
    return error_in(answer.json())


def error_in(body: Any) -> dict[str, Any]:
    """The same of a body that was read already."""
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def frames_of(raw: bytes) -> list[Any]:
    """The data of a stream, read strictly: nothing but `data:` frames and comments; `[DONE]` is the last, or absent."""
    text = raw.decode("utf-8")
    assert text.endswith("\n\n")
    frames = text.split("\n\n")[:-1]
    told: list[Any] = []
    for frame in frames:
        if frame.startswith(":"):
            assert "\n" not in frame
            continue
        assert re.match(r"data: [^\n]+$", frame), frame
        assert told[-1:] != ["[DONE]"], "something after the end"
        data = frame.removeprefix("data: ")
        told.append(data if data == "[DONE]" else orjson.loads(data))
    return told


def words_of(frames: list[Any]) -> str:
    """The text of the first choice."""
    chunks = [frame for frame in frames if isinstance(frame, dict) and "error" not in frame]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == 0]
    return "".join(delta.get("content") or "" for delta in deltas)


async def streamed(house: House, body: dict[str, Any], **headers: str) -> list[Any]:
    """Every frame of a streamed answer that has begun well."""
    answer = await post(house, {**body, "stream": True}, **headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert KEY not in answer.text
    return frames_of(answer.content)
