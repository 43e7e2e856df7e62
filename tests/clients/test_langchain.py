"""LangChain's own standard suites, with its OpenAI classes, against our door: models, agents, embeddings."""

from inspect import iscoroutinefunction
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_openai.chat_models.base import OpenAIInvalidRequestError
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

from tests.clients.conftest import Door

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


class Watched:
    """The suites' asynchronous calls: which tests have really sent one."""

    def __init__(self) -> None:
        self.now = ""
        self.sent: set[str] = set()

    def client(self) -> httpx.AsyncClient:
        """One that keeps no connection: LangChain would keep its own longer than the event loop of a test."""
        return httpx.AsyncClient(
            event_hooks={"request": [self._note]}, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def _note(self, _request: httpx.Request) -> None:
        self.sent.add(self.now)


@pytest.fixture(scope="module")
def watched() -> Watched:
    """For all tests of this file."""
    return Watched()


@pytest.fixture(autouse=True)
def current(request: pytest.FixtureRequest, watched: Watched, door: Door) -> None:
    """Each test of a suite knows the door."""
    watched.now = request.node.nodeid
    if request.instance is not None:
        request.instance.door, request.instance.watched = door, watched


class AtTheDoor:
    """What the classes under test are given."""

    door: Door
    watched: Watched

    def _given(self, **more: Any) -> dict[str, Any]:
        return {
            "base_url": self.door.url,
            "api_key": self.door.key,
            "http_async_client": self.watched.client(),
            **more,
        }


class Chat(AtTheDoor, ChatModelIntegrationTests):
    """What holds for models and agents."""

    __test__ = False
    called = ""

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self._given(model=self.called, stream_usage=True)

    @property
    def has_structured_output(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return False

    @property
    def returns_usage_metadata(self) -> bool:
        return True


class TestAModel(Chat):
    __test__ = True
    called = "offline/rules"

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "json_schema"}

    @property
    def model_override_value(self) -> str:
        return "agent/simple"


class TestAModelWhoseStructureComesAsACall(TestAModel):
    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "function_calling"}


class TestAModelOverResponses(TestAModel):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return super().chat_model_params | {"use_responses_api": True}


class TestAnAgent(Chat):
    """It has tools of its own and takes none."""

    __test__ = True
    called = "agent/simple"

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_tool_choice(self) -> bool:
        return False

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "json_schema"}

    @property
    def model_override_value(self) -> str:
        return "agent/react"

    @pytest.mark.xfail(
        strict=True,
        raises=OpenAIInvalidRequestError,
        reason="LangChain sends pydantic 1 as a tool, which agents refuse",
    )
    def test_structured_output_pydantic_2_v1(self, model: BaseChatModel) -> None:
        super().test_structured_output_pydantic_2_v1(model)


class TestAnAgentOverResponses(TestAnAgent):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return super().chat_model_params | {"use_responses_api": True}


class TestEmbeddings(AtTheDoor, EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        # Without it the text is sent as tokens of a vocabulary that would have to be downloaded.
        return self._given(model="offline/hash", check_embedding_ctx_length=False)


async def test_the_asynchronous_tests_of_the_suites_have_really_asked(
    request: pytest.FixtureRequest, watched: Watched
) -> None:
    asking = {
        item.nodeid
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.cls is not None
        and issubclass(item.cls, AtTheDoor)
        and iscoroutinefunction(item.function)
        and not (issubclass(item.cls, TestAnAgent) and item.name == "test_tool_calling_async")  # skipped
    }
    if not asking:
        pytest.skip("none was chosen")
    assert watched.sent == asking
