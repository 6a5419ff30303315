"""Takes the data plane's commands, has them carried out, and gives exactly one answer to each."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from tollkeeper.bridge.v1 import bridge_pb2

from tollkeeper_sidecar.errors import CommandFailed, OutcomeUnknown, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_sidecar.outbox import Outbox
    from tollkeeper_sidecar.plane import DataPlane

LEDGER_METHODS: Final = {
    "allot": "/tollkeeper.ledger.v1.LimitService/Allot",
    "return_units": "/tollkeeper.ledger.v1.LimitService/ReturnUnits",
    "report_consumption": "/tollkeeper.ledger.v1.LimitService/ReportConsumption",
    "report_decisions": "/tollkeeper.ledger.v1.LimitService/ReportDecisions",
    "open_producer": "/tollkeeper.ledger.v1.UsageService/OpenProducer",
    "append_usage": "/tollkeeper.ledger.v1.UsageService/AppendUsage",
}
"""Commands that are one unary call to the ledger, with the path of its method."""

_log = structlog.get_logger(__name__)


class Ledger(Protocol):
    """What commands need of the link to the ledger."""

    async def unary(self, method: str, request: bytes, *, timeout_s: float) -> bytes:
        """Call a method. Raises CommandFailed."""

    async def send_watch(self, request: bytes) -> None:
        """Send on the open watch stream. Raises CommandFailed."""


class Pools(Protocol):
    """What commands need of the link to Redis."""

    async def call(self, calls: Sequence[bridge_pb2.RedisCall]) -> bridge_pb2.RedisReplies:
        """Call functions. Raises CommandFailed."""

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe and wait for the confirmation. Raises CommandFailed."""

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """Leave channels. Raises CommandFailed."""


class Commands:
    """Carries commands out, all of them at the same time; the data plane bounds how many there are."""

    def __init__(self, plane: DataPlane, outbox: Outbox, *, ledger: Ledger, pools: Pools) -> None:
        self._plane, self._outbox, self._ledger, self._pools = plane, outbox, ledger, pools
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Carry commands until cancelled; then end those that are under way and answer them, their outcome unknown."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._plane.fd(), self._take)
        try:
            self._take()
            await loop.create_future()
        finally:
            loop.remove_reader(self._plane.fd())
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            self._outbox.flush()

    def _take(self) -> None:
        taken = self._plane.take_commands()
        for command in bridge_pb2.CommandBatch.FromString(taken).commands if taken else ():
            task = asyncio.get_running_loop().create_task(self._answer(command))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _answer(self, command: bridge_pb2.Command) -> None:
        answer = bridge_pb2.Answer(id=command.id)
        unknown = OutcomeUnknown("the control plane stopped before the answer came")
        try:
            timeout_s = max(command.timeout_ms, 1) / 1000
            async with asyncio.timeout(timeout_s):
                await self._carry_out(command, answer, timeout_s)
        except CommandFailed as failed:
            answer.failure.CopyFrom(failed.to_failure())
        except TimeoutError:
            late = OutcomeUnknown(f"no answer within {command.timeout_ms} ms")
            answer.failure.CopyFrom(late.to_failure())
        except asyncio.CancelledError:
            answer.failure.CopyFrom(unknown.to_failure())
            raise
        except Exception as error:  # noqa: BLE001 - top of a loop: an unanswered command would block the data plane for good
            _log.exception("command failed unexpectedly", action=command.WhichOneof("action"))
            answer.failure.CopyFrom(OutcomeUnknown(repr(error)).to_failure())
        finally:
            self._outbox.put(answer)

    async def _carry_out(self, command: bridge_pb2.Command, answer: bridge_pb2.Answer, timeout_s: float) -> None:
        action = command.WhichOneof("action")
        if action is None:
            raise Refused(
                "the command is of a kind that this control plane does not know; sidecar parts differ in version"
            )
        if action in LEDGER_METHODS:
            request: bytes = getattr(command, action)
            answer.ledger = await self._ledger.unary(LEDGER_METHODS[action], request, timeout_s=timeout_s)
        elif action == "redis":
            answer.redis.CopyFrom(await self._pools.call(command.redis.calls))
        else:
            if action == "watch":
                await self._ledger.send_watch(command.watch)
            elif action == "subscribe":
                await self._pools.subscribe(command.subscribe.channels)
            else:
                await self._pools.unsubscribe(command.unsubscribe.channels)
            answer.done = True
