"""Embeddings through the door: OpenAI's own clients, every vendor, every form, and what becomes of each fault."""

import asyncio
import base64
import math
import struct
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import openai
import pytest
import tiktoken
from langchain_openai import OpenAIEmbeddings
from openai import AsyncOpenAI
from pydantic import SecretStr

from config.settings import AgentSettings, CompatibleProvider, ProviderSettings, Settings
from domain.runs import ModelCall
from domain.usage import PICO
from tests.fakes.house import House, open_house
from tests.fakes.providers import DIMENSIONS, FakeProvider, Reply, as_base64, vector_of

pytestmark = pytest.mark.anyio

WIRES = ("openai", "mistral", "ollama", "vllm")
TEXTS = ["Bonjour à tous", "日本", "x"]
IDS = [[1, 2, 3], [40_000]]
KEY = "sk-secret-key-of-ours"


def reaching(settings: Settings, provider: FakeProvider, **more: Any) -> Settings:
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


@pytest.fixture(scope="module")
async def served(shared_settings: Settings, shared_provider: FakeProvider) -> AsyncIterator[House]:
    async with open_house(reaching(shared_settings, shared_provider)) as house:
        yield house


@pytest.fixture
async def client(served: House) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.tokens["access_token"], max_retries=0) as made:
        yield made


async def asked(house: House, **body: Any) -> httpx.Response:
    return await house.client.post("/v1/embeddings", json={"input": TEXTS, **body})


async def recorded(house: House, username: str = "admin") -> list[ModelCall]:
    """The calls in the record that were no part of a run, newest first."""
    user = await house.services.users.find(username)
    async with house.services.records.reading() as work:
        return await work.model_calls.outside_runs(user.id, limit=1_000)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of a well-formed OpenAI body that tells nothing of ours."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert KEY not in answer.text
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# -- what comes back --


@pytest.mark.parametrize("form", [openai.omit, "float"])
@pytest.mark.parametrize("wire", WIRES)
async def test_the_official_client_gets_the_providers_vectors(
    client: AsyncOpenAI, provider: FakeProvider, wire: str, form: Any
) -> None:
    answer = await client.embeddings.create(model=f"{wire}/e", input=TEXTS, encoding_format=form)
    assert answer.model == f"{wire}/e"
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    assert [entry.embedding for entry in answer.data] == [vector_of(text, DIMENSIONS) for text in TEXTS]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (sum(map(len, TEXTS)),) * 2
    assert provider.asked[-1]["model"] == "e"


@pytest.mark.parametrize("wire", WIRES)
async def test_base64_that_was_asked_for_is_little_endian_float32(served: House, wire: str) -> None:
    answer = await asked(served, model=f"{wire}/e", encoding_format="base64")
    told = [entry["embedding"] for entry in answer.json()["data"]]
    assert told == [as_base64(vector_of(text, DIMENSIONS)) for text in TEXTS]
    assert struct.unpack("<8f", base64.b64decode(told[0])) == tuple(vector_of(TEXTS[0], DIMENSIONS))


async def test_only_openai_is_asked_to_encode(served: House, provider: FakeProvider) -> None:
    for wire in WIRES:
        for form in ("base64", "float"):
            await asked(served, model=f"{wire}/e", encoding_format=form)
    formats = [one["encoding_format"] for one in provider.asked]
    assert formats == ["base64", *["float"] * 7]


async def test_a_plain_request_gets_floats_and_the_name_of_the_model(served: House) -> None:
    answer = await asked(served, model="vllm/e", user="somebody")
    assert answer.status_code == 200
    assert answer.headers["x-model"] == answer.json()["model"] == "vllm/e"
    assert answer.json()["object"] == "list"
    assert answer.json()["data"][1] == {
        "object": "embedding",
        "index": 1,
        "embedding": vector_of(TEXTS[1], DIMENSIONS),
    }


