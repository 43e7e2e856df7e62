"""Which model answers, and what it is built of."""

import subprocess
import sys
from pathlib import Path

import pytest
from langchain_mistralai import ChatMistralAI
from langchain_ollama import ChatOllama
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import SecretStr

from config.catalogue import load_catalogue
from config.settings import CompatibleProvider, ProviderSettings, ServerSettings, Settings
from domain.enums import ModelName
from domain.errors import InvalidRequest, ModelNotFound, Unavailable
from domain.usage import Usage
from services.llm_service import open_llm_service

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9"  # discard: nothing listens there


def configured(**more: object) -> Settings:
    return Settings(providers=ProviderSettings.model_validate({"discover_local": False, **more}))


EVERYBODY = {
    "openai_api_key": "sk-x",
    "mistral_api_key": "m",
    "ollama_base_url": NOBODY,
    "compatible": {"vllm": {"base_url": NOBODY}},
}


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("openai/gpt-4o", "openai/gpt-4o"),
        ("openai:gpt-4o", "openai/gpt-4o"),
        ("gpt-4o", "openai/gpt-4o"),
        ("GPT_4", "openai/gpt-4"),
        (ModelName.MISTRAL_LARGE, "mistral/mistral-large-latest"),
        ("mistral-large-latest", "mistral/mistral-large-latest"),
        ("vllm/meta-llama/Llama-3.1-8B", "vllm/meta-llama/Llama-3.1-8B"),
        ("ollama/llama3.2:3b", "ollama/llama3.2:3b"),
        ("ollama:llama3.2:3b", "ollama/llama3.2:3b"),
        ("openai/a-model-of-tomorrow", "openai/a-model-of-tomorrow"),
        ("offline/rules", "offline/rules"),
    ],
)
async def test_a_name_is_understood_without_asking_anybody(named: str, expected: str) -> None:
    async with open_llm_service(configured(**EVERYBODY)) as llm:
        assert (await llm.resolve(named)).id == expected


@pytest.mark.parametrize("named", ["nope", "nobody/x", "openai/", "/x", "anthropic:claude", "x" * 200])
async def test_an_unknown_name_is_not_found_and_the_known_are_listed(named: str) -> None:
    async with open_llm_service(configured(**EVERYBODY)) as llm:
        with pytest.raises(ModelNotFound, match="openai/gpt-4o"):
            await llm.resolve(named)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "offline/rules"),
        ({"openai_api_key": "sk-x"}, "openai/gpt-4o-mini"),
        ({"mistral_api_key": "m"}, "mistral/mistral-small-latest"),
        ({"openai_api_key": "sk-x", "mistral_api_key": "m"}, "openai/gpt-4o-mini"),
        ({"openai_api_key": "sk-x", "default_model": "offline/rules"}, "offline/rules"),
        ({"compatible": {"vllm": {"base_url": NOBODY, "default_model": "m"}}}, "vllm/m"),
    ],
)
async def test_the_default_is_the_first_of_the_documented_order(more: dict[str, object], expected: str) -> None:
    async with open_llm_service(configured(**more)) as llm:
        assert llm.default_model_id == expected
        assert (await llm.resolve(None)).id == expected
        assert (await llm.resolve(None, "offline/rules")).id == "offline/rules", "an agent's own model comes first"


async def test_production_guesses_no_model() -> None:
    settings = Settings(server=ServerSettings(environment="production"))
    async with open_llm_service(settings) as llm:
        assert llm.default_model_id is None
        with pytest.raises(Unavailable, match="OPENAI_API_KEY"):
            await llm.resolve(None)


async def test_a_default_of_an_unconfigured_provider_is_refused_at_the_start() -> None:
    with pytest.raises(ModelNotFound, match="mistral/x"):
        async with open_llm_service(configured(default_model="mistral/x")):
            pass


async def test_each_vendor_has_langchains_own_class() -> None:
    """The seed's promise: whatever get_llm gives is a BaseChatModel, and the vendors' classes are interchangeable."""
    async with open_llm_service(configured(**EVERYBODY)) as llm:
        for model, kind in (
            ("openai/gpt-4o", BaseChatOpenAI), ("vllm/v", BaseChatOpenAI),
            ("mistral/m", ChatMistralAI), ("ollama/l", ChatOllama),
        ):  # fmt: skip
            assert isinstance(llm.get_llm(model, 0.5, 10), kind)


async def test_no_key_leaks_into_a_model_that_can_be_printed() -> None:
    async with open_llm_service(configured(**{**EVERYBODY, "openai_api_key": "sk-hunter2"})) as llm:
        model = llm.get_llm("openai/gpt-4o")
        assert "hunter2" not in repr(model)
        assert "hunter2" not in str(model.model_dump())


async def test_mistral_refuses_a_temperature_over_one_by_name() -> None:
    async with open_llm_service(configured(**EVERYBODY)) as llm:
        with pytest.raises(InvalidRequest) as caught:
            llm.get_llm("mistral/m", temperature=1.5)
        assert caught.value.param == "temperature"


def test_importing_the_factory_imports_no_vendor() -> None:
    code = (
        "import sys, app, cli, services.llm_service;"
        "print([m for m in ('openai','langchain_openai','langchain_mistralai','langchain_ollama','langchain.agents')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_catalogue_prices_what_it_knows_and_no_more() -> None:
    catalogue = load_catalogue()
    price = catalogue["openai/gpt-4o"].price
    assert price is not None
    usage = Usage(input_tokens=1_000_000, output_tokens=100_000, total_tokens=1_100_000, cached_tokens=500_000)
    assert str(price.cost(usage)) == "2.875"
    assert catalogue["mistral/mistral-large-latest"].price is None
    assert {name.value for name in ModelName} <= set(catalogue)


def test_secrets_of_compatible_servers_stay_secret() -> None:
    server = CompatibleProvider(base_url="http://x", api_key=SecretStr("hunter2"))
    assert "hunter2" not in repr(server)
