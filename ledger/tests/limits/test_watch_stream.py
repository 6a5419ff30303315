"""One watch stream's memory: what callers can make a sidecar ask, they can make it ask often."""

from __future__ import annotations

from tollkeeper_ledger.services.watch import UNKNOWN_FOLLOWED_MAX, CacheOrder, Stream, Unknown


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