async def test_the_callers_user_is_not_told_to_the_provider(served: House, provider: FakeProvider) -> None:
    await asked(served, model="openai/e", user="somebody")
    assert set(provider.asked[-1]) == {"model", "input", "encoding_format"}


@pytest.mark.parametrize(
    ("wire", "name"),
    [("openai", "dimensions"), ("vllm", "dimensions"), ("ollama", "dimensions"), ("mistral", "output_dimension")],
)
async def test_dimensions_reach_each_provider_under_its_own_name(
    client: AsyncOpenAI, provider: FakeProvider, wire: str, name: str
) -> None:
    answer = await client.embeddings.create(model=f"{wire}/e", input="x", dimensions=5)
    assert provider.asked[-1][name] == 5
    assert answer.data[0].embedding == vector_of("x", 5)


@pytest.mark.parametrize("wire", WIRES)
async def test_dimensions_that_a_model_does_not_heed_are_refused(
    served: House, provider: FakeProvider, wire: str
) -> None:
    provider.then(Reply(fault="other_size"))
    answer = await asked(served, model=f"{wire}/e", dimensions=5)
    assert (answer.status_code, error_of(answer)["param"]) == (400, "dimensions")
    assert (await recorded(served))[0].usage is not None, "it was paid for"


@pytest.mark.parametrize("given", [IDS, IDS[0]])
@pytest.mark.parametrize("wire", ["openai", "vllm"])
async def test_token_ids_go_to_those_who_take_them(
    client: AsyncOpenAI, provider: FakeProvider, wire: str, given: Any
) -> None:
    answer = await client.embeddings.create(model=f"{wire}/e", input=given)
    ids = given if isinstance(given[0], list) else [given]
    assert provider.asked[-1]["input"] == ids
    assert [entry.embedding for entry in answer.data] == [vector_of(one, DIMENSIONS) for one in ids]


