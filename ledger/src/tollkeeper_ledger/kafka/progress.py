"""Tell the ledger how far topics are read, so that billing periods wait for what lies in them.

A partition's watermark is a ledger time: where the partition ended is asked right after the ledger said the time, and
once all before that end is committed, so is all that was in the partition at that time. No timestamp of a message is
believed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tollkeeper.ledger.v1 import producers_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

    from aiokafka import TopicPartition

    Report = Callable[[producers_pb2.ReportTopicsRequest], Awaitable[producers_pb2.ReportTopicsResponse]]

REPORT_S = 5.0


class Reading(Protocol):
    """A consumer of a group, as far as it is needed here."""

    def assignment(self) -> Collection[TopicPartition]:
        """Give the partitions that it has."""
        ...

    async def position(self, partition: TopicPartition) -> int:
        """Give the offset that it reads next."""
        ...

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Give where partitions end, or where the oldest transaction that is still open in them begins."""
        ...


@dataclass(frozen=True, slots=True)
class _Goal:
    """Where a partition ended at a ledger time."""

    now_us: int
    end: int


class Progress:
    """Say how far a reader has come, every few seconds. `clock`: monotonic seconds."""

    def __init__(
        self, consumer: Reading, report: Report, *, group: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._consumer = consumer
        self._report = report
        self._group = group
        self._clock = clock
        self._next_s = clock()
        self._goals: dict[TopicPartition, _Goal] = {}
        self._watermarks_us: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}

    async def tell(self) -> None:
        """Say it, where it is time. All that was polled is committed in the ledger, or will be polled again.

        Raises KafkaError, grpc.RpcError: then it is said next time.
        """
        if self._clock() < self._next_s:
            return
        self._next_s = self._clock() + REPORT_S
        positions = {place: await self._consumer.position(place) for place in self._consumer.assignment()}
        for known in (self._goals, self._watermarks_us, self._ends):
            # Who has a partition again begins anew: somebody else may have read it meanwhile.
            for place in known.keys() - positions.keys():
                del known[place]
        if not positions:
            return
        self._reach(positions)
        now_us = (await self._report(self._said(positions))).now_us
        free = [place for place in positions if place not in self._goals]
        for place, end in (await self._consumer.end_offsets(free)).items() if free else ():
            self._goals[place] = _Goal(now_us, end)
            self._ends[place] = end
        self._reach(positions)

    def _reach(self, positions: Mapping[TopicPartition, int]) -> None:
        for place, position in positions.items():
            goal = self._goals.get(place)
            if goal is not None and position >= goal.end:
                self._watermarks_us[place] = goal.now_us
                del self._goals[place]

    def _said(self, positions: Mapping[TopicPartition, int]) -> producers_pb2.ReportTopicsRequest:
        return producers_pb2.ReportTopicsRequest(
            group=self._group,
            positions=[
                producers_pb2.TopicPosition(
                    topic=place.topic,
                    partition=place.partition,
                    next_offset=position,
                    end_offset=max(position, self._ends.get(place, 0)),
                    watermark_us=self._watermarks_us.get(place, 0),
                )
                for place, position in sorted(positions.items())
            ],
        )
