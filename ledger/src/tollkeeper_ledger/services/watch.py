"""Watch streams: who follows which tenants, and what each stream still has to be sent.

Nothing here waits for a stream. Each has a bounded queue; one that doesn't read is ended, and its sidecar comes back
with what it last had.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tollkeeper_ledger.services.notices import UNITS_CHANNEL, Notice, read_notices

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.domain.pseudonyms import PseudonymKey
    from tollkeeper_ledger.services.tenant_directory import TenantDirectory
    from tollkeeper_ledger.store.clock import ClockReading
    from tollkeeper_ledger.store.listener import Listener
    from tollkeeper_ledger.store.settlements import Settled
    from tollkeeper_ledger.store.tenants import MeterView, TenantView

HEARTBEAT_S = 0.04
QUEUE_MAX = 50_000
TENANTS_MAX = 50_000
UNKNOWN_FOLLOWED_MAX = 4_096
"""Names of tenants that don't exist whose creation a stream would be told of: the latest so many."""
_CLOCK_APPLIED_S_MAX = 1.0


@dataclass(frozen=True, slots=True)
class Meters:
    """Every meter."""

    meters: tuple[MeterView, ...]


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant, new or changed."""

    view: TenantView


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of tenants' pseudonyms, by wire id."""

    keys: tuple[tuple[str, PseudonymKey], ...]


@dataclass(frozen=True, slots=True)
class Unknown:
    """No such tenant."""

    wire_id: str


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Tenants that have not changed since the stream's resume point."""

    wire_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Units:
    """Units may be there again, or leases should come back."""

    tenant: str
    notice: Notice


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock was set; what it says is read when this is sent."""


@dataclass(frozen=True, slots=True)
class Beat:
    """The connection is alive; the time is read when this is sent."""

    change: int
    """Every change up to this one was queued before: a stream that resumes here has missed nothing."""


@dataclass(frozen=True, slots=True)
class Settlements:
    """Reservations of the stream's home ended elsewhere."""

    settled: tuple[Settled, ...]


@dataclass(frozen=True, slots=True)
class Witnessed:
    """What Postgres had committed, as sidecars keep it."""

    timeline: int
    value: bytes


@dataclass(frozen=True, slots=True)
class CacheOrder:
    """What an operator wants the sidecar to do with what it has leased."""

    order_id: bytes
    action: str
    """`warm` or `invalidate`."""
    tenant: str
    """Empty = all."""


Event: TypeAlias = (
    Meters | Tenant | Keys | Unknown | Confirmed | Units | Clock | Beat | Settlements | Witnessed | CacheOrder
)

_CLOCK = Clock()


