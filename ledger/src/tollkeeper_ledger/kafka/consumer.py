"""Read topics and hand their records to the ledger: each is committed there before its offset is.

Whatever dies in between, the messages after the last committed offset are read again, and their records are duplicates
by their ids. What is no record, or conflicts with one, goes to the dead-letter topic before its offset is committed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from tollkeeper.quota.v1 import usage_pb2

from tollkeeper_ledger.kafka.messages import Message, record_of
from tollkeeper_ledger.web.transcode.messages import RequestError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.kafka.progress import Progress

    RecordUsage = Callable[[usage_pb2.RecordUsageRequest], Awaitable[usage_pb2.RecordUsageResponse]]

RECORDS_MAX = 1_000
DEAD_LETTER = ".dead-letter"
"""What the name of a topic's dead-letter topic ends with."""
_POLL_MS = 500
_WAIT_FIRST_S, _WAIT_MAX_S = 0.25, 10.0
_REASON_UNREADABLE = "MESSAGE_UNREADABLE"
_PASSING = frozenset({
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
})  # fmt: skip
"""What passes by itself."""
_DOUBTFUL = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})
"""What passes, or fails again each time: nobody knows which."""
TRIES_MAX = 8
"""Calls in a row that fail doubtfully before what they fail at is cut out: 36 s."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that became no record, and why."""

    message: Message
    reason: str
    field: str
    text: str


@dataclass(slots=True)
class Counts:
    """What was done since the process began."""

    recorded: int = 0
    duplicates: int = 0
    dead: int = 0


class TopicReader:
    """Read with one consumer of a group. Any number may run; Kafka shares the partitions out."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        producer: AIOKafkaProducer,
        record_usage: RecordUsage,
        progress: Progress,
        log: FilteringBoundLogger,
    ) -> None:
        self._consumer = consumer
        self._producer = producer
        self._record_usage = record_usage
        self._progress = progress
        self._log = log
        self.counts = Counts()
        self._doubts: dict[TopicPartition, int] = {}
        """Calls in a row with messages of a partition that failed doubtfully."""

    async def run(self, stop: asyncio.Event) -> None:
        """Read until `stop`; what is under way then is finished. A ledger or a cluster that is away is waited for."""
        wait_s = _WAIT_FIRST_S
        while not stop.is_set():
            try:
                polled = await self._consumer.getmany(timeout_ms=_POLL_MS, max_records=RECORDS_MAX)
                if polled:
                    await self._take(polled)
                if not self._doubts:
                    wait_s = _WAIT_FIRST_S
                await self._tell()
            except (KafkaError, grpc.RpcError) as error:
                self._log.warning("usage of topics waits", error=str(error), kind=type(error).__name__, wait_s=wait_s)
                await sleep_unless(stop, wait_s)
                wait_s = min(_WAIT_MAX_S, wait_s * 2)

    async def _tell(self) -> None:
        """Say how far it is; reading goes on whatever becomes of that."""
        try:
            await self._progress.tell()
        except (KafkaError, grpc.RpcError) as error:
            self._log.info("how far topics are read is not told", error=str(error), kind=type(error).__name__)

    async def _take(self, polled: dict[TopicPartition, list[ConsumerRecord[bytes, bytes]]]) -> None:
        """Commit the records of these messages in the ledger, then their offsets; else read them again."""
        messages = [_message(one) for of_partition in polled.values() for one in of_partition]
        patient = all(self._doubts.get(place, 0) < TRIES_MAX for place in polled)
        try:
            await self._bury(await self._record(messages, patient=patient))
        except BaseException as error:
            doubtful = isinstance(error, grpc.RpcError) and error.code() in _DOUBTFUL
            for place, of_partition in polled.items():
                if doubtful:
                    self._doubts[place] = self._doubts.get(place, 0) + 1
                self._seek(place, of_partition[0].offset)
            raise
        for place in polled:
            self._doubts.pop(place, None)
        try:
            await self._consumer.commit({place: found[-1].offset + 1 for place, found in polled.items()})
        except (CommitFailedError, IllegalStateError) as error:
            # The partitions went to another reader, who reads these messages again: all of them are duplicates there.
            self._log.info("partitions were shared out anew", error=str(error))

    async def _record(self, messages: Sequence[Message], *, patient: bool) -> list[DeadLetter]:
        """Record what are records; gives the others. `patient`: what fails doubtfully is to be tried again."""
        dead: list[DeadLetter] = []
        read: list[Message] = []
        request = usage_pb2.RecordUsageRequest()
        for message in messages:
            try:
                request.records.append(record_of(message))
                read.append(message)
            except RequestError as error:
                dead.append(DeadLetter(message, _REASON_UNREADABLE, error.field, str(error)))
        for message, result in zip(read, await self._results(request, patient=patient), strict=True):
            if result.outcome == usage_pb2.RECORD_OUTCOME_RECORDED:
                self.counts.recorded += 1
            elif result.outcome == usage_pb2.RECORD_OUTCOME_DUPLICATE:
                self.counts.duplicates += 1
            else:
                reason = result.reason or usage_pb2.RecordOutcome.Name(result.outcome)
                dead.append(DeadLetter(message, reason, result.field, result.message))
        return dead

    async def _results(self, request: usage_pb2.RecordUsageRequest, *, patient: bool) -> list[usage_pb2.RecordResult]:
        """Give a result for each record; what the ledger fails at is cut in halves, so that others go on.

        Raises RpcError where that may pass: the messages are read again.
        """
        if not request.records:
            return []
        try:
            return list((await self._record_usage(request)).results)
        except grpc.RpcError as error:
            if error.code() in _PASSING or (patient and error.code() in _DOUBTFUL):
                raise
            if len(request.records) == 1:
                return [usage_pb2.RecordResult(reason=error.code().name, message=error.details() or "")]
        middle = len(request.records) // 2
        halves = [
            usage_pb2.RecordUsageRequest(records=half) for half in (request.records[:middle], request.records[middle:])
        ]
        return [result for half in halves for result in await self._results(half, patient=patient)]

    async def _bury(self, dead: Sequence[DeadLetter]) -> None:
        """Put messages into the dead-letter topic, as they were, with the reason in their headers."""
        for one in dead:
            said = (("reason", one.reason), ("field", one.field), ("message", one.text), ("place", one.message.place))
            headers = [*one.message.headers, *((f"tollkeeper-{name}", text.encode()) for name, text in said)]
            await self._producer.send_and_wait(
                one.message.topic + DEAD_LETTER, one.message.value, key=one.message.key, headers=headers
            )
            self._log.warning("message is no record", place=one.message.place, reason=one.reason, error=one.text)
        self.counts.dead += len(dead)

    def _seek(self, place: TopicPartition, offset: int) -> None:
        try:
            self._consumer.seek(place, offset)
        except IllegalStateError:
            # Another reader has the partition now and begins at the committed offset.
            self._doubts.pop(place, None)


def _message(read: ConsumerRecord[bytes, bytes]) -> Message:
    return Message(
        topic=read.topic,
        partition=read.partition,
        offset=read.offset,
        timestamp_ms=read.timestamp,
        key=read.key,
        value=read.value,
        headers=read.headers,
    )


async def sleep_unless(stop: asyncio.Event, wait_s: float) -> None:
    """Wait so long, or until `stop`."""
    try:
        await asyncio.wait_for(stop.wait(), wait_s)
    except TimeoutError:
        return
