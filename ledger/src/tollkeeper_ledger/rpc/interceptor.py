"""Turn errors of handlers into statuses, and log what was not expected."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from tollkeeper_ledger.domain.errors import LedgerError, broken_off
from tollkeeper_ledger.rpc.errors import bug, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    Context = grpc.aio.ServicerContext[Any, Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Map each handler's LedgerError to its status; anything else is logged and answered INTERNAL.

    Work that was broken off while its caller still waits is LEDGER_UNREACHABLE: gRPC would answer that call never, and
    whoever hears INTERNAL takes it for what fails again.
    """

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of this call."""
        handler: Any = await continuation(details)
        if handler is None or details.method.startswith("/grpc."):
            return handler  # type: ignore[no-any-return]
        if handler.request_streaming and handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler
            behaviour = self._streaming(handler.stream_stream, details.method)
        elif handler.response_streaming:
            make = grpc.unary_stream_rpc_method_handler
            behaviour = self._streaming(handler.unary_stream, details.method)
        elif handler.request_streaming:
            make = grpc.stream_unary_rpc_method_handler
            behaviour = self._single(handler.stream_unary, details.method)
        else:
            make = grpc.unary_unary_rpc_method_handler
            behaviour = self._single(handler.unary_unary, details.method)
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    def _single(self, inner: Callable[[Any, Context], Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:
            try:
                return await inner(request, context)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the interceptor is where bugs end
                await self._abort(error, context, method)

        return call

    def _streaming(self, inner: Callable[[Any, Context], AsyncIterator[Any]], method: str) -> Callable[..., Any]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                async for message in inner(request, context):
                    yield message
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the interceptor is where bugs end
                await self._abort(error, context, method)

        return call

    async def _abort(self, error: Exception | asyncio.CancelledError, context: Context, method: str) -> None:
        if isinstance(error, grpc.aio.AbortError) or (isinstance(error, asyncio.CancelledError) and _is_cancelled()):
            raise error
        if not isinstance(error, LedgerError):
            self._log.error("rpc failed", method=method, exc_info=error)
            error = broken_off() if isinstance(error, asyncio.CancelledError) else bug()
        code, message, metadata = status_of(error)
        await context.abort(code, message, metadata)


def _is_cancelled() -> bool:
    """Tell whether it is this call that was cancelled, not something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
