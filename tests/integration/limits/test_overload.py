"""More asks than a ledger takes in."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from limits_support import new_key
from tollkeeper_ledger.domain.errors import OverloadedError
from tollkeeper_ledger.domain.window_state import Ask, Refused
from tollkeeper_ledger.services.allot import REQUEST_ENTRIES_MAX, WAITING_ENTRIES_MAX
from tollkeeper_ledger.services.entries import Entry, FromWindow
from tollkeeper_ledger.services.limits import open_limits

if TYPE_CHECKING:
    from limits_support import Serving

ASK = Entry("nobody", "large", b"", (), 0, Ask(holder=bytes(16), request_seq=1, need=1, want=1))


async def test_asks_beyond_the_bound_are_refused_by_type_and_nothing_else_suffers(serving: Serving) -> None:
    """Beyond 40,000 waiting asks a call is told when to come again; those before it, and itself then, are answered."""
    allot = (await open_limits(serving.ledger.resources)).allot
    full = [asyncio.ensure_future(allot.allot([ASK] * REQUEST_ENTRIES_MAX)) for _ in range(4)]
    await asyncio.sleep(0)
    assert sum(REQUEST_ENTRIES_MAX for _ in full) == WAITING_ENTRIES_MAX
    with pytest.raises(OverloadedError) as refused:
        await allot.allot([ASK])
    assert refused.value.retry_after_ms == 50
    working = asyncio.ensure_future(allot.run())
    try:
        answers = [one for many in await asyncio.gather(*full) for one in many]
        assert len(answers) == WAITING_ENTRIES_MAX
        (later,) = await allot.allot([ASK])
    finally:
        working.cancel()
    reasons = {one.reason if isinstance(one, Refused) else "given" for one in [*answers, later]}
    assert reasons == {"TENANT_UNKNOWN"}


async def test_asks_of_callers_that_are_gone_are_not_served(serving: Serving) -> None:
    """A ledger that is behind works for those who still wait: what it leased to the others would lie unused."""
    allot = (await open_limits(serving.ledger.resources)).allot
    at_us = time.time_ns() // 1_000
    wanted, alone = (
        Entry("acme", "large", new_key(), (), at_us, Ask(holder=bytes(16), request_seq=1, need=1, want=1))
        for _ in range(2)
    )
    other = replace(wanted, ask=replace(wanted.ask, holder=bytes([1] * 16)))
    gone, waiting = (asyncio.ensure_future(allot.allot([ask])) for ask in (other, wanted))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    working = asyncio.ensure_future(allot.run())
    try:
        (first,) = await waiting
        (control,) = await allot.allot([alone])
    finally:
        working.cancel()
    assert isinstance(first, FromWindow)
    assert isinstance(control, FromWindow)
    assert control.window.allotted == first.window.allotted > 0
