"""Rubbish in: a clear 4xx out. What the caller did wrong is never a 5xx, and nothing of ours is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.errors import InvalidSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from config.settings import Settings
from tests.fakes.house import House, open_house

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared(shared_settings: Settings) -> AsyncIterator[House]:
    async with open_house(shared_settings) as opened:
        yield opened


BODIES: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("not json", b"hello"),
    ("cut json", b'{"message": "x"'),
    ("invalid utf-8", b'{"message": "\xff\xfe"}'),
    ("a list", b"[]"),
    ("a number", b"7"),
    ("null", b"null"),
    ("deep", b'{"message": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ("deep object", b'{"metadata": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001),
    ("huge number", b'{"message": "x", "max_tokens": ' + b"9" * 5_000 + b"}"),
    ("nan", b'{"message": "x", "temperature": NaN}'),
    ("infinity", b'{"message": "x", "temperature": Infinity}'),
    ("wrong types", b'{"message": {"a": 1}}'),
    ("unknown field", b'{"message": "x", "stream": true}'),
    ("both", b'{"message": "x", "messages": [{"role": "user", "content": "y"}]}'),
    ("neither", b"{}"),
    ("blank", b'{"message": "  \\n "}'),
    ("half a surrogate pair", b'{"message": "\\ud800 alone"}'),
    ("only nul", b'{"message": "\\u0000"}'),
    ("too hot", b'{"message": "x", "temperature": 2.1}'),
    ("cold", b'{"message": "x", "temperature": -0.1}'),
    ("no tokens", b'{"message": "x", "max_tokens": 0}'),
    ("model is no header", '{"message": "x", "model": "offline/日本"}'.encode()),
    ("model breaks a line", b'{"message": "x", "model": "offline/a\\r\\nx-evil: 1"}'),
    ("agent is a path", b'{"message": "x", "agent": "../../etc"}'),
    ("bad role", b'{"messages": [{"role": "root", "content": "x"}]}'),
    ("no content", b'{"messages": [{"role": "user", "content": ""}]}'),
    ("tool without id", b'{"messages": [{"role": "tool", "content": "x"}]}'),
    ("local image", b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"file:///etc/passwd"}}]}]}'),
    ("metadata key", b'{"message": "x", "metadata": {"a b": 1}}'),
    ("metadata nested", b'{"message": "x", "metadata": {"a": {"b": 1}}}'),
    ("format without schema", b'{"message": "x", "response_format": {"type": "json_schema"}}'),
]  # fmt: skip


@pytest.mark.parametrize("path", ["/completion", "/completion/stream"])
@pytest.mark.parametrize(("name", "body"), BODIES, ids=[name for name, _ in BODIES])
async def test_a_body_that_makes_no_sense_is_refused(shared: House, path: str, name: str, body: bytes) -> None:
    answer = await shared.client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    assert len(answer.content) < 20_000, "the input is not echoed"


@pytest.mark.parametrize("message", ["a\x00b", "‮ bidi", "🏳️‍🌈" * 100, "\x1b[31mred", "x" * 900_000], ids=repr)
async def test_strange_text_is_text(shared: House, message: str) -> None:
    body = '{"message": ' + json.dumps(message) + "}"
    answer = await shared.client.post("/completion", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text


async def test_a_body_over_the_limit_is_refused_before_it_is_read(shared: House) -> None:
    ten = b'{"message": "' + b"x" * 10_000_000 + b'"}'
    declared = await shared.client.post("/completion", content=ten, headers={"content-type": "application/json"})
    assert (declared.status_code, declared.json()["code"]) == (413, "body_too_large")


async def test_a_body_without_a_length_is_counted(shared: House) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100_000

    answer = await shared.client.post("/completion", content=endless(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("length", ["-1", "abc", "99999999999999999999999999", "1e3"])
async def test_a_length_that_is_no_length_is_refused(shared: House, length: str) -> None:
    host, port = shared.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST /completion HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode())
    status = (await asyncio.wait_for(reader.readline(), 5)).split()[1]
    writer.close()
    assert status in (b"400", b"413")


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "multipart/form-data; boundary=x", ""])
async def test_another_content_type_is_refused(shared: House, content_type: str) -> None:
    answer = await shared.client.post(
        "/completion", content=b'{"message": "x"}', headers={"content-type": content_type}
    )
    assert answer.status_code in (415, 422)


@pytest.mark.parametrize(
    "path",
    [
        "/models/" + "x" * 5_000,
        "/models/%00",
        "/models/../../etc/passwd",
        "/agents/%ff",
        "/agents/" + "y" * 300,
        "/users/'--",
    ],
)
async def test_a_strange_path_is_not_found_or_refused(shared: House, path: str) -> None:
    answer = await shared.client.get(path)
    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_every_failure_has_the_security_headers_and_a_request_id(shared: House) -> None:
    for answer in (
        await shared.anyone.get("/nothing"),
        await shared.anyone.get("/auth/me"),
        await shared.anyone.put("/completion"),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-request-id"]
        assert "server" not in answer.headers


async def test_a_request_id_of_the_callers_is_kept_when_it_is_harmless(shared: House) -> None:
    kept = await shared.anyone.get("/health", headers={"x-request-id": "trace-42"})
    assert kept.headers["x-request-id"] == "trace-42"
    forged = await shared.anyone.get("/health", headers={"x-request-id": 'a" level=ERROR'})
    assert forged.headers["x-request-id"].startswith("req_")


async def test_a_browser_of_another_origin_gets_no_leave(shared: House) -> None:
    answer = await shared.anyone.options(
        "/completion", headers={"origin": "https://evil.example", "access-control-request-method": "POST"}
    )
    assert "access-control-allow-origin" not in answer.headers


OPERATIONS = [
    ("POST", "/completion"), ("POST", "/completion/stream"), ("GET", "/models"), ("GET", "/models/{model_id}"),
    ("GET", "/agents"), ("GET", "/agents/{agent_id}"), ("POST", "/auth/token"), ("POST", "/auth/revoke"),
    ("GET", "/auth/me"), ("POST", "/auth/keys"), ("GET", "/auth/keys"), ("DELETE", "/auth/keys/{key_id}"),
    ("POST", "/users"), ("GET", "/users"), ("GET", "/users/{user_id}"), ("PATCH", "/users/{user_id}"),
    ("DELETE", "/users/{user_id}"), ("GET", "/health"), ("GET", "/ready"), ("GET", "/metrics"),
    ("GET", "/.well-known/jwks.json"), ("POST", "/auth/logout"), ("POST", "/api/sessions"), ("GET", "/api/sessions"),
    ("GET", "/api/sessions/{session_id}"), ("PATCH", "/api/sessions/{session_id}"),
    ("DELETE", "/api/sessions/{session_id}"), ("GET", "/api/sessions/{session_id}/messages"),
    ("POST", "/api/sessions/{session_id}/messages"), ("GET", "/api/sessions/{session_id}/messages/raw"),
    ("GET", "/api/sessions/{session_id}/usage"), ("POST", "/api/sessions/{session_id}/branch"),
    ("GET", "/api/sessions/{session_id}/export"), ("GET", "/api/runs"), ("GET", "/api/runs/{run_id}"),
    ("GET", "/api/agents/{agent_id}/runs"), ("GET", "/api/agents/{agent_id}/runs/{run_id}"), ("GET", "/api/stats"),
    ("POST", "/api/agents/{agent_id}/run"), ("GET", "/api/agents/{agent_id}/status"), ("GET", "/api/agents"),
    ("GET", "/api/agents/{agent_id}/config"), ("POST", "/api/runs/{run_id}/cancel"),
    ("POST", "/api/runs/{run_id}/approve"), ("POST", "/api/runs/{run_id}/requeue"), ("GET", "/api/webhooks/secret"),
    ("GET", "/api/runs/{run_id}/events"), ("POST", "/api/schedules"), ("GET", "/api/schedules"),
    ("GET", "/api/schedules/{schedule_id}"), ("PATCH", "/api/schedules/{schedule_id}"),
    ("DELETE", "/api/schedules/{schedule_id}"), ("POST", "/v1/embeddings"), ("POST", "/transcription"),
    ("GET", "/transcription/{run_id}"),
    ("POST", "/v1/audio/transcriptions"), ("POST", "/v1/audio/translations"),
    ("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/{model_id}"),
    ("POST", "/v1/responses"), ("GET", "/v1/responses/{response_id}"), ("DELETE", "/v1/responses/{response_id}"),
    ("POST", "/v1/responses/{response_id}/cancel"), ("GET", "/v1/responses/{response_id}/input_items"),
    ("POST", "/v1/audio/speech"),
    ("POST", "/v1/realtime/client_secrets"), ("POST", "/realtime/offer"), ("POST", "/v1/realtime/calls"),
    ("POST", "/v1/realtime/calls/{call_id}/hangup"),
]  # fmt: skip


async def test_the_list_of_operations_is_the_documents(shared: House) -> None:
    document = (await shared.anyone.get("/openapi.json")).json()
    documented = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert documented == set(OPERATIONS)


async def test_the_door_of_mcp_which_is_in_no_document_is_locked_too(shared: House) -> None:
    """What it answers to rubbish is in test_mcp_server.py."""
    assert "/mcp" not in (await shared.anyone.get("/openapi.json")).json()["paths"]
    assert (await shared.anyone.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "ping"})).status_code == 401


OPEN = {
    ("POST", "/auth/token"),
    ("POST", "/auth/revoke"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/.well-known/jwks.json"),
}


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_every_door_is_locked_unless_the_document_says_it_is_open(shared: House, method: str, path: str) -> None:
    document = (await shared.anyone.get("/openapi.json")).json()
    said_open = document["paths"][path][method.lower()].get("security") == []
    assert said_open == ((method, path) in OPEN)
    answer = await shared.anyone.request(method, path.replace("{", "").replace("}", ""), json={"message": "x"})
    assert (answer.status_code == 401) == (not said_open)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_whatever_is_generated_from_the_document_is_answered_as_documented(
    shared: House, method: str, path: str
) -> None:
    """schemathesis, valid and invalid data alike, against the running server."""
    document: dict[str, Any] = (await shared.anyone.get("/openapi.json")).json()
    headers = {"authorization": f"Bearer {(await shared.log_in()).json()['access_token']}"}
    schema = schemathesis.openapi.from_dict(document)
    operation = schema[path][method]
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]

    def attack() -> None:
        for mode in schemathesis.GenerationMode:

            @hypothesis_settings(
                max_examples=25,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def one(case: Any) -> None:
                response = case.call(base_url=shared.url, headers=headers, timeout=20)
                assert response.status_code < 500, (response.status_code, response.text[:300])
                case.validate_response(response, checks=checks)

            try:
                one()
            except BaseExceptionGroup as found:  # it would end the test runner, not the test
                raise AssertionError("\n".join(str(one) for one in found.exceptions)) from None
            except (Unsatisfiable, InvalidSchema):  # nothing invalid could be thought of
                assert mode is schemathesis.GenerationMode.NEGATIVE, "no valid call can be made from the document"

    await asyncio.to_thread(attack)
