"""Ledger ingest: AppendUsage over gRPC, committed, deduplicated, rolled up and chained; beside a bare transaction."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper.ledger.v1 import usage_pb2, usage_pb2_grpc
from tollkeeper_ledger.domain.usage import RECORDS_MAX
from tollkeeper_ledger.domain.usage_batch import read_batch
from tollkeeper_ledger.domain.usage_hash import h_start
from tollkeeper_ledger.rpc.usage_service import append_from_message

from bench.cases.catalogue import METERS, declare
from bench.frame import Bench, Goal, Sample

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    import asyncpg

    from bench.frame import Effort
    from bench.stage import Stage

_PRODUCERS = 16
"""Sidecars that send at the same time: what waits meanwhile shares a transaction."""

_BATCHES = 48
_FLOOR_CONNECTIONS = 4
"""More make the floor no faster: its transactions then share two cores and one log."""

_TIMEOUT_S = 300.0
_PLAN = "bench-ingest"
_SHARE_OF_FLOOR = 0.6

# What exactly-once cannot do without: records found by tenant and time, and ids that are taken once.
_FLOOR_TABLES = """
CREATE TABLE IF NOT EXISTS bench_record (
  tenant_id uuid NOT NULL, event_time timestamptz NOT NULL, received_at timestamptz NOT NULL, seq bigint NOT NULL,
  id text COLLATE "C" NOT NULL, meter_ids integer[] NOT NULL, units bigint[] NOT NULL, attributes jsonb NOT NULL,
  PRIMARY KEY (tenant_id, event_time, id));
CREATE TABLE IF NOT EXISTS bench_id (
  tenant_id uuid NOT NULL, id text COLLATE "C" NOT NULL, content_hash bytea NOT NULL, PRIMARY KEY (tenant_id, id))
"""
_FLOOR_IDS = """
INSERT INTO bench_id SELECT * FROM unnest($1::uuid[], $2::text[], $3::bytea[])
ORDER BY 1, 2 ON CONFLICT DO NOTHING
"""
_FLOOR_RECORDS = """
INSERT INTO bench_record
SELECT tenant_id, event_time, event_time, seq, id, '{1,2}', ARRAY[1, units], '{"model": "small"}'
FROM unnest($1::uuid[], $2::timestamptz[], $3::bigint[], $4::text[], $5::bigint[])
  AS record (tenant_id, event_time, seq, id, units)
"""

_FloorBatch: TypeAlias = "tuple[tuple[object, ...], tuple[object, ...]]"


@dataclass(slots=True)
class Producer:
    """A sidecar's side of the append: contiguous batches, each with the hash before it."""

    producer_id: bytes
    seq: int
    h: bytes

    def cut(self, columns: usage_pb2.UsageColumns) -> usage_pb2.AppendUsageRequest:
        """Make the next batch of these records."""
        request = usage_pb2.AppendUsageRequest(
            format=1, producer_id=self.producer_id, incarnation=1, first_seq=self.seq + 1, h_before=self.h
        )
        request.records.CopyFrom(columns)
        self.seq += len(columns.ids)
        self.h = read_batch(append_from_message(request)).entry_h[-1]
        return request


