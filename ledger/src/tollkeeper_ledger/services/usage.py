"""Commit usage exactly once: announce producers, append their batches.

Nothing here trusts a producer's word for what was committed: the producer's row says it, under a lock, and the hash
over its history must agree. A record is stored with its id, its sum and its link of the chain in one transaction, or
not at all.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.domain.usage import (
    CLOCK_AHEAD_MAX_US,
    FORMAT,
    LATENESS_MAX_US,
    SHIPPING_MAX_US,
    ProducerPosition,
    UsageAppend,
)
from tollkeeper_ledger.domain.usage_batch import read_batch
from tollkeeper_ledger.domain.usage_columns import columns_of
from tollkeeper_ledger.domain.usage_hash import h_start
from tollkeeper_ledger.domain.usage_producer import (
    Producer,
    check_ended,
    check_format,
    check_holder,
    check_opening,
    unknown,
)
from tollkeeper_ledger.services.chain_slot import ChainSlot
from tollkeeper_ledger.services.producers import IN_FLIGHT_MAX
from tollkeeper_ledger.services.usage_append import append_batch, append_batches
from tollkeeper_ledger.services.usage_claims import Guesses
from tollkeeper_ledger.services.usage_commits import UsageCommits
from tollkeeper_ledger.services.usage_served import Served
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.standing import note_ended
from tollkeeper_ledger.store.usage_attempts import attempted
from tollkeeper_ledger.store.usage_batches import make_month
from tollkeeper_ledger.store.usage_producers import add_producer, announce_producer, lock_producer, safe_seq

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import date, datetime

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.domain.usage import AppendOutcome, UsageColumns
    from tollkeeper_ledger.domain.usage_batch import UsageBatch
    from tollkeeper_ledger.domain.usage_columns import Use
    from tollkeeper_ledger.services.restores import Restores
    from tollkeeper_ledger.services.usage_append import Result
    from tollkeeper_ledger.store.pool import Connection, Pool

SAFE_AFTER = timedelta(hours=24)
"""Age from which a commit counts as safe from a restore, where nobody has said better."""

APPEND_MAX = IN_FLIGHT_MAX - timedelta(minutes=1)
"""Bound of an append's transaction; what is left may go by until Postgres has undone it."""

_EVER_US = 2**62

Answer = TypeVar("Answer")

OWN_HOLDER = b"ledger"
"""Holder of the ledger's own producer."""


def own_producer_id(installation_id: bytes) -> UUID:
    """Give the producer under which the ledger commits records of its own."""
    return UUID(bytes=sha256(b"tollkeeper.ledger.producer.v1" + installation_id).digest()[:16])


