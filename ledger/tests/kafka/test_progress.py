# ruff: noqa: SIM300 - expected first, then actual
"""How far topics are read: a watermark says that all that was there then is committed, and never more."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import pytest
from tollkeeper.ledger.v1 import producers_pb2
from tollkeeper_ledger.kafka.progress import REPORT_S, Progress

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.asyncio


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


@dataclass(slots=True)
class World:
    """Partitions that grow, a reader that follows, and a ledger with a clock; each call takes a moment."""

    chance: random.Random
    now_us: int = 1_000_000
    written: dict[Place, list[int]] = field(default_factory=dict)
    """When each message of a partition was written."""
    read: dict[Place, int] = field(default_factory=dict)
    said: list[producers_pb2.ReportTopicsRequest] = field(default_factory=list)
    is_away: bool = False

    def assignment(self) -> set[Place]:
        """Give the partitions that the reader has."""
        return set(self.read)

    async def position(self, partition: Place) -> int:
        """Give the offset that it reads next."""
        return self.read[partition]

    async def end_offsets(self, partitions: Iterable[Place]) -> dict[Place, int]:
        """Give where partitions end; meanwhile more may be written."""
        self.live()
        return {place: len(self.written[place]) for place in partitions}

    async def report(self, request: producers_pb2.ReportTopicsRequest) -> producers_pb2.ReportTopicsResponse:
        """Take note and give the time; the answer takes a while."""
        if self.is_away:
            raise ConnectionError
        self.said.append(request)
        answer = producers_pb2.ReportTopicsResponse(now_us=self.now_us)
        self.live()
        return answer

    def live(self) -> None:
        """Let time pass and messages be written."""
        self.now_us += self.chance.randrange(1, 1000)
        for messages in self.written.values():
            messages.extend([self.now_us] * self.chance.randrange(3))

    def check(self) -> None:
        """See that what was said last is true."""
        for one in self.said[-1].positions:
            before = [at for at in self.written[Place(one.topic, one.partition)] if at < one.watermark_us]
            assert len(before) <= one.next_offset <= one.end_offset or not one.watermark_us


def progress_of(world: World) -> tuple[Progress, list[float]]:
    """Give the progress of a world's reader, and its clock."""
    clock = [0.0]
    return Progress(world, world.report, group="g", clock=lambda: clock[0]), clock  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(50))
async def test_a_watermark_is_true_whatever_is_written_meanwhile(seed: int) -> None:
    """Readers that lag, stop, lose partitions and get them back never claim what they have not committed."""
    chance = random.Random(seed)
    places = [Place("t", number) for number in range(3)]
    world = World(chance, written={place: [] for place in places}, read=dict.fromkeys(places, 0))
    progress, clock = progress_of(world)
    away: dict[Place, int] = {}
    for _ in range(200):
        world.live()
        for place in world.read:
            world.read[place] = chance.randrange(world.read[place], len(world.written[place]) + 1)
        if chance.random() < 0.1 and world.read:
            place = chance.choice(sorted(world.read))
            away[place] = world.read.pop(place)
        elif chance.random() < 0.2 and away:
            # Another reader had it; what that one committed is committed.
            place = chance.choice(sorted(away))
            world.read[place] = chance.randrange(away.pop(place), len(world.written[place]) + 1)
        clock[0] += REPORT_S
        await progress.tell()
        if world.said:
            world.check()
    assert any(one.watermark_us for said in world.said for one in said.positions)


async def test_a_partition_that_is_read_to_its_end_is_never_far_behind() -> None:
    """With nothing written, or all of it read, each report carries the time of the one before."""
    world = World(random.Random(1), written={Place("t", 0): [], Place("t", 1): []}, read={Place("t", 0): 0})
    progress, clock = progress_of(world)
    for _ in range(5):
        clock[0] += REPORT_S
        before = world.now_us
        world.written = {place: [] for place in world.written}
        world.read[Place("t", 0)] = 10**6
        await progress.tell()
        await progress.tell()
    assert 5 == len(world.said)
    assert 0 == world.said[0].positions[0].watermark_us
    assert 0 < world.said[-2].positions[0].watermark_us < world.said[-1].positions[0].watermark_us <= before
    assert ["t"] * 5 == [one.topic for said in world.said for one in said.positions]


async def test_what_lags_keeps_its_watermark_until_all_of_then_is_read() -> None:
    """A reader that is behind says so, and its watermark moves once it has passed where the partition ended."""
    place = Place("t", 7)
    world = World(random.Random(2), written={place: [1] * 100}, read={place: 0})
    progress, clock = progress_of(world)

    async def said() -> tuple[int, int]:
        clock[0] += REPORT_S
        await progress.tell()
        (one,) = world.said[-1].positions
        assert one.end_offset >= one.next_offset
        return one.next_offset, one.watermark_us

    assert (0, 0) == await said()
    goal = len(world.written[place])
    first_us = world.now_us
    world.read[place] = 99
    assert (99, 0) == await said()
    world.read[place] = goal
    _, watermark_us = await said()
    assert 0 < watermark_us <= first_us


async def test_a_ledger_that_is_away_is_told_next_time() -> None:
    """What could not be told stops nothing and is not forgotten."""
    world = World(random.Random(3), written={Place("t", 0): []}, read={Place("t", 0): 10**6}, is_away=True)
    progress, clock = progress_of(world)
    clock[0] += REPORT_S
    with pytest.raises(ConnectionError):
        await progress.tell()
    await progress.tell()
    world.is_away = False
    clock[0] += REPORT_S
    await progress.tell()
    assert 1 == len(world.said)
