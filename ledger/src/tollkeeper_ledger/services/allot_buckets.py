"""Token buckets' shards: opened by the ledger once per generation, served by Redis alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from tollkeeper_ledger.domain.window_state import GENERATION_BITS, PoolFault
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.pool_functions import bucket_keys, bucket_speed_call, open_bucket_call, shard_of
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from tollkeeper_ledger.services.entries import Entry
    from tollkeeper_ledger.store.clock import ClockReading
    from tollkeeper_ledger.store.pool import Connection, Pool, Row
    from tollkeeper_ledger.store.pool_functions import BucketKeys, Call


ShardName: TypeAlias = "tuple[UUID, str, int]"
"""Tenant, limit name, shard."""


class BucketShards:
    """Open shards: the first generation when somebody asks, the next when a holder reports the present one as lost."""

    def __init__(self) -> None:
        self._generations: dict[ShardName, int] = {}

    async def load(self, pool: Pool) -> None:
        """Read the shards that are open, for `speed_calls` after a restart."""
        async with connection(pool) as conn:
            rows = await conn.fetch(sql("limits.open_shards"))
        self._generations.update({_name_in(row): row["generation"] for row in rows})

    async def open(
        self, conn: Connection, asks: Sequence[tuple[UUID, Entry]], *, clock: ClockReading, timeline: int
    ) -> list[Call]:
        """Open what is not open, and the next generation of what is reported as lost; gives the calls for Redis.

        A report about an older generation changes nothing. Redis out of reach is no loss: buckets come back with it.
        """
        if not asks:
            return []
        named = [((tenant_id, entry.limit, shard_of(entry.key_hash)), entry.ask) for tenant_id, entry in asks]
        names = sorted({name for name, _ in named})
        rows = await conn.fetch(sql("limits.lock_shards"), *(list(column) for column in zip(*names, strict=True)))
        before = {_name_in(row): row["generation"] for row in rows}
        after = dict(before)
        for name, ask in named:
            lost = ask.fault not in (None, PoolFault.UNREACHABLE)
            if before[name] == 0 or (lost and ask.generation_seen == before[name]):
                after[name] = max(before[name], timeline << GENERATION_BITS) + 1
        changed = [name for name in names if after[name] != before[name]]
        if changed:
            columns = [list(column) for column in zip(*changed, strict=True)]
            generations = [after[name] for name in changed]
            await conn.execute(sql("limits.update_shards"), *columns, generations, clock.now_us)
        self._generations.update(after)
        return [
            open_bucket_call(
                bucket_keys(*name),
                generation=after[name],
                opened_at_us=clock.now_us,
                speed_milli=clock.speed_milli,
                # After a restore nobody knows whether it ever was opened: buckets then refill from empty.
                first=before[name] == 0 and timeline == 1,
            )
            for name in changed
        ]

    def place(self, tenant_id: UUID, entry: Entry) -> tuple[int, BucketKeys]:
        """Give the generation and names of the shard that an ask is about."""
        name = (tenant_id, entry.limit, shard_of(entry.key_hash))
        return self._generations[name], bucket_keys(*name)

    def speed_calls(self, reading: ClockReading) -> list[Call]:
        """Give the calls that tell every open shard how ledger time runs now."""
        return [
            bucket_speed_call(
                bucket_keys(*name), generation=generation, speed_milli=reading.speed_milli, now_us=reading.now_us
            )
            for name, generation in self._generations.items()
            if generation
        ]


def _name_in(row: Row) -> ShardName:
    return row["tenant_id"], row["limit_name"], row["shard"]
