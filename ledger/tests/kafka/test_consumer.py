# ruff: noqa: SIM300 - expected first, then actual
"""What a reader of topics does with messages that the ledger fails at: whatever may pass is no dead letter."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import pytest
import structlog
from tollkeeper.quota.v1 import usage_pb2
from tollkeeper_ledger.kafka import consumer as reading
from tollkeeper_ledger.kafka.consumer import TRIES_MAX, TopicReader

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.asyncio
PATIENCE_S = 60
MESSAGES = 10


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class Read(NamedTuple):
    """A message as a consumer gives it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


class FailedError(grpc.RpcError):
    """A call that failed with this code."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__()
        self._code = code

    def code(self) -> grpc.StatusCode:
        """Give the code."""
        return self._code

    def details(self) -> str:
        """Give what it says."""
        return "failed"


@dataclass(slots=True)
class World:
    """A partition with a group's offset, a dead-letter topic, and a ledger that fails as it is told."""

    stop: asyncio.Event
    offset: int = 0
    committed: int = 0
    dead: list[int] = field(default_factory=list)
    recorded: list[str] = field(default_factory=list)
    passing: list[grpc.StatusCode] = field(default_factory=list)
    """What the next calls fail with, whatever is in them."""
    poison: dict[str, grpc.StatusCode] = field(default_factory=dict)
    """What each call fails with that has the record of this id."""

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[Place, list[Read]]:
        """Give all messages that were not given; where there are none the reader is told to stop."""
        assert timeout_ms > 0
        first, self.offset = self.offset, MESSAGES
        if first == MESSAGES:
            self.stop.set()
            return {}
        return {Place("t", 0): [message(number) for number in range(first, MESSAGES)][:max_records]}

    async def commit(self, offsets: Mapping[Place, int]) -> None:
        """Keep the group's offset."""
        self.committed = offsets[Place("t", 0)]

    def seek(self, _place: Place, offset: int) -> None:
        """Go back."""
        self.offset = offset

    async def send_and_wait(self, topic: str, value: bytes, **_: Any) -> None:
        """Take a dead letter."""
        assert "t.dead-letter" == topic
        self.dead.append(int(json.loads(value)["id"]))

    async def tell(self) -> None:
        """Tell nobody how far it is."""

    async def record_usage(self, request: usage_pb2.RecordUsageRequest) -> usage_pb2.RecordUsageResponse:
        """Fail, or record all."""
        if self.passing:
            raise FailedError(self.passing.pop())
        for record in request.records:
            if record.id in self.poison:
                raise FailedError(self.poison[record.id])
        self.recorded += [record.id for record in request.records]
        outcome = usage_pb2.RecordResult(outcome=usage_pb2.RECORD_OUTCOME_RECORDED)
        return usage_pb2.RecordUsageResponse(results=[outcome] * len(request.records))


def message(number: int) -> Read:
    """Give the message of a number, whose record has it as its id."""
    record = {
        "id": str(number),
        "tenant": "acme",
        "event_time": "2026-11-22T03:00:00Z",
        "quantities": [{"meter": "requests", "units": 1}],
    }
    return Read("t", 0, number, 1, None, json.dumps(record).encode())


async def read_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read all messages without waiting between tries."""
    monkeypatch.setattr(reading, "_WAIT_FIRST_S", 0.0)
    fake: Any = world
    reader = TopicReader(fake, fake, world.record_usage, fake, structlog.get_logger())
    async with asyncio.timeout(PATIENCE_S):
        await reader.run(world.stop)


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE])
async def test_what_the_ledger_fails_at_for_a_while_is_recorded(
    monkeypatch: pytest.MonkeyPatch, code: grpc.StatusCode
) -> None:
    """Calls that fail without a word about a record are made again: all is recorded once, and no message is dead."""
    world = World(asyncio.Event(), passing=[code] * TRIES_MAX)
    await read_all(world, monkeypatch)
    assert ([], MESSAGES) == (world.dead, world.committed)
    assert [str(number) for number in range(MESSAGES)] == world.recorded


async def test_what_the_ledger_fails_at_for_good_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that the ledger fails at each time is a dead letter in the end, alone; the others are recorded."""
    world = World(asyncio.Event(), poison={"3": grpc.StatusCode.INTERNAL, "8": grpc.StatusCode.INVALID_ARGUMENT})
    await read_all(world, monkeypatch)
    assert ([3, 8], MESSAGES) == (world.dead, world.committed)
    assert {str(number) for number in range(MESSAGES)} - {"3", "8"} == set(world.recorded)


@dataclass(slots=True)
class Neighbour(World):
    """A world with a partition beside, each of whose polls has a message of its own; every second is of it alone."""

    beside: int = 0

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[Place, list[Read]]:
        """Give one message of the other partition, and of the first one what is there with every second call."""
        self.beside += 1
        others = [message(1_000 + self.beside)._replace(partition=1, offset=self.beside)]
        first = await World.getmany(self, timeout_ms=timeout_ms, max_records=max_records) if self.beside % 2 else {}
        return {**first, Place("t", 1): others}

    async def commit(self, offsets: Mapping[Place, int]) -> None:
        """Keep the group's offset of the first partition."""
        self.committed = offsets.get(Place("t", 0), self.committed)

    def seek(self, place: Place, offset: int) -> None:
        """Go back in the first partition; the other one gives new messages as ever."""
        if place.partition == 0:
            self.offset = offset


async def test_what_another_partition_has_delays_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that the ledger fails at is set aside although calls without its partition go well in between."""
    world = Neighbour(asyncio.Event(), poison={"3": grpc.StatusCode.INTERNAL})
    await read_all(world, monkeypatch)
    assert ([3], MESSAGES) == (world.dead, world.committed)
    assert {str(number) for number in range(MESSAGES)} - {"3"} <= set(world.recorded)
    assert 2 * TRIES_MAX <= world.beside
