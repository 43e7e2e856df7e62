"""Our side of a conversation with MCP servers: their tools as LangChain tools, and each call with its time limit.

A server that listens (streamable HTTP) gets a session for each call; one that we start (stdio) is one process, kept
alive and started again when it dies. Imported only when MCP_SERVERS names one: the packages are an extra.
"""

import asyncio
import logging
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio
import httpx
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langchain_mcp_adapters.tools import convert_mcp_tool_to_langchain_tool
from mcp import ClientSession, McpError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp.types import CallToolResult, Implementation, PaginatedRequestParams, Tool

from config.mcp_settings import McpServer, McpSettings
from domain.text import clean_text
from services.tool_registry import ToolRegistry

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ANSWER_WITHIN = 5.0  # seconds for a server to tell its tools; also for a call to wait for a process that starts again
_START_WITHIN = 60.0  # seconds for a process: `uvx` and `npx` download theirs the first time
_STAND = 0.5  # seconds until a process that died is started again; twice as long each time that it does not stand
_STEADY = 10.0  # seconds after which a process is believed to stand
_LAST_WORDS = 2.0  # seconds for open calls to say good-bye when we close
_MAX_PAGES = 100
_UNFIT = re.compile(r"[^a-zA-Z0-9_-]")
_MAX_NAME = 64  # OpenAI's limit for a function's name

Incoming = SessionMessage | Exception


