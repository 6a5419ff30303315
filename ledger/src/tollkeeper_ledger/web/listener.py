"""Listen for HTTP/1.1, with every bound stated."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from tollkeeper_ledger.web.transcode.errors import body_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send
    from structlog.typing import FilteringBoundLogger

CONNECTIONS_MAX = 200
HEAD_BYTES_MAX = 16 * 1024
HEAD_SECONDS_MAX = 30.0
ANSWER_SECONDS_MAX = 600.0
"""Longest answer, streams included."""
_IDLE_SECONDS_MAX = 10
_BACKLOG = 20


class HttpServer:
    """A listener and its connections."""

    def __init__(self, server: asyncio.Server, state: ServerState) -> None:
        self._server = server
        self._state = state

    @property
    def port(self) -> int:
        """Give the port that it got."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self, grace_s: float) -> None:
        """Take no more connections, let calls in flight finish for so long, and end the rest."""
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        tasks = list(self._state.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
        for connection in list(self._state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)  # lets the loop close the sockets


async def listen(app: ASGIApp, address: str, log: FilteringBoundLogger) -> HttpServer:
    """Serve an app on `host:port`. Raises OSError where it can't be had."""
    host, _, port = address.rpartition(":")
    config = Config(
        Bounded(app, log),
        http=H11Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",  # Bad requests are the callers' affair; errors of ours are logged by `Bounded`.
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=_IDLE_SECONDS_MAX,
        h11_max_incomplete_event_size=HEAD_BYTES_MAX,
    )
    config.load()
    loop = asyncio.get_running_loop()
    state = ServerState()

    def make() -> asyncio.Protocol:
        protocol = H11Protocol(config=config, server_state=state, app_state={}, _loop=loop)
        loop.call_later(HEAD_SECONDS_MAX, _watch, loop, protocol, None)
        return protocol

    return HttpServer(await loop.create_server(make, host.strip("[]"), int(port), backlog=_BACKLOG), state)


def _watch(loop: asyncio.AbstractEventLoop, protocol: Any, before: Any) -> None:
    """End a connection on which no request has become whole since the last look and none is being answered."""
    transport = protocol.transport
    if transport is None or transport.is_closing():
        return
    cycle: Any = protocol.cycle
    if cycle is before and (cycle is None or cycle.response_complete):
        transport.abort()
        return
    loop.call_later(HEAD_SECONDS_MAX, partial(_watch, loop, protocol, cycle))


class Bounded:
    """Answer in bounded time, and log what was not expected."""

    def __init__(self, app: ASGIApp, log: FilteringBoundLogger) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a bug is 500 without its detail."""
        begun = False
        if sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["raw_path"]) > HEAD_BYTES_MAX:
            # The parser refuses long heads that arrive in pieces only.
            body = body_of("INVALID_ARGUMENT", f"the head is longer than {HEAD_BYTES_MAX:,} bytes", [])
            await JSONResponse(body, 431)(scope, receive, send)
            return

        async def noted(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await self._app(scope, receive, noted)
        except Exception as error:  # where bugs end
            self._log.error("http request failed", path=scope.get("path"), exc_info=error)
            if begun:
                raise
            body = body_of("INTERNAL", "internal error; the ledger's log has the detail", [])
            await JSONResponse(body, 500)(scope, receive, send)
