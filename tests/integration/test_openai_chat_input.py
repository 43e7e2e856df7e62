"""Rubbish into /v1: a clear 4xx of OpenAI's shape out, nothing echoed, nothing half written."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from config.settings import Settings
from tests.engines import POSTGRES_PROGRAMS
from tests.fakes.house import House, open_house
from tests.fakes.openai_door import error_of, post, reaching, says
from tests.fakes.providers import FakeProvider, Reply
from tests.fakes.servers import OwnPostgres

pytestmark = pytest.mark.anyio
PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
MODELS = ("openai/m", "vllm/m", "offline/rules", "agent/simple@offline/rules")


@pytest.fixture(scope="module")
async def served(shared_settings: Settings, shared_provider: FakeProvider) -> AsyncIterator[House]:
    async with open_house(reaching(shared_settings, shared_provider)) as house:
        yield house


async def runs_of(house: House) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = (await house.client.get("/api/runs?limit=200")).json()["runs"]
    return runs


BODIES: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("not json", b"hello"),
    ("cut json", b'{"messages": [{"role": "user", "content": "x"'),
    ("invalid utf-8", b'{"model": "offline/rules", "messages": [{"role": "user", "content": "\xff\xfe"}]}'),
    ("a list", b"[]"),
    ("a number", b"7"),
    ("null", b"null"),
    ("deep", b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ("deep object", b'{"metadata": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001),
    ("two objects", b"{}{}"),
    ("byte order mark", b"\xef\xbb\xbf{}"),
    ("utf-16", '{"a": 1}'.encode("utf-16")),
]
FIELDS: list[tuple[str, bytes]] = [
    ("nan", b'"temperature": NaN'),
    ("infinity", b'"temperature": Infinity'),
    ("endless number", b'"temperature": 1e999'),
    ("huge number", b'"max_tokens": ' + b"9" * 5_000),
    ("half a surrogate pair", b'"user": "\\ud800 alone"'),
    ("surrogate in a key", b'"\\udfff": 1'),
    ("deep schema", b'"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a":' + b"[" * 400
     + b"]" * 400 + b"}}}]"),
    ("deep field", b'"something": ' + b'{"a":' * 500 + b"1" + b"}" * 500),
    ("deep part", b'"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "more": ' + b"[" * 900
     + b"]" * 900 + b"}]}]"),
    ("last of two keys", b'"messages": [{"role": "user", "content": "x"}], "messages": []'),
    ("session that is a path", b'"metadata": {"session_id": "../x"}'),
    ("metadata key", b'"metadata": {"a b": "c"}'),
    ("metadata number", b'"metadata": {"a": 1}'),
    ("many tools", b'"tools": ' + orjson.dumps([{"type": "function", "function": {"name": "f"}}] * 513)),
    ("many parts", b'"messages": ' + orjson.dumps([{"role": "user", "content": [{"type": "text", "text": ""}] * 257}])),
    ("stream that is a word", b'"stream": "yes"'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body"), BODIES, ids=[name for name, _ in BODIES])
async def test_a_body_that_is_no_object_is_refused(served: House, name: str, body: bytes) -> None:
    answer = await served.client.post(PATH, content=body, headers=JSON)
    assert answer.status_code == 400, answer.text
    error_of(answer)
    assert len(answer.content) < 2_000


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "field"), FIELDS, ids=[name for name, _ in FIELDS])
async def test_a_field_that_makes_no_sense_is_refused(
    served: House, provider: FakeProvider, model: str, name: str, field: bytes, stream: bool
) -> None:
    before = await runs_of(served)
    start = orjson.dumps({"model": model, "messages": says(), "stream": stream})[:-1]
    answer = await served.client.post(PATH, content=start + b"," + field + b"}", headers=JSON)
    assert answer.status_code == 400, answer.text
    error_of(answer)
    assert len(answer.content) < 3_000
    assert provider.calls == 0
    assert await runs_of(served) == before, "nothing is written down"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "ECHO" * 100_000, "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "ECHO" * 100_000}]}]},
        {"tool_choice": {"type": "ECHO" * 1_000}},
        {"tool_choice": "ECHO" * 1_000},
        {"response_format": {"type": "ECHO" * 1_000}},
        {"model": "ECHO ECHO"},
        {"metadata": {"ECHO " * 5_000: "x"}},
        {"tools": [{"type": "ECHO" * 1_000}]},
        {"temperature": "ECHO"},
    ],
    ids=lambda body: str(body)[:40],
)
async def test_what_was_sent_is_not_echoed(served: House, body: dict[str, Any]) -> None:
    answer = await post(served, {"model": "offline/rules", "messages": says(), **body})
    assert answer.status_code == 400
    assert "ECHOECHO" not in answer.text
    assert len(answer.content) < 3_000


ODD_MESSAGES: list[list[Any]] = [
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "x", "id": 5, "name": "n", "type": 7, "example": 1, "additional_kwargs": 3}],
    [{"role": "user", "content": "x", "tool_calls": "abc", "tool_call_id": 5, "response_metadata": 1}],
    [{"role": "user", "content": [{"type": "file", "text": 5}]}],
    [{"role": "user", "content": [{"type": "input_audio", "text": ["a"], "input_audio": 5}]}],
    [{"role": "user", "content": []}],
    [{"role": "system", "content": "x"}],
    [{"role": "assistant", "content": "x", "tool_calls": []}],
    [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, *says()],
    [{"role": "tool", "tool_call_id": "nobody", "content": "x", "name": 5, "artifact": 1, "status": 7}],
    [{"role": "developer", "content": [{"type": "text", "text": "x"}]}, *says()],
]


@pytest.mark.parametrize("model", ["openai/m", "offline/rules", "agent/simple@offline/rules"])
@pytest.mark.parametrize("messages", ODD_MESSAGES, ids=lambda messages: str(messages)[:70])
async def test_odd_messages_are_answered_or_refused_now_and_in_the_next_turn(
    served: House, provider: FakeProvider, model: str, messages: list[Any]
) -> None:
    answer = await post(served, {"model": model, "messages": messages})
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 200:
        again = await post(served, {"model": model, "messages": says()}, x_session_id=answer.headers["x-session-id"])
        assert again.status_code == 200, again.text


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("text", ["a\x00b", "\x00", "‮ bidi", "🏳️‍🌈" * 100, "\x1b[31mred", "x" * 900_000], ids=repr)
@pytest.mark.parametrize("model", ["openai/m", "agent/simple@openai/m"])
async def test_strange_text_is_text_in_the_answer_and_in_the_record(
    served: House, provider: FakeProvider, model: str, text: str, stream: bool
) -> None:
    provider.then(Reply(words=("said ", text)))
    body = {"model": model, "messages": says(f"x{text}"), "stream": stream, "metadata": {"a": "b"}}
    answer = await post(served, body)
    assert answer.status_code == 200
    told = (await served.client.get(f"/api/sessions/{answer.headers['x-session-id']}")).json()["messages"]
    clean = text.replace("\x00", "")
    assert [line["content"] for line in told] == [f"x{clean}", f"said {clean}"]
    raw = await served.client.get(f"/api/sessions/{answer.headers['x-session-id']}/messages/raw")
    assert raw.status_code == 200
    run = (await served.client.get(f"/api/runs/{answer.headers['x-run-id']}")).json()
    assert (run["input"], run["output"]) == (f"x{clean}", f"said {clean}")


@pytest.mark.skipif(POSTGRES_PROGRAMS is None, reason="PostgreSQL's programs are not installed")
async def test_postgresql_keeps_what_held_nul(settings: Settings, provider: FakeProvider, tmp_path: Path) -> None:
    async with OwnPostgres.started(tmp_path) as server:
        storage = settings.storage.model_copy(update={"database_url": SecretStr(server.url)})
        reached = reaching(settings.model_copy(update={"storage": storage}), provider)
        async with open_house(reached) as house:
            for model in ("openai/m", "agent/simple@openai/m"):
                for stream in (True, False):
                    provider.then(Reply(words=("said \x00", "x"), reasoning="th\x00"))
                    rule = {"role": "system", "content": "r\x00"}
                    part = {"type": "text", "text": "a\x00b"}
                    messages = [rule, {"role": "user", "content": [part], "name": "n\x00"}]
                    body = {"model": model, "messages": messages, "stream": stream, "metadata": {"k": "v\x00"}}
                    answer = await post(house, body)
                    assert answer.status_code == 200, answer.text
                    session = answer.headers["x-session-id"]
                    told = (await house.client.get(f"/api/sessions/{session}")).json()["messages"]
                    assert [line["content"] for line in told] == ["r", "ab", "said x"]
                    again = await post(house, {"model": model, "messages": says()}, x_session_id=session)
                    assert again.status_code == 200, again.text


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", ""])
async def test_another_content_type_is_refused(served: House, kind: str) -> None:
    body = orjson.dumps({"model": "offline/rules", "messages": says()})
    answer = await served.client.post(PATH, content=body, headers={"content-type": kind})
    assert answer.status_code == 415
    assert error_of(answer)["code"] == "not_json"


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"])
async def test_every_spelling_of_json_is_json(served: House, kind: str) -> None:
    body = orjson.dumps({"model": "offline/rules", "messages": says()})
    assert (await served.client.post(PATH, content=body, headers={"content-type": kind})).status_code == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "TRACE"])
async def test_another_method_is_refused(served: House, method: str) -> None:
    answer = await served.client.request(method, PATH)
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]
    if method != "HEAD":
        assert error_of(answer)["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", [f"{PATH}/", "/v1//chat/completions", "/v1/chat", "/v1", "/v1/", "/v1/nothing"])
async def test_an_address_beside_it_is_not_found_in_openais_shape(served: House, path: str) -> None:
    answer = await served.client.post(path, json={"model": "offline/rules", "messages": says()})
    assert answer.status_code in (307, 404), answer.text
    if answer.status_code == 404:
        error_of(answer)


@pytest.mark.parametrize("path", ["%00", "x" * 5_000, "..%2F..%2Fetc", "a%0d%0ab", "agent%2F", "%ff", "a/b/c/d"])
async def test_a_strange_model_is_not_found_or_refused(served: House, path: str) -> None:
    answer = await served.client.get(f"/v1/models/{path}")
    assert answer.status_code in (400, 404)
    assert error_of(answer)["type"] == "invalid_request_error"
    assert len(answer.content) < 3_000


async def test_a_body_over_the_limit_is_refused(served: House) -> None:
    body = {"model": "offline/rules", "messages": says("x" * 10_000_000)}
    answer = await post(served, body)
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "body_too_large"

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100_000

    answer = await served.client.post(PATH, content=endless(), headers=JSON)
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "body_too_large"


async def test_a_client_that_leaves_before_its_question_is_whole_is_no_error(
    served: House, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    before = await runs_of(served)
    with caplog.at_level(logging.ERROR):
        for sent in (b"", b'{"model": "offline/rules", '):
            _, writer = await asyncio.open_connection(host, int(port))
            token = served.tokens["access_token"]
            writer.write(
                f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                f"authorization: Bearer {token}\r\ncontent-length: 500\r\n\r\n".encode()
                + sent
            )
            await writer.drain()
            writer.close()
        for _ in range(20):
            assert (await served.client.get("/health")).status_code == 200
    assert not caplog.records
    assert await runs_of(served) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"x-session-id": "x" * 1_000},
        {"x-session-id": "../etc"},
        {"x-session-id": ""},
        {"x-conversation-id": "x" * 300},
        {"x-agent-tools": "x" * 300},
    ],
)
async def test_headers_that_make_no_sense_are_refused(served: House, headers: dict[str, str]) -> None:
    body = {"model": "agent/simple@offline/rules", "messages": says()}
    answer = await served.client.post(PATH, json=body, headers=headers)
    assert answer.status_code == 400, answer.text
    error_of(answer)


async def test_a_schema_that_grows_for_ever_does_not_stop_the_house(served: House) -> None:
    wide = {"type": "object", "properties": {f"p{number}": {"$ref": "#"} for number in range(40)}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": wide}}
    async with asyncio.timeout(5):
        for model in ("offline/rules", "agent/simple@offline/rules"):
            answer = await post(served, {"model": model, "messages": says(), "response_format": form})
            assert answer.status_code == 400, answer.text
            assert error_of(answer)["param"] == "response_format"
    assert served.services.direct.runs.count == 0


async def test_the_last_of_two_equal_keys_counts(served: House, provider: FakeProvider) -> None:
    body = b'{"model": "openai/a", "model": "openai/b", "messages": [{"role": "user", "content": "x"}]}'
    assert (await served.client.post(PATH, content=body, headers=JSON)).status_code == 200
    assert provider.asked[-1]["model"] == "b"
