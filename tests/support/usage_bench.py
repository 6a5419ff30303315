"""A real Postgres with tenants and meters, and an ingest on it."""

from __future__ import annotations

import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.services.usage import UsageIngest
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import SEARCH_PATH, open_pool
from usage_support import Log, Use

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tollkeeper_ledger.store.pool import Connection, Pool

METERS = ("context_tokens", "generated_tokens", "requests")
TENANTS = ("acme", "globex")
HOLDER = b"holder-1"


@dataclass(frozen=True, slots=True)
class Bench:
    """A database with tenants and meters, and what tests do to it."""

    url: str
    pool: Pool
    ingest: UsageIngest
    now_us: int
    tenants: dict[str, uuid.UUID]
    meters: dict[str, int]

    async def new_log(self) -> Log:
        """Give the log of a producer that was opened."""
        log = Log(producer_id=uuid.uuid4())
        await self.ingest.open_producer(log.producer_id, incarnation=1, holder=HOLDER, version=1)
        return log

    def use(self, name: str, **changes: Any) -> Use:
        """Give a record of now."""
        given: dict[str, Any] = {"event_us": self.now_us, "received_us": self.now_us, **changes}
        return Use(id=name, **given)

    async def rows(self, statement: str, *arguments: object) -> list[Any]:
        """Read as the owner of the database, past row-level security."""
        async with superuser(self.url) as conn:
            found: list[Any] = await conn.fetch(statement, *arguments)
        return found

    async def stored(self, log: Log) -> list[tuple[int, str]]:
        """Give (seq, id) of the records stored from a producer, by seq."""
        rows = await self.rows(
            "SELECT seq, id FROM usage_record JOIN usage_chain USING (batch_id) WHERE producer_id = $1 ORDER BY seq",
            log.producer_id,
        )
        return [(row["seq"], row["id"]) for row in rows]


@asynccontextmanager
async def superuser(url: str) -> AsyncIterator[Connection]:
    """Connect as the user who owns the server: row-level security does not apply."""
    conn = await asyncpg.connect(url, server_settings={"search_path": SEARCH_PATH, "timezone": "UTC"})
    try:
        yield conn
    finally:
        await conn.close()


async def add_catalogue(conn: Connection, tenants: tuple[str, ...], meters: tuple[str, ...]) -> None:
    """Declare a seller, tenants and meters, without subscriptions."""
    await conn.execute(
        "INSERT INTO seller VALUES ('seller', 'Seller', '{}', '', '', '', '', '', 'S', 'EUR', 'UTC')"
        " ON CONFLICT DO NOTHING"
    )
    for name in meters:
        await conn.execute(
            "INSERT INTO meter (seller_id, name, unit, aggregation, scale, attributes, pseudonymised)"
            " VALUES ('seller', $1, 'tokens', 'sum', 0, '{}', '{}') ON CONFLICT DO NOTHING",
            name,
        )
    for wire_id in tenants:
        await conn.execute(
            "INSERT INTO tenant (tenant_id, seller_id, wire_id, display_name, address, tax_id, state, created_at)"
            " VALUES ($1, 'seller', $2, $2, '{}', '', 'active', now()) ON CONFLICT DO NOTHING",
            uuid.uuid4(),
            wire_id,
        )


@asynccontextmanager
async def open_bench(url: str) -> AsyncIterator[Bench]:
    """Declare the catalogue in a database with the schema and open an ingest on it."""
    async with superuser(url) as conn:
        await add_catalogue(conn, TENANTS, METERS)
        tenants = {row["wire_id"]: row["tenant_id"] for row in await conn.fetch("SELECT * FROM tenant")}
        meters = {row["name"]: row["meter_id"] for row in await conn.fetch("SELECT * FROM meter")}
        now_us = to_us(await ledger_now(conn))
    pool = await open_pool(url, role="tollkeeper_ingest", size=4)
    try:
        ingest = UsageIngest(pool, embedded=True)
        yield Bench(url=url, pool=pool, ingest=ingest, now_us=now_us, tenants=tenants, meters=meters)
    finally:
        pool.terminate()
