"""Notice that Postgres was set back, before anything is issued from it."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, TypeVar

from tollkeeper_ledger.domain.issuing import (
    LEARNING_S,
    NO_WITNESS,
    VALUE_BYTES,
    Issuing,
    Witness,
    frozen_before_us,
    learning_until_us,
    witness_from,
)
from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.store import witnesses
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.clock import read_clock
from tollkeeper_ledger.store.learning import forget_ended
from tollkeeper_ledger.store.pool import connection, transaction
from tollkeeper_ledger.store.pool_functions import show_witness_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.store.pool import Connection, Pool
    from tollkeeper_ledger.store.pool_functions import PoolFunctions

_TICKS_PER_FORGETTING = 60

Result = TypeVar("Result")


class SetBackError(Exception):
    """Postgres lacks a witness that it had committed: the transaction must not issue. Internal, never answered."""


class Restores:
    """Commit witnesses, show them, and compare what comes back with what Postgres knows.

    Every transaction that issues looks for the newest witness that this replica has seen, whether it committed it
    itself, Redis keeps it, or a sidecar showed it: on a Postgres that lacks it nothing is issued. A set-back of less
    than that goes unseen only where nothing was issued in between.
    """

    def __init__(
        self,
        pool: Pool,
        functions: PoolFunctions,
        log: FilteringBoundLogger,
        *,
        installation_id: bytes,
        timeline: int,
        learning_s: int = LEARNING_S,
    ) -> None:
        self._pool = pool
        self._functions = functions
        self._log = log
        self._installation_id = installation_id
        self._timeline = timeline
        self._learning_s = learning_s
        self._newest = NO_WITNESS
        self._committed = NO_WITNESS
        self._ticks = 0
        self._noticing = asyncio.Lock()
        self._set_back: list[Callable[[], None]] = []
        self._shown: list[Callable[[int, bytes], None]] = []

    @property
    def timeline(self) -> int:
        """Times that Postgres has been restored, plus 1, as last read."""
        return self._timeline

    @property
    def shown(self) -> tuple[int, bytes]:
        """Timeline and value of the newest witness that this replica committed, as sidecars keep it."""
        return self._committed.timeline, self._committed.shown(self._installation_id)

    def follow(
        self, *, set_back: Callable[[], None] | None = None, shown: Callable[[int, bytes], None] | None = None
    ) -> None:
        """Call `set_back` when Postgres went back, `shown` with each second's witness. Must not block."""
        self._set_back += [set_back] if set_back else []
        self._shown += [shown] if shown else []

    async def issue(self, conn: Connection) -> tuple[Witness, Issuing]:
        """Begin to issue in this transaction: its witness, to be told to `committed` afterwards, and what may be.

        Raises SetBackError: Postgres went back; roll back, await `notice`, and begin anew.
        """
        found = await witnesses.commit_witness(conn, value=secrets.token_bytes(VALUE_BYTES), newest=self._newest)
        if not found.is_known:
            raise SetBackError(f"Postgres lacks witness {self._newest.number} of timeline {self._newest.timeline}")
        return found.witness, found.issuing

    async def noticed(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """Await a transaction that begins with `issue`, and anew in the next timeline where Postgres went back."""
        try:
            return await attempt()
        except SetBackError:
            await self.notice()
        return await attempt()

    def committed(self, witness: Witness) -> None:
        """Note a witness whose transaction has committed."""
        self._newest = max(self._newest, witness)
        self._committed = max(self._committed, witness)
        self._timeline = max(self._timeline, witness.timeline)

    async def heard(self, timeline: int, value: bytes) -> None:
        """Take in the witness that a sidecar shows; a set-back that it proves is acted on before this returns."""
        witness = witness_from(self._installation_id, timeline, value)
        if witness is not None and witness > self._newest:
            self._newest = witness
            await self.tick()

    async def tick(self) -> None:
        """Commit a witness, show it to Redis and to sidecars, and look at the one that Redis had kept."""
        witness = await self._commit()
        kept = await self._show(witness)
        if kept > self._newest:
            self._newest = kept
            witness = await self._commit()
            await self._show(witness)
        for told in self._shown:
            told(*self.shown)
        self._ticks += 1
        if self._ticks % _TICKS_PER_FORGETTING == 0:
            async with connection(self._pool) as conn:
                await witnesses.forget_witnesses(conn)

    async def _commit(self) -> Witness:
        return await self.noticed(self._commit_once)

    async def _commit_once(self) -> Witness:
        async with transaction(self._pool) as conn:
            witness, _ = await self.issue(conn)
        self.committed(witness)
        return witness

    async def _show(self, witness: Witness) -> Witness:
        """Show Redis a witness; gives the one that it kept before."""
        call = show_witness_call(
            self._installation_id, timeline=witness.timeline, number=witness.number, value=witness.value
        )
        (reply,) = await self._functions.call([call])
        if reply is None or reply[0] != "OK" or not reply[3]:
            return NO_WITNESS
        return Witness(timeline=int(reply[1]), number=int(reply[2]), value=bytes.fromhex(reply[3]))

    async def notice(self) -> None:
        """Begin the next timeline, unless another replica has, and freeze what was open. Postgres went back."""
        async with self._noticing:
            seen = self._newest
            async with transaction(self._pool) as conn:
                before, _ = await witnesses.lock_timeline(conn)
                if (await witnesses.commit_witness(conn, value=secrets.token_bytes(VALUE_BYTES), newest=seen)).is_known:
                    return
                timeline = max(before, seen.timeline) + 1
                clock = await read_clock(conn)
                now_us = clock.now_us
                await witnesses.begin_timeline(
                    conn,
                    timeline=timeline,
                    now_us=now_us,
                    frozen_before_us=frozen_before_us(now_us, clock.speed_milli),
                    learning_until_us=learning_until_us(now_us, clock.speed_milli, learning_s=self._learning_s),
                )
                await forget_ended(conn, now_us=now_us)
                entry = AuditEntry(
                    subject="timeline", tenant_id=None, before={"timeline": before}, after={"timeline": timeline}
                )
                await add_audit(
                    conn,
                    [entry],
                    now=from_us(now_us),
                    actor="ledger",
                    action="RestoreNoticed",
                    request_id=f"timeline/{timeline}",
                )
            self._timeline = timeline
            self._log.error(
                "Postgres was set back: windows that were open are frozen until `tollkeeper ledger confirm-restore`,"
                " but for those of limits that learn",
                timeline=timeline,
                witness=seen.number,
                of_timeline=seen.timeline,
            )
            for told in self._set_back:
                told()
