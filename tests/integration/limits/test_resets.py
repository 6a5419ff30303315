"""Resets, lowered amounts, and windows that nobody turned: what operators do, at the ledger."""

from __future__ import annotations

import itertools
import random
import secrets
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from limits_support import kind, new_key, set_amount
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc
from tollkeeper_ledger.domain.periods import from_us
from waiting import wait_until

if TYPE_CHECKING:
    from limits_support import Serving, Sidecar


def stub(serving: Serving) -> admin_pb2_grpc.AdminServiceAsyncStub:
    """Give the operators' service."""
    return admin_pb2_grpc.AdminServiceStub(serving.channel)


async def reset(serving: Serving, limit: str, *, request_id: str = "") -> admin_pb2.ResetLimitResponse:
    """Reset every key of a limit."""
    request = admin_pb2.ResetLimitRequest(request_id=request_id or secrets.token_hex(8), tenant="acme", limit=limit)
    return await stub(serving).ResetLimit(request)


async def states(serving: Serving, limit: str) -> list[admin_pb2.WindowState]:
    """List a limit's windows."""
    request = admin_pb2.ListLimitStatesRequest(page_size=1000, tenant="acme", limit=limit)
    return list((await stub(serving).ListLimitStates(request)).states)


async def lease_all(sidecar: Sidecar, limit: str, key: bytes) -> int:
    """Lease straight from the ledger, unit by unit, until nothing is given; gives the units."""
    taken = 0
    while kind(answer := await sidecar.ask(limit, key, need=1, want=1000, ledger_only=True)) == "lease":
        taken += answer.lease.give
    return taken


async def test_a_reset_gives_exactly_the_amount_again(serving: Serving) -> None:
    """The next round gives the full amount, the round before nothing more, also through its pool."""
    await set_amount(serving.channel, "acme", "small", 100)
    key = new_key()
    before = serving.sidecar()
    first = await before.ask("small", key, need=1, want=1)
    other = serving.sidecar()
    pooled = await other.ask("small", key, need=1, want=1)
    assert kind(pooled) == "pool"
    granted = await other.grant(pooled.pool, request_seq=1, need=1)
    assert granted[0] == "OK"
    assert (await reset(serving, "small")).windows >= 1
    seqs = itertools.count(2)  # a repeated seq would repeat its answer, also from a closed pool

    async def closed() -> bool:
        return (await other.grant(pooled.pool, request_seq=next(seqs), need=1))[:2] == ["ERR", "CLOSED"]

    await wait_until(closed)
    again = await lease_all(serving.sidecar(), "small", key)
    assert again == 100
    (state,) = [state for state in await states(serving, "small") if state.allotted == 100]
    assert state.round == first.window.round + 1


async def test_a_repeated_reset_is_one_reset(serving: Serving) -> None:
    """The same request_id gives the first answer and another round to nobody."""
    key = new_key()
    await serving.sidecar().ask("large", key)
    once, twice = [await reset(serving, "large", request_id="once") for _ in range(2)]
    assert once == twice
    answer = await serving.sidecar().ask("large", key)
    assert answer.window.round == 1


async def test_old_units_come_back_to_the_old_round_only(serving: Serving) -> None:
    """What a holder returns of the round before never adds to the present one."""
    key = new_key()
    holder = serving.sidecar()
    old = await holder.ask("large", key, need=100, want=100)
    await reset(serving, "large")
    await holder.give_back(old.window.window_id, 100)
    assert await lease_all(serving.sidecar(), "large", key) == 16_000


