"""Carries requests to the ledger as bytes, and keeps the watch stream open."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
import structlog
from google.rpc import error_details_pb2, status_pb2
from tollkeeper.bridge.v1 import bridge_pb2
from tollkeeper.ledger.v1 import limits_pb2

from tollkeeper_sidecar.backoff import Backoff
from tollkeeper_sidecar.errors import CommandFailed, NotSent, OutcomeUnknown, Refused

if TYPE_CHECKING:
    from tollkeeper_sidecar.outbox import Outbox

WATCH_METHOD: Final = "/tollkeeper.ledger.v1.LimitService/WatchLimits"
WATCH_SILENCE_S: Final = 1.0
"""Heartbeats come every 40 ms: a stream that is silent for this long is taken for dead and opened again."""
WATCH_WELCOME_S: Final = 5.0
MESSAGE_BYTES_MAX: Final = 32 << 20
DOMAIN: Final = "tollkeeper"

_CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)
_REFUSING: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""Codes with which a server says no before it does anything. RESOURCE_EXHAUSTED is one only with an ErrorInfo:
gRPC itself says it of an answer that was too long, after the ledger has acted."""

_log = structlog.get_logger(__name__)


class LedgerLink:
    """One channel to the ledger. No request is repeated here."""

    def __init__(self, address: str, outbox: Outbox, *, backoff: Backoff | None = None) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._address, self._outbox, self._backoff = address, outbox, backoff or Backoff()
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {}
        self._stream: _WatchStream | None = None
        self._told = False

    async def unary(self, method: str, request: bytes, *, timeout_s: float) -> bytes:
        """Call a method with an encoded request and return the encoded answer.

        Raises NotSent without a connection, Refused where the ledger said no, OutcomeUnknown for all else.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        await self._connected(timeout_s)
        if method not in self._methods:
            self._methods[method] = self._channel.unary_unary(method)
        try:
            return await self._methods[method](request, timeout=max(0.001, deadline_s - loop.time()))
        except grpc.aio.AioRpcError as error:
            raise failure_of(error) from error

    async def send_watch(self, request: bytes) -> None:
        """Send on the open watch stream; the first message of a stream must be a hello.

        Raises NotSent while no stream is up, or where the message was meant for an earlier stream.
        """
        stream = self._stream
        if stream is None:
            raise NotSent("the watch stream is down")
        await stream.send(request)

    async def run(self) -> None:
        """Keep the watch stream open, and open it again with growing pauses, until cancelled. Closes the channel."""
        try:
            while True:
                try:
                    await self._connected(None)
                    await self._watch()
                except (CommandFailed, TimeoutError) as error:
                    _log.warning("watch stream is down", ledger=self._address, error=str(error))
                await asyncio.sleep(self._backoff.next_s())
        finally:
            await self._channel.close()

    async def _connected(self, timeout_s: float | None) -> None:
        state = self._channel.get_state(try_to_connect=True)
        try:
            async with asyncio.timeout(timeout_s):
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        self._tell_away()
                        if timeout_s is not None:
                            raise NotSent(f"no connection to the ledger at {self._address}")
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        except TimeoutError:
            raise NotSent(f"no connection to the ledger at {self._address} within {timeout_s} s") from None

    def _tell_away(self) -> None:
        """Tell the data plane, once, that the ledger can't be had at the start: it begins from its last snapshot."""
        if not self._told:
            self._told = True
            self._outbox.put(bridge_pb2.Answer(watch_up=False))
            _log.warning("the ledger can't be reached", ledger=self._address)

    async def _watch(self) -> None:
        call: Any = self._channel.stream_stream(WATCH_METHOD)()
        self._stream, self._told = _WatchStream(call), True
        self._outbox.put(bridge_pb2.Answer(watch_up=True))
        _log.info("watch stream is up", ledger=self._address)
        silence_s = WATCH_WELCOME_S
        try:
            while True:
                async with asyncio.timeout(silence_s):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    raise OutcomeUnknown("the ledger ended the watch stream")
                self._outbox.put(bridge_pb2.Answer(watch=message))
                silence_s = WATCH_SILENCE_S
                self._backoff.reset()
        except grpc.aio.AioRpcError as error:
            raise failure_of(error) from error
        except asyncio.CancelledError:
            if call.cancelled() and not _is_cancelling():
                raise OutcomeUnknown("the watch stream was given up") from None
            raise
        finally:
            self._stream = None
            call.cancel()
            self._outbox.put(bridge_pb2.Answer(watch_up=False))


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _WatchStream:
    """The sending half of one stream."""

    def __init__(self, call: Any) -> None:
        self._call, self._greeted = call, False
        self._one_at_a_time = asyncio.Lock()

    async def send(self, request: bytes) -> None:
        """Send one message. A second hello was meant for another stream, so this one is given up for a fresh one."""
        is_hello = limits_pb2.WatchLimitsRequest.FromString(request).WhichOneof("message") == "hello"
        if not is_hello and not self._greeted:
            raise NotSent("the message was meant for an earlier watch stream")
        if is_hello and self._greeted:
            self._call.cancel()
            raise NotSent("a second hello: the watch stream begins anew")
        self._greeted = True
        async with self._one_at_a_time:
            try:
                await self._call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                raise OutcomeUnknown(f"the watch stream broke: {error!r}") from error


def failure_of(error: grpc.aio.AioRpcError) -> CommandFailed:
    """Read what a failed call says of itself: refused, never sent, or unknown."""
    info = _error_info(error)
    message = f"{error.code().name}: {error.details()}"
    if error.code() in _REFUSING or (info is not None and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED):
        reason = info.reason if info is not None else error.code().name
        return Refused(message, reason=reason, metadata=info.metadata if info is not None else None)
    if info is None and (error.details() or "").startswith("failed to connect to all addresses"):
        return NotSent(message)
    if info is not None:
        return OutcomeUnknown(message, reason=info.reason, metadata=info.metadata)
    return OutcomeUnknown(message)


def _error_info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    return info
    return None
