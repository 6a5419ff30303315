"""One watch stream's memory: what callers can make a sidecar ask, they can make it ask often."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, cast

from tollkeeper_ledger.rpc.watch_messages import event_to_message
from tollkeeper_ledger.services.watch import UNKNOWN_FOLLOWED_MAX, CacheOrder, Stream, Unknown
from tollkeeper_ledger.store.clock import ClockReading
from tollkeeper_ledger.store.tenants import TenantView

if TYPE_CHECKING:
    from tollkeeper_ledger.services.clock import LedgerClock


class _StandingClock:
    """A clock that stands still."""

    def reading(self) -> ClockReading:
        """Give the same moment each time."""
        return ClockReading(now_us=1, speed_milli=1000, version=1)


async def test_a_heartbeat_names_no_change_that_still_waits() -> None:
    """A stream that breaks after a heartbeat resumes at its change: all up to that was sent before it."""
    stream = Stream()
    view = TenantView(
        tenant_id=uuid.UUID(int=1),
        wire_id="acme",
        state="active",
        parent="",
        plan="",
        features=(),
        limits=(),
        schedule=None,
        change=6,
    )
    stream.beat(5)
    (beat,) = await stream.next()
    # The change comes while the heartbeat is on its way to the network.
    stream.put_tenant(view)
    message = event_to_message(beat, cast("LedgerClock", _StandingClock()))
    assert message.heartbeat.change == 5
    stream.beat(6)
    tenant, beat = [event_to_message(event, cast("LedgerClock", _StandingClock())) for event in await stream.next()]
    assert (tenant.tenant.change, beat.heartbeat.change) == (6, 6)


async def test_made_up_names_take_bounded_memory_and_end_no_stream() -> None:
    """However many names that don't exist are asked for, each is answered, and the latest few are followed on."""
    stream = Stream()
    stream.follows.add("real")
    answered = 0
    for begin in range(0, 60_000, 1_000):
        names = [f"made-up-{number}" for number in range(begin, begin + 1_000)]
        stream.follows.update(names)
        for name in names:
            stream.put_unknown(name)
        answered += sum(isinstance(event, Unknown) for event in await stream.next())
    assert answered == 60_000
    assert not stream.ended
    assert len(stream.follows) == UNKNOWN_FOLLOWED_MAX + 1
    assert {"real", "made-up-59999"} <= stream.follows


async def test_an_order_ends_with_its_stream() -> None:
    """Who waits for a sidecar that leaves hears so; a late, repeated or unknown answer changes nothing."""
    stream = Stream()
    answered, open_one = (stream.order(CacheOrder(name, "warm", "")) for name in (b"1", b"2"))
    stream.order_done(b"1", 5)
    stream.order_done(b"1", 6)
    stream.order_done(b"3", 7)
    stream.end()
    assert answered.result() == 5
    assert open_one.cancelled()
    assert stream.order(CacheOrder(b"4", "warm", "")).cancelled()