class Connection(ABC):
    """One MCP server, and what it offers us."""

    def __init__(self, name: str, settings: McpSettings, registry: ToolRegistry) -> None:
        self.name = name
        self._timeout = settings.timeout
        self._retry_every = settings.retry_every
        self._registry = registry
        self._reason: str | None = None
        self._open: set[asyncio.Task[Any]] = set()

    @abstractmethod
    async def watch(self) -> None:
        """Keep the registry right about this server, until cancelled."""

    @abstractmethod
    async def _ask(self, tool: str, arguments: dict[str, Any]) -> CallToolResult: ...

    async def call_tool(
        self, name: str, arguments: dict[str, Any] | None = None, progress_callback: object = None
    ) -> CallToolResult:
        """What its tool answers.

        Raises:
            ToolException: it did not, or not in time. The model is told, and the run goes on.
        """
        try:
            return await self._within(self._timeout, self._ask(name, arguments or {}))
        except Exception as error:
            reason = self._told(error, self._timeout)
            logger.warning("MCP tool failed", extra={"server": self.name, "tool": name, "reason": reason})
            raise ToolException(f"The MCP server '{self.name}' failed: {reason}.") from error

    async def _within(self, seconds: float, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which has a task of its own: saying good-bye to a server that hangs holds up nobody.

        Raises:
            TimeoutError: it took longer; whatever `work` raises passes through.
        """
        task = asyncio.create_task(work)
        self._open.add(task)
        task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(task)
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if task.cancelled() and this is not None and not this.cancelling():
                raise _Gone("the connection broke") from None  # its doing, not ours: the run goes on
            raise
        finally:
            task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._open.discard(task)
        _noted(task)

    async def _let_go(self) -> None:
        """End what is open."""
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open, timeout=_LAST_WORDS)

    def _offer(self, tools: list[Tool]) -> None:
        fit: dict[str, BaseTool] = {}
        left_out: dict[str, str] = {}
        for tool in tools:
            name = f"{self.name}_{_UNFIT.sub('_', tool.name)}"
            if len(name) > _MAX_NAME:
                left_out[name] = f"its name is longer than {_MAX_NAME} characters"
            elif name in fit:
                left_out[f"{name} (again)"] = "another tool of the same server has that name"
            else:
                try:
                    fit[name] = as_langchain(name, tool, self)
                except Exception as error:  # a schema may be wrong in any way; the other tools must not care
                    left_out[name] = f"it cannot be read ({type(error).__name__})"
        self._reason = None
        self._registry.server_answered(self.name, fit.values(), left_out)
        logger.info("MCP server answered", extra={"server": self.name, "tools": len(fit)})

    def _fail(self, reason: str) -> None:
        self._registry.server_failed(self.name, reason)
        if reason != self._reason:  # one line for each trouble, not one for each try
            logger.warning("MCP server is not there", extra={"server": self.name, "reason": reason})
        self._reason = reason

    def _told(self, error: BaseException, within: float) -> str:
        """Why, in our words: theirs may hold addresses and keys."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, TimeoutError | httpx.TimeoutException):
            return f"it did not answer within {within:g} s"
        if isinstance(error, httpx.HTTPStatusError):
            return f"it answered with status {error.response.status_code}"
        if isinstance(error, McpError):
            return f"it answered with error {error.error.code}"
        if isinstance(error, _Gone):
            return str(error)
        return f"it cannot be reached ({type(error).__name__})"


class _Gone(Exception):
    """The process is not there (any more); the message says so in our words."""


class HttpConnection(Connection):
    """A server that listens: a session for each call, over connections that are kept."""

    def __init__(self, name: str, server: McpServer, settings: McpSettings, registry: ToolRegistry) -> None:
        super().__init__(name, settings, registry)
        self._url = server.url or ""
        self._headers = {key: value.get_secret_value() for key, value in server.headers.items()}
        self._client: httpx.AsyncClient | None = None

    async def watch(self) -> None:
        """Ask for its tools until it has told them once."""
        limits = httpx.Timeout(self._timeout, connect=min(_ANSWER_WITHIN, self._timeout))
        async with httpx.AsyncClient(headers=self._headers, timeout=limits) as self._client:
            try:
                while True:
                    try:
                        tools = await self._within(_ANSWER_WITHIN, self._list())
                    except Exception as error:
                        self._fail(self._told(error, _ANSWER_WITHIN))
                        await asyncio.sleep(self._retry_every)
                    else:
                        self._offer(tools)
                        await asyncio.Event().wait()
            finally:
                await self._let_go()

    async def _list(self) -> list[Tool]:
        return await self._in_session(_tools_of)

    async def _ask(self, tool: str, arguments: dict[str, Any]) -> CallToolResult:
        return await self._in_session(lambda session: session.call_tool(tool, arguments))

    async def _in_session(self, work: Callable[[ClientSession], Awaitable[T]]) -> T:
        result: list[T] = []
        async with (
            streamable_http_client(self._url, http_client=self._client) as (incoming, outgoing, _),
            _session(incoming, outgoing) as session,
        ):
            await session.initialize()
            result.append(await work(session))
        if not result:  # the SDK's contexts may swallow what broke the connection
            raise _Gone("the connection broke")
        return result[0]


@dataclass(frozen=True, slots=True)
class _Life:
    """One process from its first answer to its end."""

    session: ClientSession
    ended: asyncio.Event


class StdioConnection(Connection):
    """A server that we start: one process, talked to by its standard input and output.

    What it writes to standard error is dropped: it is not ours to log.
    """

    def __init__(self, name: str, server: McpServer, settings: McpSettings, registry: ToolRegistry) -> None:
        super().__init__(name, settings, registry)
        self._parameters = StdioServerParameters(
            command=server.command or "",
            args=list(server.args),
            env={key: value.get_secret_value() for key, value in server.env.items()},
        )
        self._life: _Life | None = None
        self._standing = asyncio.Event()

    async def watch(self) -> None:
        """Keep the process alive. One that answered and died is started again soon, another one after a while."""
        pause = _STAND
        try:
            while True:
                begun, reason = time.monotonic(), "its process ended"
                stood = False
                try:
                    async with self._alive() as life:
                        stood = True
                        await life.ended.wait()
                except Exception as error:
                    reason = self._told(error, _START_WITHIN)
                if stood:
                    pause = _STAND if time.monotonic() - begun > _STEADY else min(2 * pause, self._retry_every)
                    logger.warning("MCP server died, it is started again", extra={"server": self.name})
                    await asyncio.sleep(pause)
                else:
                    self._fail(reason)
                    await asyncio.sleep(self._retry_every)
        finally:
            await self._let_go()

    @asynccontextmanager
    async def _alive(self) -> AsyncIterator[_Life]:
        """The process, when it has told its tools; it is ended with the context."""
        slow = asyncio.get_running_loop().call_later(
            _ANSWER_WITHIN, self._fail, f"it is starting, and has not answered within {_ANSWER_WITHIN:g} s"
        )
        try:
            with Path(os.devnull).open("w") as nowhere:  # noqa: ASYNC230 - nothing to wait for
                async with (
                    stdio_client(self._parameters, errlog=nowhere) as (incoming, outgoing),
                    anyio.create_task_group() as group,
                ):
                    passed_on, heard = anyio.create_memory_object_stream[Incoming](0)
                    ended = asyncio.Event()
                    group.start_soon(_relay, incoming, passed_on, ended)
                    async with _session(heard, outgoing) as session:
                        with anyio.fail_after(_START_WITHIN):
                            await session.initialize()
                            tools = await _tools_of(session)
                        slow.cancel()
                        self._life = _Life(session, ended)
                        self._offer(tools)
                        self._standing.set()
                        yield self._life
                    group.cancel_scope.cancel()
        finally:
            slow.cancel()
            self._standing.clear()
            self._life = None

    async def _ask(self, tool: str, arguments: dict[str, Any]) -> CallToolResult:
        life = await self._life_now()
        asked = asyncio.create_task(life.session.call_tool(tool, arguments))
        ended = asyncio.create_task(life.ended.wait())
        try:
            await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise _Gone("its process ended before it had answered")
            return asked.result()
        finally:
            asked.add_done_callback(_noted)
            asked.cancel()
            ended.cancel()

    async def _life_now(self) -> _Life:
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_WITHIN):
                await self._standing.wait()
        if self._life is None:
            raise _Gone("its process is not running")
        return self._life


