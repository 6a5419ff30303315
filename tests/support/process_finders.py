"""Short trials of what must hold between real processes. Each is a test of the product and the finder of a mutant.

A trial gets a fleet of one sidecar, the settings of a second one that it starts itself, behind lines of its own, and
how many seconds it waits for what it judges. It raises AssertionError where the promise is broken, and nowhere else:
what only stands in the way of trying is NotTried, so that a mutant is never found for the wrong reason.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING

import grpc
from limit_rules import yearly
from tcp_proxy import PARTITION, REPLIES_LOST
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc, usage_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import TypeAlias

    from fleet_support import Fleet

    Trial: TypeAlias = Callable[[Fleet, Mapping[str, str], float], Awaitable[None]]

TENANT = "f0"
AMOUNT = 1_000
WAIT_S = 60.0
"""Longest wait for what must come; a machine may be slow."""

HEARD_S = 2.0
"""A sidecar that is connected hears of a new limit much sooner."""

HEARTBEATS_S = 0.2
"""In so long the ledger sends five heartbeats."""

_numbers = itertools.count(1)


class NotTried(Exception):  # noqa: N818 - it says what happened, as AssertionError does
    """Says that a trial did not come to the point at which its promise is tried."""


async def fresh_limit(
    fleet: Fleet,
    amount: int = AMOUNT,
    policy: decision_pb2.FailurePolicy.ValueType = decision_pb2.FAILURE_POLICY_CLOSED,
) -> str:
    """Give the tenant one more yearly limit of requests and return its name, the value of attribute `cell`."""
    name = f"trial-{next(_numbers)}"
    await fleet.set_limit(TENANT, yearly(name, amount, policy=policy, cell=name))
    return name


async def ask(stub: quota_pb2_grpc.QuotaServiceStub, cell: str, units: int = 1) -> decision_pb2.Decision:
    """Ask for units of a trial's limit."""
    answer = await stub.CheckQuota(
        quota_pb2.CheckQuotaRequest(
            tenant=TENANT, costs=[quota_pb2.Cost(meter="requests", units=units)], attributes={"cell": cell}
        ),
        timeout=WAIT_S,
    )
    return answer.decision


async def until_known(
    stub: quota_pb2_grpc.QuotaServiceStub, cell: str, amount: int = AMOUNT, *, wait_s: float = WAIT_S
) -> None:
    """Wait until a sidecar shows a trial's limit with this amount."""
    give_up_s = time.monotonic() + wait_s
    while True:
        answer = await stub.GetQuota(
            quota_pb2.GetQuotaRequest(tenant=TENANT, attributes={"cell": cell}), timeout=WAIT_S
        )
        shown = {limit.name: limit.amount for limit in answer.limits}
        if shown.get(cell) == amount:
            return
        if time.monotonic() > give_up_s:
            raise NotTried(f"{cell} is {shown.get(cell)} after {wait_s:g} s, expected {amount}")
        await asyncio.sleep(0.02)


async def limit_heard_of(fleet: Fleet, stub: quota_pb2_grpc.QuotaServiceStub) -> str:
    """Set fresh limits until a sidecar shows one, and return it.

    A ledger that was started again and is broken on purpose may never tell of what was set before the sidecar was back.
    """
    give_up_s = time.monotonic() + WAIT_S
    while True:
        cell = await fresh_limit(fleet)
        try:
            await until_known(stub, cell, wait_s=HEARD_S)
        except NotTried:
            if time.monotonic() > give_up_s:
                raise
        else:
            return cell


async def take(stub: quota_pb2_grpc.QuotaServiceStub, cell: str, checks: int) -> int:
    """Make so many checks of one unit and return how many were admitted."""
    return sum([(await ask(stub, cell)).allowed for _ in range(checks)])


async def take_all(stub: quota_pb2_grpc.QuotaServiceStub, cell: str, *, unit: int = 50) -> int:
    """Take units until the limit is proved to be exhausted, and return how many were admitted."""
    admitted = 0
    give_up_s = time.monotonic() + WAIT_S
    for units in (unit, 1):
        while True:
            decision = await ask(stub, cell, units)
            admitted += units if decision.allowed else 0
            if decision.reason == decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED:
                break
            if time.monotonic() > give_up_s:
                raise NotTried(f"{cell}: no proof of exhaustion after {WAIT_S:g} s: {decision}")
    return admitted


