"""Pipelined checks over one stream: many in flight, each answered to whoever asked."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from tollkeeper.quota.v1 import quota_pb2

from tollkeeper_client import calls, wire
from tollkeeper_client.errors import (
    ClientClosed,
    DeadlineExceeded,
    Denied,
    TollkeeperError,
    Unavailable,
    from_rpc_error,
    from_status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from tollkeeper_client.results import Decision


class CheckStream:
    """An open stream, used by any number of tasks of one loop. Use it with `async with`.

    When it breaks, every check in flight raises Unavailable and later ones do at once: open another stream.
    """

    def __init__(self, open_call: Callable[[], Any], *, timeout_s: float) -> None:
        self._open_call, self._timeout_s = open_call, timeout_s
        self._call: Any = None
        self._reading: asyncio.Task[None] | None = None
        self._tags = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[quota_pb2.StreamQuotaResponse]] = {}
        self._broken: TollkeeperError | None = None
        self._one_at_a_time = asyncio.Lock()

    async def check(
        self,
        tenant: str,
        costs: Mapping[str, int] | None = None,
        *,
        attributes: Mapping[str, str] | None = None,
        request_id: str | None = None,
        peek: bool = False,
        raise_on_denial: bool = False,
        timeout_s: float | None = None,
    ) -> Decision:
        """Decide as `AsyncClient.check` does, beside the other checks of this stream."""
        mode = quota_pb2.CHECK_MODE_PEEK if peek else quota_pb2.CHECK_MODE_CONSUME
        request = calls.check_request(tenant, costs, attributes=attributes, request_id=request_id, mode=mode)
        answer = await self._ask(request, self._timeout_s if timeout_s is None else timeout_s)
        if answer.WhichOneof("result") == "error":
            error = answer.error
            raise from_status(error.code, error.message, reason=error.reason, metadata={"field": error.field})
        decision = wire.from_check(answer.answer)
        if raise_on_denial and not decision.allowed:
            raise Denied(decision)
        return decision

    async def _ask(self, request: quota_pb2.CheckQuotaRequest, timeout_s: float) -> quota_pb2.StreamQuotaResponse:
        if self._broken is not None:
            raise self._broken
        if self._call is None:
            raise ClientClosed("the stream is not open: use `async with client.stream() as stream`")
        tag = next(self._tags)
        answered: asyncio.Future[quota_pb2.StreamQuotaResponse] = asyncio.get_running_loop().create_future()
        self._waiting[tag] = answered
        try:
            async with asyncio.timeout(timeout_s):
                async with self._one_at_a_time:
                    # Shielded: a write that is cancelled would end the stream for everybody.
                    await asyncio.shield(self._call.write(quota_pb2.StreamQuotaRequest(tag=tag, check=request)))
                return await answered
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {timeout_s} s") from None
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise Unavailable(f"the stream broke: {error!r}") from error
        finally:
            self._waiting.pop(tag, None)

    async def _read(self) -> None:
        broken: TollkeeperError = Unavailable("the sidecar ended the stream")
        try:
            while (answer := await self._call.read()) is not grpc.aio.EOF:
                waiting = self._waiting.get(answer.tag)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        except grpc.RpcError as error:
            broken = from_rpc_error(error)
        finally:
            self._broken = broken
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(broken)

    async def __aenter__(self) -> Self:
        self._call = self._open_call()
        self._reading = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        self._broken = ClientClosed("the stream was closed; open another one")