class Stream:
    """One watch stream: what it follows, what it was sent, what waits. Used by one event loop only."""

    def __init__(self, holder: bytes = b"") -> None:
        self.holder = holder
        self.follows: set[str] = set()
        self.ended = False
        self._sent: dict[str, int] = {}
        self._keys_sent: dict[str, PseudonymKey] = {}
        self._unknown: dict[str, None] = {}
        self._orders: dict[bytes, asyncio.Future[int]] = {}
        self._queue: deque[Event] = deque()
        self._waiting = asyncio.Event()
        self._beating = False
        self._clock_applied = 0
        self._clock_changed = asyncio.Event()

    def put(self, event: Event) -> None:
        """Queue an event; ends the stream instead where too much is waiting."""
        if len(self._queue) >= QUEUE_MAX:
            self.end()
            return
        self._queue.append(event)
        self._waiting.set()

    def put_tenant(self, view: TenantView, *, resume_change: int = 0) -> bool:
        """Queue a tenant unless the stream has this or a later state of it; gives whether it had to be sent.

        False means that the sidecar has it from before, as of `resume_change`.
        """
        before = self._sent.get(view.wire_id, -1)
        if view.change <= before:
            return True
        self._sent[view.wire_id] = view.change
        if before < 0 and 0 < view.change <= resume_change:
            return False
        self.put(Tenant(view))
        return True

    def put_keys(self, keys: Mapping[str, PseudonymKey]) -> None:
        """Queue keys of tenants' pseudonyms that the stream has not been sent; to be called before their tenants."""
        new = {wire_id: key for wire_id, key in keys.items() if self._keys_sent.get(wire_id) != key}
        if new:
            self._keys_sent.update(new)
            self.put(Keys(tuple(new.items())))

    def put_anew(self, view: TenantView) -> None:
        """Queue a tenant that the stream follows, although nothing may have changed."""
        if view.wire_id in self.follows:
            self._sent.pop(view.wire_id, None)
            self.put_tenant(view)

    def put_unknown(self, wire_id: str) -> None:
        """Say that a tenant doesn't exist. Of all such names the latest are followed on: anybody can make some up."""
        self._unknown[wire_id] = None
        if len(self._unknown) > UNKNOWN_FOLLOWED_MAX:
            oldest = next(iter(self._unknown))
            del self._unknown[oldest]
            if oldest not in self._sent:
                self.follows.discard(oldest)
        self.put(Unknown(wire_id))

    def forget(self, wire_ids: Iterable[str]) -> None:
        """Stop following tenants."""
        for wire_id in wire_ids:
            self.follows.discard(wire_id)
            self._sent.pop(wire_id, None)
            self._keys_sent.pop(wire_id, None)
            self._unknown.pop(wire_id, None)

    def order(self, order: CacheOrder) -> asyncio.Future[int]:
        """Queue an operator's order; gives what will be the number of keys that it touched, cancelled where it ends."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self.ended:
            done.cancel()
        else:
            self._orders[order.order_id] = done
            self.put(order)
        return done

    def order_done(self, order_id: bytes, keys: int) -> None:
        """Take in that the sidecar carried out an order; a repeat or an unknown one changes nothing."""
        done = self._orders.pop(order_id, None)
        if done is not None and not done.done():
            done.set_result(keys)

    def beat(self, change: int) -> None:
        """Queue a heartbeat unless the last one still waits; all up to this change has been queued."""
        if not self._beating:
            self._beating = True
            self.put(Beat(change))

    def end(self) -> None:
        """End the stream; what waits is not sent."""
        self.ended = True
        for done in self._orders.values():
            done.cancel()
        self._orders.clear()
        self._waiting.set()
        self._clock_changed.set()

    def applied(self, clock_version: int) -> None:
        """Note that the sidecar runs on this clock setting."""
        self._clock_applied = max(self._clock_applied, clock_version)
        self._clock_changed.set()

    def lags(self, clock_version: int) -> bool:
        """Whether the sidecar has not said that it runs on this clock setting."""
        return self._clock_applied < clock_version

    async def wait_for_clock(self, version: int) -> None:
        """Wait until the sidecar runs on this clock setting or the stream has ended."""
        while self._clock_applied < version and not self.ended:
            self._clock_changed.clear()
            await self._clock_changed.wait()

    async def next(self) -> list[Event]:
        """Wait for events and take all that wait; empty = the stream has ended."""
        while not self._queue and not self.ended:
            self._waiting.clear()
            await self._waiting.wait()
        if self.ended:
            return []
        events = list(self._queue)
        self._queue.clear()
        self._beating = False
        return events


class WatchHub:
    """Every watch stream of this replica."""

    def __init__(self, tenants: TenantDirectory, listener: Listener, log: FilteringBoundLogger) -> None:
        self._tenants = tenants
        self._log = log
        self._streams: set[Stream] = set()
        tenants.follow(self._changed, self._meters_changed)
        listener.on(UNITS_CHANNEL, self._noticed)

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, holder: bytes = b"") -> Stream:
        """Begin a stream; it gets meters at once, and tenants when it follows some."""
        stream = Stream(holder)
        stream.put(Meters(self._tenants.meters))
        self._streams.add(stream)
        return stream

    def close(self, stream: Stream) -> None:
        """Forget a stream."""
        stream.end()
        self._streams.discard(stream)

    def close_all(self) -> None:
        """End every stream, so that sidecars look for another replica at once."""
        for stream in self._streams:
            stream.end()

    async def add(self, stream: Stream, wire_ids: Collection[str], *, resume_change: int = 0) -> None:
        """Follow tenants and their ancestors: each is sent whole, confirmed, or said to be unknown.

        Followed before they are read, so that a change in between is sent too; an older state never follows a newer.
        """
        stream.follows.update(wire_ids)
        if resume_change:
            await self._tenants.catch_up()
        if resume_change > self._tenants.change:
            resume_change = 0
        views = await self._tenants.with_ancestors(wire_ids)
        stream.follows.update(views)
        if self._tenants.hides:
            await self._tenants.pseudonym_keys(views.values())
        stream.put_keys(self._keys_of(views.values()))
        confirmed = [
            view.wire_id for view in views.values() if not stream.put_tenant(view, resume_change=resume_change)
        ]
        if confirmed:
            stream.put(Confirmed(tuple(confirmed)))
        for wire_id in wire_ids:
            if wire_id not in views:
                stream.put_unknown(wire_id)
        names = {view.tenant_id: view.wire_id for view in views.values()}
        for (tenant_id, limit, key_hash), window_id in await self._tenants.replaced_windows(names):
            notice = Notice(tenant_id=tenant_id, limit=limit, key_hash=key_hash, replaced=window_id)
            stream.put(Units(names[tenant_id], notice))

    def _keys_of(self, views: Iterable[TenantView]) -> dict[str, PseudonymKey]:
        """Give the newest keys of these tenants that this replica has heard of."""
        known = ((view.wire_id, self._tenants.pseudonym_key(view)) for view in views)
        return {wire_id: key for wire_id, key in known if key is not None}

    async def beat(self) -> None:
        """Send heartbeats until cancelled, evenly: the time that sending takes is part of the interval."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + HEARTBEAT_S, loop.time())
            await asyncio.sleep(due - loop.time())
            for stream in self._streams:
                stream.beat(self._tenants.change)

    def show_witness(self, timeline: int, value: bytes) -> None:
        """Send the newest witness to every stream."""
        for stream in self._streams:
            stream.put(Witnessed(timeline, value))

    async def send_order(self, order: CacheOrder) -> list[asyncio.Future[int]]:
        """Send an order to every stream, for `invalidate` after the limits that it follows as Postgres has them now."""
        if order.action == "invalidate":
            views = await self._tenants.read_again([order.tenant] if order.tenant else None)
            for stream in self._streams:
                for view in views:
                    stream.put_anew(view)
        return [stream.order(order) for stream in self._streams]

    async def clock_set(self, reading: ClockReading) -> None:
        """Send the new clock setting to every stream and wait until each sidecar runs on it.

        A sidecar that doesn't say so within a second is cut off: it gets the clock when it comes back.
        """
        streams = list(self._streams)
        for stream in streams:
            stream.put(_CLOCK)
        if not streams:
            return
        try:
            async with asyncio.timeout(_CLOCK_APPLIED_S_MAX):
                for stream in streams:
                    await stream.wait_for_clock(reading.version)
        except TimeoutError:
            self._log.warning("a sidecar did not take the clock", version=reading.version)
            for stream in streams:
                if stream.lags(reading.version):
                    stream.end()

    def _changed(self, views: Collection[TenantView]) -> None:
        for stream in self._streams:
            for view in views:
                if view.wire_id in stream.follows:
                    stream.put_keys(self._keys_of([view]))
                    stream.put_tenant(view)
                    self._follow_ancestors(stream, view)

    def _follow_ancestors(self, stream: Stream, view: TenantView) -> None:
        """Follow a new parent and its own; a change loads them along with its tenant, so they are in memory."""
        while view.parent and view.parent not in stream.follows:
            parent = self._tenants.known(view.parent)
            if parent is None:
                return
            stream.follows.add(parent.wire_id)
            stream.put_keys(self._keys_of([parent]))
            stream.put_tenant(parent)
            view = parent

    def _meters_changed(self, meters: tuple[MeterView, ...]) -> None:
        for stream in self._streams:
            followed = (self._tenants.known(wire_id) for wire_id in stream.follows)
            stream.put_keys(self._keys_of([view for view in followed if view is not None]))
            stream.put(Meters(meters))

    def _noticed(self, text: str) -> None:
        for notice in read_notices(text):
            wire_id = self._tenants.wire_id_of(notice.tenant_id)
            if wire_id is None:
                continue
            for stream in self._streams:
                if wire_id in stream.follows and not (notice.lacking and notice.lacking == stream.holder):
                    stream.put(Units(wire_id, notice))