async def a_clean_stop_returns_everything(fleet: Fleet, environment: Mapping[str, str], wait_s: float) -> None:
    """Show that what a sidecar held when it was told to stop can be taken by others."""
    cell = await fresh_limit(fleet)
    second = await fleet.do(fleet.add_behind_lines, cell, **environment)
    async with fleet.channel(second.target) as channel, fleet.channel() as other:
        stub, rest = quota_pb2_grpc.QuotaServiceStub(channel), quota_pb2_grpc.QuotaServiceStub(other)
        await until_known(stub, cell)
        await until_known(rest, cell)
        admitted = await take(stub, cell, 100)
        assert await fleet.do(second.stop), "it did not stop in order"
        admitted += await take_all(rest, cell)
    assert admitted == AMOUNT


async def proof_ends_with_the_line(fleet: Fleet, environment: Mapping[str, str], wait_s: float) -> None:
    """Show that a sidecar that nobody can tell of new units does not go on claiming that there are none."""
    cell = await fresh_limit(fleet, 100)
    second = await fleet.do(fleet.add_behind_lines, cell, **environment)
    redis, ledger = fleet.redis_lines[-1], fleet.ledger_lines[-1]
    async with fleet.channel(second.target) as channel, fleet.channel() as other:
        stub, rest = quota_pb2_grpc.QuotaServiceStub(channel), quota_pb2_grpc.QuotaServiceStub(other)
        await until_known(stub, cell, 100)
        await until_known(rest, cell, 100)
        admitted = await take(rest, cell, 1) + await take_all(stub, cell, unit=5)
        assert admitted + await take_all(rest, cell) <= 100
        await take_all(stub, cell)
        redis.use(PARTITION)
        ledger.use(PARTITION)
        give_up_s = time.monotonic() + wait_s
        while (reason := (await ask(stub, cell)).reason) != decision_pb2.DECISION_REASON_AUTHORITY_UNREACHABLE:
            assert time.monotonic() < give_up_s, f"{reason} {wait_s:g} s after the last word of any authority"
            await asyncio.sleep(0.02)


async def a_lost_reply_mints_nothing(fleet: Fleet, environment: Mapping[str, str], wait_s: float) -> None:
    """Show that units whose return was carried out, but whose reply was lost, are spent once."""
    cell = await fresh_limit(fleet)
    second = await fleet.do(fleet.add_behind_lines, cell, **environment)
    redis = fleet.redis_lines[-1]
    async with fleet.channel(second.target) as channel, fleet.channel() as other:
        stub, rest = quota_pb2_grpc.QuotaServiceStub(channel), quota_pb2_grpc.QuotaServiceStub(other)
        await until_known(stub, cell)
        await until_known(rest, cell)
        admitted = await take(rest, cell, 1) + await take(stub, cell, 100)
        returned = fleet.redis.first.calls("fcall")
        redis.use(REPLIES_LOST)
        give_up_s = time.monotonic() + wait_s
        # Idle for two seconds, it gives back what it holds ahead.
        while fleet.redis.first.calls("fcall") <= returned and time.monotonic() < give_up_s:  # noqa: ASYNC110 - Redis tells only when asked
            await asyncio.sleep(0.05)
        redis.cut()
        redis.heal()
        admitted += await take_all(rest, cell) + await take_all(stub, cell)
    assert admitted <= AMOUNT


async def a_change_behind_a_cut_is_heard_of(fleet: Fleet, environment: Mapping[str, str], wait_s: float) -> None:
    """Show that a limit that changed while a sidecar was cut off is in force there once it is back.

    A sidecar that never heard a heartbeat asks for everything anew: so it is let hear some before each cut, and cut off
    more than once.
    """
    async with fleet.channel() as other:
        cell = await limit_heard_of(fleet, quota_pb2_grpc.QuotaServiceStub(other))
    second = await fleet.do(fleet.add_behind_lines, cell, **environment)
    line = fleet.ledger_lines[-1]
    async with fleet.channel(second.target) as channel, fleet.channel() as other:
        stub, rest = quota_pb2_grpc.QuotaServiceStub(channel), quota_pb2_grpc.QuotaServiceStub(other)
        await until_known(stub, cell)
        for amount in range(7, 12):
            await asyncio.sleep(HEARTBEATS_S)
            line.cut(refuse=True)
            await fleet.set_amount(TENANT, cell, amount)
            # The ledger tells it once: who listens only afterwards has missed it.
            await until_known(rest, cell, amount)
            line.heal()
            try:
                await until_known(stub, cell, amount, wait_s=wait_s)
            except NotTried as late:
                raise AssertionError(str(late)) from late


async def record(stub: quota_pb2_grpc.QuotaServiceStub, fleet: Fleet, name: str, *, ledger: bool) -> bool:
    """Record one usage record; return whether it was acknowledged."""
    one = usage_pb2.UsageRecord(tenant=TENANT, id=name, event_time=fleet.now())
    one.quantities.add(meter="tokens", units=1)
    ack = usage_pb2.ACKNOWLEDGEMENT_LEDGER if ledger else usage_pb2.ACKNOWLEDGEMENT_LOCAL
    try:
        answer = await stub.RecordUsage(
            usage_pb2.RecordUsageRequest(records=[one], acknowledgement=ack), timeout=WAIT_S
        )
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.results[0].outcome == usage_pb2.RECORD_OUTCOME_RECORDED)


