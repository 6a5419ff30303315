"""Every call is answered, whatever becomes of the work that it waits for."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
import structlog
from tollkeeper_ledger.rpc.interceptor import ErrorInterceptor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENCE_S = 60


class Broken:
    """Handlers that wait for work of somebody else."""

    def __init__(self) -> None:
        self.work: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.waiting = asyncio.Event()
        self.ended = asyncio.Event()

    async def single(self, _request: bytes, _context: Any) -> bytes:
        """Answer what the work gives."""
        self.waiting.set()
        try:
            return await self.work
        finally:
            self.ended.set()

    async def several(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Answer once, then what the work gives."""
        yield b"first"
        yield await self.single(request, context)


@asynccontextmanager
async def serving(broken: Broken) -> AsyncIterator[grpc.aio.Channel]:
    """Serve both over a real connection."""
    server = grpc.aio.server(interceptors=[ErrorInterceptor(structlog.get_logger())])
    handlers: dict[str, Any] = {
        "Single": grpc.unary_unary_rpc_method_handler(broken.single),
        "Several": grpc.unary_stream_rpc_method_handler(broken.several),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Broken", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


@pytest.mark.parametrize("streams", [False, True])
async def test_a_call_whose_work_is_broken_off_is_answered(streams: bool) -> None:  # noqa: FBT001
    """Somebody else cancels what a handler waits for: its caller hears UNAVAILABLE: to be repeated, and no bug."""
    broken = Broken()
    async with serving(broken) as channel, asyncio.timeout(PATIENCE_S):
        call: Any = (
            channel.unary_stream("/test.Broken/Several") if streams else channel.unary_unary("/test.Broken/Single")
        )
        answer = call(b"")
        if streams:
            assert await answer.read() == b"first"
        await broken.waiting.wait()
        broken.work.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await (answer.read() if streams else answer)
    assert told.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_call_that_its_caller_cancels_ends() -> None:
    """Who cancels a call ends its handler."""
    broken = Broken()
    async with serving(broken) as channel, asyncio.timeout(PATIENCE_S):
        call: Any = channel.unary_unary("/test.Broken/Single")
        answer = call(b"")
        await broken.waiting.wait()
        answer.cancel()
        await broken.ended.wait()
        assert answer.cancelled()
    assert broken.work.cancelled()
