"""An ASGI application under a real uvicorn, on a free port of this machine, in the test's own event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn


@asynccontextmanager
async def live(app: Any, **options: Any) -> AsyncIterator[str]:
    """The address of `app`, served until the context ends."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    quiet = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": 1}
    config = uvicorn.Config(app, **{**quiet, **options})
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined] # pytest keeps Ctrl-C
    started = asyncio.Event()
    startup = server.startup

    async def noticed(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = noticed  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve([listening]))
    waiting = asyncio.create_task(started.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not started.is_set():
            await task
            raise RuntimeError("the server did not start")
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        waiting.cancel()
        server.should_exit = True
        await task
        listening.close()