class UsageIngest:
    """Serve producers on the pool of role `ingest`. Any number of calls at once; those of one producer queue.

    `chain`: which stream of the chain it adds to; none: the first. `restores`: looks, before levels change, whether
    Postgres was set back; None where nothing is ever leased from it.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        embedded: bool,
        chain: ChainSlot | None = None,
        restores: Restores | None = None,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self._pool = pool
        self._commits = UsageCommits(self._commit, log=log)
        self._restores = restores
        self._embedded = embedded
        self._chain = chain or ChainSlot()
        self._months: set[date] = set()
        self._served = Served()
        self._guesses = Guesses()
        if restores is not None:
            restores.follow(set_back=self._served.forget)

    async def open_producer(
        self,
        producer_id: UUID,
        *,
        incarnation: int,
        holder: bytes,
        version: int,
        ended: Sequence[bytes] = (),
        ended_seq: int = 0,
    ) -> ProducerPosition:
        """Announce a producer's process and fence every older one. Idempotent.

        `ended`: processes known to have ended, none of whose records lies beyond `ended_seq` of this log.

        Raises InvalidFieldError; PreconditionError PRODUCER_FENCED, VERSION_UNSUPPORTED.
        """
        check_format(version)
        check_opening(incarnation=incarnation, holder=holder)
        check_ended(ended, ended_seq=ended_seq)

        async def announce(conn: Connection) -> ProducerPosition:
            now = await ledger_now(conn)
            async with conn.transaction():
                fresh = Producer(producer_id, incarnation, holder, committed_seq=0, h=h_start(producer_id.bytes))
                await add_producer(conn, fresh, version=version, now=now)
                known = await lock_producer(conn, producer_id)
                if known is None:
                    raise unknown(producer_id)
                check_holder(known, incarnation=incarnation, holder=holder)
                await announce_producer(
                    conn, producer_id, incarnation=incarnation, holder=holder, version=version, now=now
                )
                if gone := [one for one in ended if one != holder]:
                    await note_ended(conn, gone, producer_id=producer_id, ended_seq=ended_seq)
                return await self._position(conn, producer_id, committed_seq=known.committed_seq, h=known.h, now=now)

        return await attempted(self._pool, announce)

    async def append(self, append: UsageAppend) -> AppendOutcome:
        """Commit a batch, deduplicated, rolled up and chained, in one transaction. Idempotent, however it is cut.

        Batches of other producers that wait at the same time share the transaction; what is wrong with one is no
        trouble of another.
        Where the database refuses a record, whatever it is, that one goes to quarantine as UNSTORABLE and all others of
        the batch are committed, in as many transactions as it takes to find it.

        A cancelled call may have committed; the producer sends again and is told. Raises InvalidFieldError for a batch
        that can't be read; PreconditionError PRODUCER_FENCED, PRODUCER_FORKED, PRODUCER_GAP, PRODUCER_UNKNOWN;
        LedgerError LEDGER_UNREACHABLE where Postgres stays away.
        """
        # In a thread, so that a large batch doesn't hold up heartbeats of this process.
        batch = await asyncio.to_thread(read_batch, append)

        return await self._commits.commit(batch)

    async def _commit(self, batches: Sequence[UsageBatch]) -> list[Result]:
        """Commit batches of different producers in one transaction; gives a result for each."""
        times = [batch.records.event_us for batch in batches if batch.records]
        edges = [edge for one in times for edge in (min(one), max(one))]

        async def commit(conn: Connection) -> list[Result]:
            now = await ledger_now(conn)
            await self.need_months(conn, edges, now)
            async with conn.transaction():
                await self._need_timeline(conn, batches)
                serving = self._served.begin()
                results = await append_batches(
                    conn,
                    batches,
                    now=now,
                    stream=self._chain.stream,
                    position=self._position,
                    serving=serving,
                    guesses=self._guesses,
                )
            serving.committed()
            return results

        return await self.attempted(commit)

    async def attempted(self, work: Callable[[Connection], Awaitable[Answer]]) -> Answer:
        """Await `work`, which appends in a transaction of its own, anew where Postgres broke it off or was set back.

        Raises LedgerError LEDGER_UNREACHABLE where Postgres stays away, or every attempt waited too long for others.
        """
        restores = self._restores

        async def bounded(conn: Connection) -> Answer:
            async with asyncio.timeout(APPEND_MAX.total_seconds()):
                return await (work(conn) if restores is None else restores.noticed(lambda: work(conn)))

        return await attempted(self._pool, bounded)

    async def _need_timeline(self, conn: Connection, batches: Sequence[UsageBatch]) -> None:
        """Look, before levels change, whether Postgres was set back. Raises SetBackError, for `attempted`."""
        if self._restores is not None and any(batch.levels for batch in batches):
            await self._restores.issue(conn)

    async def append_own(
        self, conn: Connection, producer_id: UUID, columns: UsageColumns, *, now: datetime
    ) -> AppendOutcome:
        """Commit records of the ledger's own, as a producer's batch, in the caller's transaction.

        Needs `need_months` before it, and `attempted` around it where records may change levels. The producer is closed
        after each batch, so no period waits for it.
        """
        known = await self._lock_own(conn, producer_id, now)
        return await self._append_own(conn, known, columns, now=now, own=True)

    async def append_input(self, conn: Connection, producer_id: UUID, uses: Sequence[Use]) -> AppendOutcome:
        """Commit records that callers sent to the ledger itself, in the caller's transaction, as `append_own` does.

        They count as received now.
        """
        known = await self._lock_own(conn, producer_id, await ledger_now(conn))
        # Read under the lock, so that what is committed later was received later: the watermark is true.
        now = await ledger_now(conn)
        columns = columns_of(uses, received_us=to_us(now))
        return await self._append_own(conn, known, columns, now=now, own=False)

    async def append_again(self, conn: Connection, producer_id: UUID, columns: UsageColumns) -> AppendOutcome:
        """Commit records that were refused before, in the caller's transaction, as `append_own` does.

        However long ago they were received: the caller has seen to it that their ids are still kept.
        """
        now = await ledger_now(conn)
        known = await self._lock_own(conn, producer_id, now)
        return await self._append_own(conn, known, columns, now=now, own=False, shipping_max_us=_EVER_US)

    async def lock_input(self, conn: Connection, producer_id: UUID) -> datetime:
        """Take a way in alone until the transaction ends, as `append_input` does; give the ledger time then."""
        await self._lock_own(conn, producer_id, await ledger_now(conn))
        return await ledger_now(conn)

    async def _lock_own(self, conn: Connection, producer_id: UUID, now: datetime) -> Producer:
        fresh = Producer(producer_id, 1, OWN_HOLDER, committed_seq=0, h=h_start(producer_id.bytes))
        await add_producer(conn, fresh, version=FORMAT, now=now)
        known = await lock_producer(conn, producer_id)
        if known is None:
            raise unknown(producer_id)
        return known

    async def _append_own(
        self,
        conn: Connection,
        known: Producer,
        columns: UsageColumns,
        *,
        now: datetime,
        own: bool,
        shipping_max_us: int = SHIPPING_MAX_US,
    ) -> AppendOutcome:
        append = UsageAppend(
            producer_id=known.producer_id,
            incarnation=known.incarnation,
            first_seq=known.committed_seq + 1,
            h_before=known.h,
            columns=columns,
            holes=(),
            watermark_us=0 if own else to_us(now),
            tenants_served=(),
            closing=True,
            shipping_max_us=shipping_max_us,
        )
        batch = await asyncio.to_thread(read_batch, append, own=own)
        await self._need_timeline(conn, [batch])
        # Whether the caller commits nobody knows here, so nothing is learnt of it.
        serving = self._served.begin()
        return await append_batch(
            conn, batch, now=now, stream=self._chain.stream, position=self._position, serving=serving
        )

    async def _position(
        self, conn: Connection, producer_id: UUID, *, committed_seq: int, h: bytes, now: datetime
    ) -> ProducerPosition:
        safe = committed_seq
        if not self._embedded:
            safe = min(committed_seq, await safe_seq(conn, producer_id, before=now - SAFE_AFTER))
        return ProducerPosition(committed_seq=committed_seq, h=h, safe_seq=safe)

    async def need_months(self, conn: Connection, event_us: Sequence[int], now: datetime) -> None:
        """Make the partitions that records of these times may need, before their transaction: it takes a lock."""
        if not event_us:
            return
        now_us = to_us(now)
        first = max(min(event_us), now_us - SHIPPING_MAX_US - LATENESS_MAX_US)
        last = min(max(event_us), now_us + 2 * CLOCK_AHEAD_MAX_US)
        if first > last:
            return
        month = from_us(first).date().replace(day=1)
        while month <= from_us(last).date():
            if month not in self._months:
                await make_month(conn, month)
                self._months.add(month)
            month = (month + timedelta(days=31)).replace(day=1)