def connect(name: str, server: McpServer, settings: McpSettings, registry: ToolRegistry) -> Connection:
    """The connection to that server, not opened yet: `watch` it."""
    kind = HttpConnection if server.url is not None else StdioConnection
    return kind(name, server, settings, registry)


def as_langchain(name: str, tool: Tool, connection: Connection) -> BaseTool:
    """A tool of an MCP server as one that agents can use. What goes wrong is told to the model."""
    adapted = convert_mcp_tool_to_langchain_tool(cast(ClientSession, connection), tool, handle_tool_errors=False)
    ask = cast(StructuredTool, adapted).coroutine
    if ask is None:  # pragma: no cover - the adapter makes coroutines
        raise TypeError("an MCP tool without a coroutine")
    return adapted.model_copy(update={"name": name, "coroutine": _in_words(ask), "handle_tool_error": True})


def _in_words(ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[tuple[Any, Any]]]:
    """`ask`, whose answers are one text where they are words alone, as every provider takes it."""

    async def answer(**arguments: Any) -> tuple[Any, Any]:
        try:
            content, artifact = await ask(**arguments)
        except (NotImplementedError, ValueError) as error:  # the adapter's: sound, or something newer than we are
            raise ToolException("The tool answered with something that cannot be read here.") from error
        if isinstance(content, list) and all(block.get("type") == "text" for block in content):
            return clean_text("\n".join(block["text"] for block in content)), artifact
        return content, artifact

    return answer


def _session(
    incoming: MemoryObjectReceiveStream[Incoming], outgoing: MemoryObjectSendStream[SessionMessage]
) -> ClientSession:
    ours = Implementation(name="routeur-ia-api", version=version("routeur-ia-api"))
    return ClientSession(incoming, outgoing, client_info=ours)


async def _tools_of(session: ClientSession) -> list[Tool]:
    tools: list[Tool] = []
    cursor: str | None = None
    for _ in range(_MAX_PAGES):
        page = await session.list_tools(params=PaginatedRequestParams(cursor=cursor))
        tools += page.tools
        cursor = page.nextCursor
        if not cursor:
            break
    return tools


def _noted(task: asyncio.Task[Any]) -> None:
    """Whoever still waited has its exception; to nobody else is it news."""
    if not task.cancelled():
        task.exception()


async def _relay(
    source: MemoryObjectReceiveStream[Incoming], into: MemoryObjectSendStream[Incoming], ended: asyncio.Event
) -> None:
    """Pass on what a process says, and notice when it says no more: the SDK tells only those who have just asked."""
    try:
        async with into:
            async for message in source:
                await into.send(message)
    finally:
        ended.set()