async def recorded_by_ledger(stub: quota_pb2_grpc.QuotaServiceStub, fleet: Fleet, prefix: str) -> str:
    """Record until the ledger has acknowledged a record; return its id.

    A sidecar that has just been started waits for the ledger as briefly as any for a tenant that it has not heard of.
    """
    give_up_s = time.monotonic() + WAIT_S
    for number in itertools.count():
        name = f"{prefix}/{number}"
        if await record(stub, fleet, name, ledger=True):
            return name
        if time.monotonic() > give_up_s:
            break
        await asyncio.sleep(0.02)
    raise NotTried(f"{prefix}: not acknowledged after {WAIT_S:g} s")


async def what_the_ledger_acknowledged_is_committed(
    fleet: Fleet, environment: Mapping[str, str], wait_s: float
) -> None:
    """Show that a record acknowledged by the ledger is in Postgres, although ledger and sidecar die at that moment."""
    for _ in range(2):
        prefix = f"committed-{next(_numbers)}"
        second = await fleet.do(fleet.add_behind_lines, prefix, TOLLKEEPER_SHIP_INTERVAL_MS="20", **environment)
        async with fleet.channel(second.target) as channel:
            name = await recorded_by_ledger(quota_pb2_grpc.QuotaServiceStub(channel), fleet, prefix)
            await fleet.do(fleet.stack.kill_ledger)
            await fleet.do(second.kill)
        await fleet.do(fleet.stack.start_ledger)
        assert name in await fleet.stored_ids(TENANT), "acknowledged by the ledger, and not in Postgres"


async def what_was_acknowledged_is_stored(fleet: Fleet, environment: Mapping[str, str], wait_s: float) -> None:
    """Show that records that were on their way when the ledger was killed are stored, once, when it is back."""
    prefix = f"sent-{next(_numbers)}"
    second = await fleet.do(fleet.add_behind_lines, prefix, TOLLKEEPER_SHIP_INTERVAL_MS="20", **environment)
    acknowledged: set[str] = set()
    stored: list[str] = []
    async with fleet.channel(second.target) as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        for _ in range(2):
            for _ in range(20):
                name = f"{prefix}/{len(acknowledged)}"
                if await record(stub, fleet, name, ledger=False):
                    acknowledged.add(name)
                await asyncio.sleep(0.02)
            await fleet.do(fleet.stack.kill_ledger)
            await fleet.do(fleet.stack.start_ledger)
            give_up_s = time.monotonic() + wait_s
            while not acknowledged <= set(stored):
                missing = len(acknowledged - set(stored))
                assert time.monotonic() < give_up_s, f"{missing} acknowledged records are not stored"
                stored = [name for name in await fleet.stored_ids(TENANT) if name.startswith(prefix)]
    assert sorted(stored) == sorted(set(stored)), "stored twice"


async def a_killed_ledger_leases_nothing_twice(fleet: Fleet, environment: Mapping[str, str], wait_s: float) -> None:
    """Show that units that a sidecar was given right before the ledger died are not given to others."""
    cell = await fresh_limit(fleet)
    second = await fleet.do(fleet.add_behind_lines, cell, **environment)
    async with fleet.channel(second.target) as channel, fleet.channel() as other:
        stub, rest = quota_pb2_grpc.QuotaServiceStub(channel), quota_pb2_grpc.QuotaServiceStub(other)
        await until_known(stub, cell)
        await until_known(rest, cell)
        admitted = 500 if (await ask(stub, cell, 500)).allowed else 0
        await fleet.do(fleet.stack.kill_ledger)
        await fleet.do(fleet.stack.start_ledger)
        admitted += await take_all(rest, cell) + await take_all(stub, cell)
    assert 0 < admitted <= AMOUNT


FINDERS: dict[str, Trial] = {
    "stop_without_return": a_clean_stop_returns_everything,
    "cached_heartbeat": proof_ends_with_the_line,
    "watch_without_resume": a_change_behind_a_cut_is_heard_of,
    "append_answered_before_commit": what_the_ledger_acknowledged_is_committed,
    "ids_claimed_first": what_was_acknowledged_is_stored,
    "allot_answered_before_commit": a_killed_ledger_leases_nothing_twice,
}
"""The trial that must find each mutant."""

TRIALS: tuple[Trial, ...] = (*FINDERS.values(), a_lost_reply_mints_nothing)