async def test_limits_without_windows_are_not_reset(serving: Serving) -> None:
    """A token bucket refills by itself, an unlimited limit has nothing to reset, an unknown one does not exist."""
    for limit, reason in (
        ("rate", "no windows"),
        ("unlimited", "unlimited"),
        ("nothing", "no such limit"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await reset(serving, limit)
        assert reason in (refused.value.details() or ""), limit


async def test_a_lowered_limit_tells_what_is_outstanding_and_since_when_not(serving: Serving) -> None:
    """Units leased above the new amount show until they are back, and then when that was."""
    await set_amount(serving.channel, "acme", "large", 16_000)
    key, holder = new_key(), serving.sidecar()
    lease = await holder.ask("large", key, need=900, want=900)

    async def mine() -> admin_pb2.WindowState:
        found = [state for state in await states(serving, "large") if state.allotted in (900, 300)]
        return found[0]

    await set_amount(serving.channel, "acme", "large", 400)

    async def lowered() -> bool:
        return (await mine()).outstanding == 500

    await wait_until(lowered)
    state = await mine()
    assert state.HasField("lowered_at")
    assert not state.HasField("settled_at")
    assert kind(await serving.sidecar().ask("large", key, need=1, ledger_only=True)) == "denied"
    await holder.give_back(lease.window.window_id, 600)
    state = await mine()
    assert (state.outstanding, state.allotted) == (0, 300)
    assert state.settled_at.ToMicroseconds() >= state.lowered_at.ToMicroseconds() > 0
    await set_amount(serving.channel, "acme", "large", 16_000)


async def test_a_living_pools_units_come_back_in_a_dead_holders_name_once(serving: Serving) -> None:
    """What a restarted sidecar took over goes back beside its pool; closing that credits what it had never granted."""
    await set_amount(serving.channel, "acme", "large", 16_000)
    dead, key = serving.sidecar(), new_key()
    await dead.ask("large", key)
    pool = (answer := await dead.ask("large", key)).pool
    assert (await dead.grant(pool, request_seq=1, need=300))[:2] == ["OK", "300"]
    window, out = answer.window.window_id, (await dead.ask("large", key)).window.allotted
    told = [await dead.give_back(window, cum, generation=pool.generation) for cum in (120, 120, 50, 200)]
    assert told == [120, 120, 120, 200]
    await set_amount(serving.channel, "acme", "large", 400)

    async def closed() -> bool:
        return any(state.allotted == out - 200 - (pool.allotted_cum - 300) for state in await states(serving, "large"))

    await wait_until(closed)
    assert await dead.give_back(window, 200, generation=pool.generation) == 200
    assert await closed()
    await set_amount(serving.channel, "acme", "large", 16_000)


async def test_a_limit_flipped_100_times_gives_at_most_the_highest(serving: Serving) -> None:
    """Raised and lowered under asks of several holders: units out never exceed the highest amount in force."""
    key, seeded = new_key(), random.Random(7)
    holders = [serving.sidecar() for _ in range(3)]
    out = highest = 0
    for _ in range(100):
        amount = seeded.choice((50, 100, 400, 16_000 // 16))
        highest = max(highest, amount)
        await set_amount(serving.channel, "acme", "large", amount)
        answer = await seeded.choice(holders).ask("large", key, need=1, want=40, ledger_only=True)
        out += answer.lease.give if kind(answer) == "lease" else 0
        assert out <= highest
    assert out > 50, "something was given"
    await set_amount(serving.channel, "acme", "large", 16_000)


async def test_expired_windows_are_turned_once_and_only_those(serving: Serving) -> None:
    """A minute that is over is opened anew with nothing used; a repeat finds nothing, what is not over stays."""
    key = new_key()
    clock = serving.ledger.resources.clock
    begun_us = clock.reading().now_us
    first = await serving.sidecar().ask("minute", key)
    await clock.set(now=from_us(first.window.end_us + 60_000_000), speed_milli=0)
    turned = await stub(serving).ResetAllExpired(admin_pb2.ResetAllExpiredRequest(request_id="a", tenant="acme"))
    assert "minute" in {state.limit for state in turned.states}
    # Only what began meanwhile was turned: a day as well, where midnight passed.
    assert min(state.start.ToMicroseconds() for state in turned.states) > begun_us
    assert all(state.allotted == 0 for state in turned.states)
    repeated = await stub(serving).ResetAllExpired(admin_pb2.ResetAllExpiredRequest(request_id="b", tenant="acme"))
    assert len(repeated.states) == 0
    answer = await serving.sidecar().ask("minute", key)
    assert answer.window.start_us == max(state.start.ToMicroseconds() for state in turned.states)
    await clock.set(now=None, speed_milli=1000)


async def test_history_tells_who_did_what_and_why(serving: Serving) -> None:
    """Newest first, page by page, with the actor that the call named."""
    call = stub(serving)
    for amount in (10, 20):
        await call.SetOverride(
            admin_pb2.SetOverrideRequest(
                request_id=secrets.token_hex(8), tenant="other", limit="small", amount=amount, note=f"to {amount}"
            ),
            metadata=(("tollkeeper-actor", "ada"),),
        )
    first = await call.ListLimitHistory(admin_pb2.ListLimitHistoryRequest(page_size=1, tenant="other", limit="small"))
    assert [(entry.actor, entry.note) for entry in first.entries] == [("ada", "to 20")]
    second = await call.ListLimitHistory(
        admin_pb2.ListLimitHistoryRequest(page_token=first.next_page_token, tenant="other", limit="small")
    )
    assert [entry.note for entry in second.entries] == ["to 10"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.SetOverride(
            admin_pb2.SetOverrideRequest(request_id="x", tenant="other", limit="small", amount=1),
            metadata=(("tollkeeper-actor", "x" * 129),),
        )
    assert "tollkeeper-actor" in (refused.value.details() or "")


async def test_a_clock_that_jumps_opens_no_window_until_confirmed(serving: Serving) -> None:
    """Ten minutes forward at once: new windows wait for an operator, open ones go on, confirming ends it."""
    key, clock = new_key(), serving.ledger.resources.clock
    open_day = await serving.sidecar().ask("large", key)
    async with serving.ledger.resources.pools.ingest.acquire() as conn:
        await conn.execute("UPDATE clock_setting SET origin = origin + interval '10 minutes'")

    async def held() -> bool:
        state = await stub(serving).GetLedgerState(admin_pb2.GetLedgerStateRequest())
        return state.clock_jump_s >= 599

    await wait_until(held)
    now_us = clock.reading().now_us
    if now_us < open_day.window.end_us:
        assert kind(await serving.sidecar().ask("large", key)) != "refused"
    answer = await serving.sidecar().ask("minute", new_key())
    assert answer.refused.reason == "CLOCK_UNCONFIRMED"
    confirmed = await stub(serving).ConfirmClock(admin_pb2.ConfirmClockRequest(request_id="clock"))
    assert confirmed.was_held
    assert kind(await serving.sidecar().ask("minute", new_key())) == "lease"
