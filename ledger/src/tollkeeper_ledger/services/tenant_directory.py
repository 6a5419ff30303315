"""Tenants as this replica knows them: loaded when asked for, loaded again when a change names them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.services.pseudonyms import PseudonymKeys, hides
from tollkeeper_ledger.store.changes import CHANGE_CHANNEL
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.operators import read_replaced
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.queries import sql
from tollkeeper_ledger.store.tenants import TenantView, load_meters, load_tenants

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from uuid import UUID

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.domain.pseudonyms import PseudonymKey
    from tollkeeper_ledger.store.limits import Identity
    from tollkeeper_ledger.store.listener import Listener
    from tollkeeper_ledger.store.pool import Pool
    from tollkeeper_ledger.store.tenants import MeterView

POLL_S = 0.25
_CACHED_MAX = 200_000


class TenantDirectory:
    """Answer what a tenant is, from memory where possible, at most one notification behind Postgres.

    A view may be stale by the time of one notification (milliseconds) or, where that is lost, one poll. Whatever must
    not be stale (amounts, in Allot) is read in the deciding transaction.
    """

    def __init__(self, pool: Pool, listener: Listener, log: FilteringBoundLogger) -> None:
        self._pool = pool
        self._log = log
        self._by_wire_id: dict[str, TenantView] = {}
        self._wire_ids: dict[UUID, str] = {}
        self._loading: dict[str, asyncio.Future[None]] = {}
        self._change = -1
        self._meters: tuple[MeterView, ...] = ()
        self._value_meters: frozenset[str] = frozenset()
        self._pseudonyms = PseudonymKeys(pool)
        self._hides = False
        self._has_keys = False
        """The keys of all tenants in memory were read since a meter hides something."""
        self._catching_up = asyncio.Lock()
        self._news = asyncio.Event()
        self._followers: list[Callable[[list[TenantView]], None]] = []
        self._meter_followers: list[Callable[[tuple[MeterView, ...]], None]] = []
        listener.on(CHANGE_CHANNEL, lambda _: self._news.set())
        listener.on_connected(self._news.set)

    @property
    def change(self) -> int:
        """The number of the last change that this replica has taken in."""
        return max(0, self._change)

    @property
    def meters(self) -> tuple[MeterView, ...]:
        """Every meter."""
        return self._meters

    def counts_values(self, meter: str) -> bool:
        """Say whether a meter counts distinct values."""
        return meter in self._value_meters

    def follow(
        self, tenants: Callable[[list[TenantView]], None], meters: Callable[[tuple[MeterView, ...]], None]
    ) -> None:
        """Call `tenants` with tenants that changed, and `meters` with all meters when one was added. Must not block."""
        self._followers.append(tenants)
        self._meter_followers.append(meters)

    def known(self, wire_id: str) -> TenantView | None:
        """Give a tenant from memory."""
        return self._by_wire_id.get(wire_id)

    def wire_id_of(self, tenant_id: UUID) -> str | None:
        """Give the wire id of a tenant that this replica has loaded."""
        return self._wire_ids.get(tenant_id)

    def pseudonym_key(self, view: TenantView) -> PseudonymKey | None:
        """Give the key of a tenant's pseudonyms from memory; None where no meter hides anything."""
        return self._pseudonyms.known(view.tenant_id) if self._hides else None

    @property
    def hides(self) -> bool:
        """Whether a meter hides an attribute."""
        return self._hides

    async def pseudonym_keys(self, views: Collection[TenantView]) -> dict[str, PseudonymKey]:
        """Give the keys of tenants' pseudonyms by wire id, made where there are none.

        Also where no meter hides anything any more: who asks has meters of a moment before.
        """
        keys = await self._pseudonyms.get([view.tenant_id for view in views])
        return {view.wire_id: keys[view.tenant_id] for view in views}

    async def get(self, wire_ids: Iterable[str]) -> dict[str, TenantView]:
        """Give the named tenants; unknown names are left out."""
        names = set(wire_ids)
        missing = [name for name in names if name not in self._by_wire_id]
        if missing:
            await self._load(missing)
        return {name: view for name in names if (view := self._by_wire_id.get(name)) is not None}

    async def by_id(self, tenant_ids: Collection[UUID]) -> dict[UUID, TenantView]:
        """Give tenants by their internal ids; those that are not in memory are read now."""
        missing = [tenant_id for tenant_id in tenant_ids if tenant_id not in self._wire_ids]
        if missing:
            self._keep(await self._read(tenant_ids=missing))
        names = {wire_id for tenant_id in tenant_ids if (wire_id := self._wire_ids.get(tenant_id)) is not None}
        views = await self.get(names)
        return {view.tenant_id: view for view in views.values()}

    async def replaced_windows(self, tenant_ids: Collection[UUID]) -> list[tuple[Identity, bytes]]:
        """Read rounds that have ended of tenants' windows that are not over, for who may have missed the notice."""
        async with connection(self._pool) as conn:
            now_us = to_us(await ledger_now(conn))
            return await read_replaced(conn, tenant_ids, now_us=now_us)

    async def with_ancestors(self, wire_ids: Iterable[str]) -> dict[str, TenantView]:
        """Give the named tenants and all their ancestors; unknown names are left out."""
        found: dict[str, TenantView] = {}
        wanted = set(wire_ids)
        while wanted:
            views = await self.get(wanted)
            found.update(views)
            wanted = {view.parent for view in views.values() if view.parent} - found.keys()
        return found

    async def read_again(self, wire_ids: Iterable[str] | None) -> list[TenantView]:
        """Read tenants and their ancestors from Postgres whatever is in memory; None = all that are in memory."""
        await self.catch_up()
        names = set(self._by_wire_id) if wire_ids is None else set(await self.with_ancestors(wire_ids))
        views = await self._read(wire_ids=names) if names else []
        self._keep(views)
        return views

    async def _load(self, names: list[str]) -> None:
        """Load names once, however many ask at the same time."""
        mine = [name for name in names if name not in self._loading]
        others = {id(future): future for name in names if (future := self._loading.get(name)) is not None}
        if mine:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._loading.update(dict.fromkeys(mine, done))
            try:
                views = await self._read(wire_ids=mine)
                if self._hides:
                    await self._pseudonyms.get([view.tenant_id for view in views])
                self._keep(views)
            finally:
                for name in mine:
                    del self._loading[name]
                done.set_result(None)
        for future in others.values():
            await future

    async def _read(self, *, wire_ids: Collection[str] = (), tenant_ids: Collection[UUID] = ()) -> list[TenantView]:
        async with connection(self._pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            return await load_tenants(conn, wire_ids=wire_ids, tenant_ids=tenant_ids)

    def _keep(self, views: Collection[TenantView]) -> None:
        for view in views:
            before = self._by_wire_id.pop(view.wire_id, None)
            self._by_wire_id[view.wire_id] = before if before is not None and before.change > view.change else view
            self._wire_ids[view.tenant_id] = view.wire_id
        while len(self._by_wire_id) > _CACHED_MAX:
            oldest = self._by_wire_id.pop(next(iter(self._by_wire_id)))
            self._wire_ids.pop(oldest.tenant_id, None)

    async def run(self) -> None:
        """Take in changes as they are announced, or found by polling, until cancelled."""
        while True:
            self._news.clear()
            try:
                await self.catch_up()
            except Exception as error:  # noqa: BLE001 - a loop's top: the next turn may succeed
                self._log.warning("changes can't be read", error=str(error), kind=type(error).__name__)
            try:
                async with asyncio.timeout(POLL_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def catch_up(self) -> None:
        """Take in every change committed before the call, and tell followers."""
        async with self._catching_up:
            await self._catch_up()

    async def _catch_up(self) -> None:
        async with connection(self._pool) as conn:
            last: int = await conn.fetchval(sql("installation.last_change"))
            if last == self._change:
                return
            changed: set[UUID] = set()
            if 0 <= self._change < last:
                rows = await conn.fetch(sql("installation.changes_after"), self._change, last)
                changed = {row["tenant_id"] for row in rows}
            elif self._change > last:
                self._log.error("change numbers went back; forgetting what was known", known=self._change, now=last)
                changed = {view.tenant_id for view in self._by_wire_id.values()}
                self._by_wire_id.clear()
                self._wire_ids.clear()
                self._pseudonyms.clear()
            meters = await load_meters(conn)
        views = await self._read(tenant_ids=changed) if changed else []
        await self._read_keys(views, hidden=hides(meters))
        self._keep(views)
        self._change = last
        for told in self._followers:
            told(views)
        if meters != self._meters:
            self._meters = meters
            self._value_meters = frozenset(meter.name for meter in meters if meter.value_attribute)
            for told_meters in self._meter_followers:
                told_meters(meters)

    async def _read_keys(self, changed: Collection[TenantView], *, hidden: bool) -> None:
        """Read the keys of tenants that changed; of all in memory where a meter begins to hide something."""
        # First, so that whoever loads a tenant meanwhile reads its key.
        self._hides = hidden
        if not hidden:
            self._has_keys = False
            return
        tenant_ids = {view.tenant_id for view in changed}
        if not self._has_keys:
            tenant_ids |= {view.tenant_id for view in self._by_wire_id.values()}
        await self._pseudonyms.read(tenant_ids)
        self._has_keys = True
