"""The two clients. Their methods are made from `calls.py`; here is only how a call is made and waited for."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import grpc
import grpc.aio
from tollkeeper.quota.v1 import quota_pb2_grpc

from tollkeeper_client import calls, target
from tollkeeper_client.errors import ClientClosed, InvalidRequest, from_rpc_error
from tollkeeper_client.hold import AsyncHold, Hold
from tollkeeper_client.stream import CheckStream

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Self

    from tollkeeper_client.calls import Call
    from tollkeeper_client.results import Reserved

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_TIMEOUT_S = 1.0


def _built(build: Callable[P, Call[T]], *args: P.args, **kwargs: P.kwargs) -> Call[T]:
    try:
        return build(*args, **kwargs)
    except ValueError as error:  # What protobuf can't encode: lone surrogates, times before the year 1.
        raise InvalidRequest(str(error), reason="FIELD_INVALID") from error


def _blocking(build: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    @wraps(build)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.run(_built(build, *args, **kwargs))

    return method


def _awaiting(build: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    @wraps(build)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.run(_built(build, *args, **kwargs))

    return method


def _holding(build: Callable[P, Call[Reserved]]) -> Callable[Concatenate[Client, P], Hold]:
    @wraps(build)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Hold:
        return Hold(self, self.run(_built(build, *args, **kwargs)))

    return method


def _holding_later(build: Callable[P, Call[Reserved]]) -> Callable[Concatenate[AsyncClient, P], AsyncHold]:
    @wraps(build)
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncHold:
        return AsyncHold(self, lambda: self.run(_built(build, *args, **kwargs)))

    return method


class Client:
    """Asks the sidecar, and waits. Thread-safe; share one per process.

    Makes no connection before the first call, and finds a restarted sidecar by itself. Repeats nothing.
    Every method raises TollkeeperError (see `errors`), and takes `timeout_s` where the default doesn't fit.
    """

    def __init__(self, address: str | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Use the sidecar at `host:port`, `unix:PATH` or an absolute path; by default the environment's."""
        self.target = target.find(address)
        self.timeout_s = timeout_s
        self._channel = grpc.insecure_channel(self.target, options=target.options(self.target))
        self._stub = quota_pb2_grpc.QuotaServiceStub(self._channel)

    check = _blocking(calls.check)
    give_back = _blocking(calls.give_back)
    reserve = _holding(calls.reserve)
    settle = _blocking(calls.settle)
    release = _blocking(calls.release)
    record = _blocking(calls.record)
    record_many = _blocking(calls.record_many)
    quota = _blocking(calls.quota)

    def run(self, call: Call[T]) -> T:
        """Make a call that `calls` has built, and return its answer. Raises TollkeeperError."""
        timeout_s = self.timeout_s if call.timeout_s is None else call.timeout_s
        try:
            answer = getattr(self._stub, call.method)(call.request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        except ValueError as error:  # grpcio's way to say so
            raise ClientClosed("the client was closed; make a new one") from error
        return call.read(answer)

    def close(self) -> None:
        """Give the connection back. Repeating it changes nothing."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """Asks the sidecar from an event loop, and belongs to that loop. Cancelling a call leaves its outcome unknown.

    Otherwise as `Client`: make it inside the running loop.
    """

    def __init__(self, address: str | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Use the sidecar at `host:port`, `unix:PATH` or an absolute path; by default the environment's."""
        self.target = target.find(address)
        self.timeout_s = timeout_s
        self._channel = grpc.aio.insecure_channel(self.target, options=target.options(self.target))
        self._stub = quota_pb2_grpc.QuotaServiceStub(self._channel)
        self._closed = False

    check = _awaiting(calls.check)
    give_back = _awaiting(calls.give_back)
    reserve = _holding_later(calls.reserve)
    settle = _awaiting(calls.settle)
    release = _awaiting(calls.release)
    record = _awaiting(calls.record)
    record_many = _awaiting(calls.record_many)
    quota = _awaiting(calls.quota)

    def stream(self) -> CheckStream:
        """Open a pipelined stream of checks: many in flight over one call, answered in any order."""
        return CheckStream(self._stub.StreamQuota, timeout_s=self.timeout_s)

    async def run(self, call: Call[T]) -> T:
        """Make a call that `calls` has built, and return its answer. Raises TollkeeperError."""
        if self._closed:
            raise ClientClosed("the client was closed; make a new one")
        timeout_s = self.timeout_s if call.timeout_s is None else call.timeout_s
        try:
            answer = await getattr(self._stub, call.method)(call.request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return call.read(answer)

    async def close(self) -> None:
        """Give the connection back; calls under way are cancelled. Repeating it changes nothing."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