@asynccontextmanager
async def open_ingest(stage: Stage, effort: Effort, *, tenants: int, per_s: int) -> AsyncIterator[Bench]:
    """Have tenants with subscriptions, and producers of one ledger replica."""
    names = [f"ingest-{number}" for number in range(effort.of(tenants, quick=min(tenants, 200)))]
    await declare(stage, _PLAN, names)
    size, count = effort.of(RECORDS_MAX, quick=500), effort.of(_BATCHES, quick=_PRODUCERS)
    randoms = random.Random(tenants)
    async with AsyncExitStack() as opened:
        channel = await opened.enter_async_context(stage.ledger())
        # Open all the time: a session's CPU time is lost with it.
        connections = [await opened.enter_async_context(stage.owner()) for _ in range(_FLOOR_CONNECTIONS)]
        owner = connections[0]
        stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
        await owner.execute(_FLOOR_TABLES)
        ids = {row["wire_id"]: row["tenant_id"] for row in await owner.fetch("SELECT wire_id, tenant_id FROM tenant")}
        producers = [await open_producer(stub) for _ in range(_PRODUCERS)]

        async def ours() -> Sample:
            batches = [
                (producer, producer.cut(_columns(names, size, randoms)))
                for producer in producers
                for _ in range(count // _PRODUCERS)
            ]
            with stage.spending("ledger", "postgres") as spent:
                async with asyncio.TaskGroup() as tasks:
                    for producer in producers:
                        tasks.create_task(send(stub, [batch for by, batch in batches if by is producer]))
            return Sample(count=size * len(batches), wall_s=spent.wall_s, cpu_s=spent.cpu_s)

        async def floor() -> Sample:
            batches = [_floor_batch([ids[name] for name in names], size, randoms) for _ in range(count)]
            with stage.spending("driver", "postgres") as spent:
                await _insert(connections, batches)
            return Sample(count=size * len(batches), wall_s=spent.wall_s, cpu_s=spent.cpu_s)

        yield Bench(
            unit="records",
            ours=ours,
            floor=floor,
            floor_is="asyncpg, one transaction a batch: unnest into ids (ON CONFLICT) and records, each with its key;"
            f" {_FLOOR_CONNECTIONS} connections ({_PRODUCERS} producers beside)",
            goals=(Goal("ratio.per_s", _SHARE_OF_FLOOR), Goal("ours.per_s", per_s)),
        )


async def open_producer(stub: usage_pb2_grpc.UsageServiceAsyncStub) -> Producer:
    """Open a producer of its own."""
    producer_id = uuid.uuid4().bytes
    request = usage_pb2.OpenProducerRequest(
        producer_id=producer_id, incarnation=1, holder=secrets.token_bytes(16), format=1
    )
    await stub.OpenProducer(request, timeout=_TIMEOUT_S)
    return Producer(producer_id=producer_id, seq=0, h=h_start(producer_id))


async def send(stub: usage_pb2_grpc.UsageServiceAsyncStub, batches: Sequence[usage_pb2.AppendUsageRequest]) -> None:
    """Send batches, one after the other. Raises RuntimeError where a record was not stored."""
    for batch in batches:
        answer = await stub.AppendUsage(batch, timeout=_TIMEOUT_S)
        if answer.stored != len(batch.records.ids):
            raise RuntimeError(f"{answer.stored} of {len(batch.records.ids)} records were stored: {answer}")


def uuid7s(count: int) -> Iterator[str]:
    """Make ids as our clients do: in order of time."""
    milliseconds = time.time_ns() // 1_000_000
    for number in range(count):
        tail = secrets.randbits(62)
        value = (milliseconds + number // 16) << 80 | 7 << 76 | (number & 0xFFF) << 64 | 2 << 62 | tail
        yield str(uuid.UUID(int=value))


def _columns(tenants: Sequence[str], size: int, randoms: random.Random) -> usage_pb2.UsageColumns:
    places: dict[str, int] = {}
    tenant = [places.setdefault(randoms.choice(tenants), len(places)) for _ in range(size)]
    now_us = time.time_ns() // 1_000
    return usage_pb2.UsageColumns(
        tenants=list(places),
        meters=METERS,
        attribute_names=["model"],
        attribute_values=["small", "large"],
        ids=list(uuid7s(size)),
        tenant=tenant,
        event_time_us=[now_us] + [10] * (size - 1),
        received_us=[now_us] + [10] * (size - 1),
        flags=[0] * size,
        quantity_count=[2] * size,
        attribute_count=[1] * size,
        meter=[0, 1] * size,
        units=[number for _ in range(size) for number in (1, randoms.randint(1, 4_000))],
        attribute_name=[0] * size,
        attribute_value=[randoms.randint(0, 1) for _ in range(size)],
    )


def _floor_batch(tenant_ids: Sequence[uuid.UUID], size: int, randoms: random.Random) -> _FloorBatch:
    tenants = [randoms.choice(tenant_ids) for _ in range(size)]
    ids = list(uuid7s(size))
    now = datetime.now(UTC)
    return (
        (tenants, ids, [secrets.token_bytes(32) for _ in range(size)]),
        (tenants, [now] * size, list(range(size)), ids, [randoms.randint(1, 4_000) for _ in range(size)]),
    )


async def _insert(connections: Sequence[asyncpg.Connection[asyncpg.Record]], batches: Sequence[_FloorBatch]) -> None:
    waiting = list(batches)

    async def work(conn: asyncpg.Connection[asyncpg.Record]) -> None:
        while waiting:
            ids, records = waiting.pop()
            async with conn.transaction():
                await conn.execute(_FLOOR_IDS, *ids)
                await conn.execute(_FLOOR_RECORDS, *records)

    async with asyncio.TaskGroup() as tasks:
        for conn in connections:
            tasks.create_task(work(conn))