@pytest.mark.parametrize("wire", ["mistral", "ollama"])
async def test_token_ids_are_refused_where_they_would_not_be_understood(
    client: AsyncOpenAI, provider: FakeProvider, wire: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as caught:
        await client.embeddings.create(model=f"{wire}/e", input=IDS)
    assert caught.value.param == "input"
    assert provider.calls == 0


@pytest.mark.parametrize("fault", ["backwards", "other_encoding"])
@pytest.mark.parametrize("form", ["float", "base64"])
async def test_what_a_provider_may_do_differently_changes_nothing(
    served: House, provider: FakeProvider, form: str, fault: Any
) -> None:
    usual = await asked(served, model="openai/e", encoding_format=form)
    provider.then(Reply(fault=fault))
    assert (await asked(served, model="openai/e", encoding_format=form)).json() == usual.json()


# -- LangChain --


class Letters:
    """A tokenizer that needs no file from the network: a token for each letter."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(letter) for letter in text]

    def encode_ordinary(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


def langchain(house: House, model: str, **more: Any) -> OpenAIEmbeddings:
    key = SecretStr(house.tokens["access_token"])
    return OpenAIEmbeddings(model=model, base_url=f"{house.url}/v1", api_key=key, max_retries=0, **more)


@pytest.mark.parametrize("model", [*(f"{wire}/e" for wire in WIRES), "offline/hash"])
async def test_langchain_embeds_texts_with_every_vendor(served: House, provider: FakeProvider, model: str) -> None:
    embeddings = langchain(served, model, check_embedding_ctx_length=False)
    found = await embeddings.aembed_documents(TEXTS)
    assert len(found) == len(TEXTS)
    assert found[1] == pytest.approx(await embeddings.aembed_query(TEXTS[1]))
    if not model.startswith("offline"):
        assert found == [vector_of(text, DIMENSIONS) for text in TEXTS]


async def test_langchains_token_ids_are_embedded_as_they_are(
    served: House, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda _name: Letters())
    found = await langchain(served, "openai/e").aembed_documents(TEXTS)
    assert provider.asked[-1]["input"] == [[ord(letter) for letter in text] for text in TEXTS]
    assert [vector[0] for vector in found] == pytest.approx([vector_of(text, 8)[0] for text in TEXTS])


# -- the record --


@pytest.mark.parametrize(
    ("model", "dollars_per_million"),
    [("openai/text-embedding-3-small", "0.02"), ("mistral/mistral-embed", "0.10"), ("vllm/e", None)],
)
async def test_the_record_holds_what_the_provider_counted_at_its_price(
    served: House, provider: FakeProvider, model: str, dollars_per_million: str | None
) -> None:
    before = len(await recorded(served))
    await asked(served, model=model)
    rows = await recorded(served)
    assert len(rows) == before + 1
    row, (tokens, _) = rows[0], provider.ledger[-1]
    assert row.usage is not None
    assert (row.usage.input_tokens, row.usage.output_tokens, row.usage.total_tokens) == (tokens, 0, tokens)
    assert (row.model, row.agent, row.run_id, row.session_id) == (model, "", None, None)
    price = None if dollars_per_million is None else round(float(dollars_per_million) * PICO / 1_000_000)
    assert row.cost_pico == (None if price is None else tokens * price)


@pytest.mark.parametrize("fault", ["usage_missing", "usage_negative", "usage_zero"])
@pytest.mark.parametrize("wire", WIRES)
async def test_usage_that_nobody_counted_is_a_guess_in_the_answer_and_unknown_in_the_record(
    served: House, provider: FakeProvider, wire: str, fault: Any
) -> None:
    provider.then(Reply(fault=fault))
    answer = await asked(served, model=f"{wire}/e")
    assert answer.json()["usage"] == {"prompt_tokens": 5, "total_tokens": 5, "estimated": True}
    row = (await recorded(served))[0]
    assert (row.usage, row.cost_pico) == (None, None)


async def test_what_was_refused_cost_nothing_and_is_not_in_the_record(served: House, provider: FakeProvider) -> None:
    before = len(await recorded(served))
    provider.then(Reply(status=400), Reply(status=429), Reply(status=401))
    for model in ("openai/e", "openai/e", "openai/e", "nobody/e", "offline/rules"):
        assert (await asked(served, model=model)).status_code >= 400
    assert len(await recorded(served)) == before


async def test_the_metrics_count_the_tokens(served: House, provider: FakeProvider) -> None:
    await asked(served, model="openai/counted")
    told = (await served.client.get("/metrics")).text
    assert f'routeur_tokens_total{{direction="input",model="openai/counted"}} {provider.ledger[-1][0]}.0' in told


async def test_each_user_has_their_own_calls(served: House) -> None:
    await served.add_user("berta")
    token = (await served.log_in("berta", "a good password")).json()["access_token"]
    headers = {"authorization": f"Bearer {token}"}
    before = len(await recorded(served))
    body = {"model": "openai/e", "input": "hers"}
    assert (await served.anyone.post("/v1/embeddings", json=body, headers=headers)).status_code == 200
    assert len(await recorded(served, "berta")) == 1
    assert len(await recorded(served)) == before


# -- who may --


async def test_a_key_embeds_with_the_models_of_its_list_only(served: House, provider: FakeProvider) -> None:
    fenced = {"name": "fenced", "models": ["openai/e"]}
    key = (await served.client.post("/auth/keys", json=fenced)).json()["key"]
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0) as client:
        assert (await client.embeddings.create(model="openai/e", input="x")).data
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await client.embeddings.create(model="vllm/e", input="x")
    assert (caught.value.code, caught.value.param) == ("model_not_allowed", "model")
    assert provider.calls == 1


async def test_a_call_is_in_the_record_of_another_store_too(settings: Settings, provider: FakeProvider) -> None:
    storage = settings.storage.model_copy(update={"session_store_url": "mem://"})
    async with open_house(reaching(settings, provider).model_copy(update={"storage": storage})) as house:
        await asked(house, model="openai/text-embedding-3-small")
        (row,) = await recorded(house)
        assert row.usage is not None
        assert row.usage.input_tokens == provider.ledger[-1][0]


async def test_without_the_scope_or_a_login_nobody_embeds(served: House, provider: FakeProvider) -> None:
    key = (await served.client.post("/auth/keys", json={"name": "k", "scopes": ["sessions"]})).json()["key"]
    body = {"model": "openai/e", "input": "x"}
    for headers, status, code in (({"x-api-key": key}, 403, "missing_scope"), ({}, 401, "unauthenticated")):
        answer = await served.anyone.post("/v1/embeddings", json=body, headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert provider.calls == 0


@pytest.mark.parametrize("model", ["nobody/e", "no-such-model", "agent/simple", "offline/nothing"])
async def test_an_unknown_model_is_404_and_the_embedding_models_are_named(served: House, model: str) -> None:
    answer = await asked(served, model=model)
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "offline/hash" in error["message"]
    assert "offline/rules" not in error["message"]


async def test_a_bare_name_works_where_one_provider_has_it(served: House) -> None:
    assert (await asked(served, model="hash")).json()["model"] == "offline/hash"


async def test_a_chat_model_does_not_embed_and_an_embedding_model_does_not_chat(
    served: House, provider: FakeProvider
) -> None:
    provider.then(Reply(status=400), Reply(status=501))
    for model in ("openai/gpt-4o", "vllm/llama", "offline/rules"):
        answer = await asked(served, model=model)
        assert (answer.status_code, error_of(answer)["type"]) == (400, "invalid_request_error")
    chat = await served.client.post("/completion", json={"message": "x", "model": "offline/hash"})
    assert (chat.status_code, chat.json()["code"]) == (422, "not_a_chat_model")


# -- what goes wrong --


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [
        (400, 400, "provider_refused"),
        (401, 502, "upstream_credentials"),
        (404, 404, "model_not_found"),
        (429, 429, "upstream_busy"),
        (500, 502, "upstream_failure"),
    ],
)
async def test_a_providers_status_becomes_ours(
    served: House, provider: FakeProvider, wire: str, status: int, expected: int, code: str
) -> None:
    provider.then(Reply(status=status))
    answer = await asked(served, model=f"{wire}/e")
    assert (answer.status_code, error_of(answer)["code"]) == (expected, code)
    assert "was refused" not in answer.text, "the provider's own words stay in our log"


UNUSABLE = ("cut", "html", "gzip", "too_few", "index_twice", "index_outside", "uneven", "no_data")


@pytest.mark.parametrize(
    ("wire", "form", "fault"),
    [
        *((wire, form, fault) for wire in WIRES for form in ("float", "base64") for fault in UNUSABLE),
        *((wire, "float", "not_finite") for wire in WIRES),
    ],
)
async def test_an_answer_that_is_not_one_vector_for_each_input_is_a_502(
    served: House, provider: FakeProvider, wire: str, form: str, fault: Any
) -> None:
    provider.then(Reply(fault=fault))
    answer = await asked(served, model=f"{wire}/e", encoding_format=form)
    assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_unreadable")
    # Either what the provider counted, or that nobody knows; never that it cost nothing.
    usage = (await recorded(served))[0].usage
    assert (usage is None) == (fault in ("cut", "html", "gzip", "not_finite"))


@pytest.mark.parametrize(
    ("fault", "form"), [("not_numbers", "float"), ("not_numbers", "base64"), ("huge_number", "base64")]
)
async def test_vectors_of_something_else_are_a_502(
    served: House, provider: FakeProvider, fault: Any, form: str
) -> None:
    provider.then(Reply(fault=fault))
    answer = await asked(served, model="vllm/e", encoding_format=form)
    assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_unreadable")


@pytest.mark.parametrize("fault", ["bad_base64", "encoded_nan", "infinite"])
@pytest.mark.parametrize(("wire", "form"), [("openai", "float"), ("openai", "base64"), ("vllm", "base64")])
async def test_a_vector_that_holds_something_else_than_numbers_is_a_502(
    served: House, provider: FakeProvider, wire: str, form: str, fault: Any
) -> None:
    provider.then(Reply(fault=fault))
    answer = await asked(served, model=f"{wire}/e", input="x", encoding_format=form)
    assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_unreadable")


async def test_an_error_inside_of_a_good_status_is_an_error(served: House, provider: FakeProvider) -> None:
    provider.then(Reply(fault="error_inside"))
    answer = await asked(served, model="openai/e")
    assert (answer.status_code, error_of(answer)["type"]) == (502, "api_error")


async def test_an_input_over_the_models_context_is_the_callers_to_mend(served: House, provider: FakeProvider) -> None:
    provider.then(Reply(status=400, error={"message": "This model's maximum context length is 8192 tokens"}))
    error = error_of(await asked(served, model="openai/e"))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


async def test_a_busy_provider_is_asked_again(settings: Settings, provider: FakeProvider) -> None:
    async with open_house(reaching(settings, provider, max_retries=2)) as house:
        provider.then(Reply(status=429, headers={"retry-after-ms": "10"}), Reply(status=503))
        assert (await asked(house, model="openai/e")).status_code == 200
        assert provider.calls == 3
        assert len(await recorded(house)) == 1


async def test_a_silent_provider_is_a_504_that_may_have_cost_something(
    settings: Settings, provider: FakeProvider
) -> None:
    async with open_house(reaching(settings, provider, total_timeout=0.3)) as house:
        provider.then(Reply(fault="hang_before"))
        answer = await asked(house, model="openai/e")
        assert (answer.status_code, error_of(answer)["code"]) == (504, "timeout")
        assert [row.usage for row in await recorded(house)] == [None]


async def test_a_client_that_leaves_ends_the_providers_call_and_is_recorded(
    served: House, provider: FakeProvider
) -> None:
    before = len(await recorded(served))
    provider.then(Reply(fault="hang_before"))
    leaving = asyncio.create_task(asked(served, model="openai/e"))
    with anyio.fail_after(10):
        await provider.begun.wait()
        leaving.cancel()
        await provider.abort_seen.wait()
    await asked(served, model="openai/next")  # written after whatever was begun before it
    rows = await recorded(served)
    assert [row.model for row in rows[: len(rows) - before]] == ["openai/next", "openai/e"]
    assert rows[1].usage is None, "nobody will ever say what it cost"


async def test_too_many_calls_at_once_are_told_to_come_back(settings: Settings, provider: FakeProvider) -> None:
    chosen = reaching(settings, provider).model_copy(update={"agents": AgentSettings(max_concurrent_runs=1)})
    async with open_house(chosen) as house:
        provider.then(Reply(fault="hang_before"))
        first = asyncio.create_task(asked(house, model="openai/e"))
        with anyio.fail_after(10):
            await provider.begun.wait()
        answer = await asked(house, model="openai/e")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        first.cancel()


# -- what is sent --

MANY = "[" + ",".join(["[1]"] * 2_049) + "]"
BODIES: list[tuple[str, str, str | None]] = [
    ("nothing", "", None),
    ("not json", "hello", None),
    ("a list", "[]", None),
    ("no input", '{"model": "offline/hash"}', "input"),
    ("no model", '{"input": "x"}', "model"),
    ("null", '{"model": "offline/hash", "input": null}', "input"),
    ("empty text", '{"model": "offline/hash", "input": ""}', "input"),
    ("only nul", '{"model": "offline/hash", "input": "\\u0000"}', "input"),
    ("empty list", '{"model": "offline/hash", "input": []}', "input"),
    ("an empty text among others", '{"model": "offline/hash", "input": ["x", ""]}', "input"),
    ("an empty list of ids", '{"model": "offline/hash", "input": [[1], []]}', "input"),
    ("mixed", '{"model": "offline/hash", "input": ["x", 1]}', "input"),
    ("ids mixed", '{"model": "offline/hash", "input": [[1, "x"]]}', "input"),
    ("ids and texts", '{"model": "offline/hash", "input": ["x", [1]]}', "input"),
    ("booleans", '{"model": "offline/hash", "input": [true]}', "input"),
    ("floats", '{"model": "offline/hash", "input": [1.5]}', "input"),
    ("negative id", '{"model": "offline/hash", "input": [-1]}', "input"),
    ("huge id", '{"model": "offline/hash", "input": [99999999999999999999]}', "input"),
    ("an object", '{"model": "offline/hash", "input": {"a": 1}}', "input"),
    ("too many inputs", f'{{"model": "offline/hash", "input": {MANY}}}', "input"),
    ("too many ids", '{"model": "offline/hash", "input": [' + "1," * 300_000 + "1]}", "input"),
    ("too many letters", '{"model": "offline/hash", "input": "' + "x" * 1_800_001 + '"}', "input"),
    ("deep", '{"model": "offline/hash", "input": ' + "[" * 5_000 + "]" * 5_000 + "}", None),
    ("unknown field", '{"model": "offline/hash", "input": "x", "input_type": "query"}', "input_type"),
    ("another encoding", '{"model": "offline/hash", "input": "x", "encoding_format": "hex"}', "encoding_format"),
    ("no dimensions", '{"model": "offline/hash", "input": "x", "dimensions": 0}', "dimensions"),
    ("true dimensions", '{"model": "offline/hash", "input": "x", "dimensions": true}', "dimensions"),
    ("too many dimensions", '{"model": "offline/hash", "input": "x", "dimensions": 4097}', "dimensions"),
    ("endless dimensions", '{"model": "offline/hash", "input": "x", "dimensions": 1e999}', "dimensions"),
    ("model is no header", '{"model": "offline/日本", "input": "x"}', "model"),
    ("model breaks a line", '{"model": "offline/a\\r\\nx-evil: 1", "input": "x"}', "model"),
    ("user is an object", '{"model": "offline/hash", "input": "x", "user": {}}', "user"),
]


@pytest.mark.parametrize(("name", "body", "param"), BODIES, ids=[name for name, _, _ in BODIES])
async def test_a_body_that_makes_no_sense_is_a_400(served: House, name: str, body: str, param: str | None) -> None:
    answer = await served.client.post(
        "/v1/embeddings", content=body.encode(), headers={"content-type": "application/json"}
    )
    error = error_of(answer)
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error"), answer.text[:300]
    assert len(answer.content) < 2_000, "the input is not echoed"
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize("text", [" ", "\\ud800 alone", "a\\u0000b", "\\u001b[31m", "🏳️‍🌈", "x" * 100_000])
async def test_strange_text_is_text(served: House, text: str) -> None:
    body = f'{{"model": "offline/hash", "input": ["{text}"]}}'
    answer = await served.client.post(
        "/v1/embeddings", content=body.encode(), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200, answer.text[:300]
    vector = answer.json()["data"][0]["embedding"]
    assert math.isclose(sum(number * number for number in vector), 1, rel_tol=1e-6)


async def test_as_many_inputs_as_openai_takes_are_taken(client: AsyncOpenAI) -> None:
    texts = [f"text number {number}" for number in range(2_048)]
    answer = await client.embeddings.create(model="offline/hash", input=texts)
    assert [entry.index for entry in answer.data] == list(range(2_048))


async def test_hash_is_listed_as_a_demonstration(served: House) -> None:
    told = (await served.client.get("/models/offline/hash")).json()
    assert (told["kind"], told["offline"], told["price"]["input"]) == ("embedding", True, "0")
    assert "demonstration" in told["description"]
