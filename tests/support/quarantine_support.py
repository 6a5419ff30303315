"""Records of quarantine, released and discarded as the ledger does it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Protocol

from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.services.usage_quarantine import Asked, Ended, discard_records, release_records
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.usage_quarantine import RefusedKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.services.usage import UsageIngest
    from tollkeeper_ledger.store.pool import Connection
    from usage_support import Log

    class Bench(Protocol):
        """What has an ingest."""

        @property
        def ingest(self) -> UsageIngest:
            """Give it."""
            ...


RELEASER = uuid.UUID(int=23)


def keys_of(log: Log, *seqs: int) -> list[RefusedKey]:
    """Name records of a log."""
    return [RefusedKey(log.producer_id, seq) for seq in seqs]


async def act_of(conn: Connection) -> Act:
    """Give who does it now."""
    return Act(actor="ann", request_id=str(uuid.uuid4()), now=await ledger_now(conn))


async def release(bench: Bench, keys: Sequence[RefusedKey], *, tenant: str = "") -> list[Ended]:
    """Release records as the ledger does."""

    async def work(conn: Connection) -> list[Ended]:
        async with conn.transaction():
            asked = Asked(keys, tenant, "mended")
            return await release_records(conn, bench.ingest, RELEASER, asked, await act_of(conn))

    return await bench.ingest.attempted(work)


async def discard(bench: Bench, keys: Sequence[RefusedKey], *, tenant: str = "") -> list[Ended]:
    """Discard records as the ledger does."""

    async def work(conn: Connection) -> list[Ended]:
        async with conn.transaction():
            return await discard_records(conn, Asked(keys, tenant, "never happened"), await act_of(conn))

    return await bench.ingest.attempted(work)
