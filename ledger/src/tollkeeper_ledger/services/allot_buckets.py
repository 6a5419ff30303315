"""Token buckets' shards: opened by the ledger once per generation, served by Redis alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.allotment import GENERATION_BITS, PoolFault
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.pool_functions import bucket_keys, bucket_speed_call, open_bucket_call
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.allotment import Ask
    from tollkeeper_ledger.store.clock import ClockReading
    from tollkeeper_ledger.store.pool import Connection, Pool
    from tollkeeper_ledger.store.pool_functions import BucketKeys, Call


class BucketShards:
    """Open shards: the first generation when somebody asks, the next when a holder reports the present one as lost."""

    def __init__(self) -> None:
        self._generations: dict[tuple[UUID, str], int] = {}

    async def load(self, pool: Pool) -> None:
        """Read the shards that are open, for `speed_calls` after a restart."""
        async with connection(pool) as conn:
            rows = await conn.fetch(sql("limits.open_shards"))
        self._generations.update({(row["tenant_id"], row["limit_name"]): row["generation"] for row in rows})

    async def open(
        self, conn: Connection, asks: Sequence[tuple[UUID, str, Ask]], *, clock: ClockReading, timeline: int
    ) -> list[Call]:
        """Open what is not open, and the next generation of what is reported as lost; gives the calls for Redis.

        A report about an older generation changes nothing. Redis out of reach is no loss: buckets come back with it.
        """
        if not asks:
            return []
        keys = sorted({(tenant_id, limit) for tenant_id, limit, _ in asks})
        rows = await conn.fetch(sql("limits.lock_shards"), [key[0] for key in keys], [key[1] for key in keys])
        before = {(row["tenant_id"], row["limit_name"]): row["generation"] for row in rows}
        after = dict(before)
        for tenant_id, limit, ask in asks:
            lost = ask.fault not in (None, PoolFault.UNREACHABLE)
            if before[tenant_id, limit] == 0 or (lost and ask.generation_seen == before[tenant_id, limit]):
                after[tenant_id, limit] = max(before[tenant_id, limit], timeline << GENERATION_BITS) + 1
        changed = [key for key in keys if after[key] != before[key]]
        if changed:
            await conn.execute(
                sql("limits.update_shards"),
                [key[0] for key in changed],
                [key[1] for key in changed],
                [after[key] for key in changed],
                clock.now_us,
            )
        self._generations.update(after)
        return [
            open_bucket_call(
                bucket_keys(*key),
                generation=after[key],
                opened_at_us=clock.now_us,
                speed_milli=clock.speed_milli,
                first=before[key] == 0,
            )
            for key in changed
        ]

    def place(self, tenant_id: UUID, limit: str) -> tuple[int, BucketKeys]:
        """Give a shard's generation and names."""
        return self._generations[tenant_id, limit], bucket_keys(tenant_id, limit)

    def speed_calls(self, reading: ClockReading) -> list[Call]:
        """Give the calls that tell every open shard how ledger time runs now."""
        return [
            bucket_speed_call(
                bucket_keys(*key), generation=generation, speed_milli=reading.speed_milli, now_us=reading.now_us
            )
            for key, generation in self._generations.items()
            if generation
        ]
