"""What a sidecar that is killed leaves to the next process on its volume, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING

import asyncpg
import grpc
import pytest
from limit_rules import yearly
from platform_support import AddedSidecar, Platform
from restart_support import UNREACHABLE, Caller, has_snapshot_of, seats
from tollkeeper.ledger.v1 import decisions_pb2, reports_pb2_grpc
from tollkeeper.quota.v1 import decision_pb2, quota_pb2
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CATALOGUE = "tests/e2e/catalogue.yaml"
EXCEEDS = decision_pb2.DECISION_REASON_COST_EXCEEDS_LIMIT
RESERVE = quota_pb2.CHECK_MODE_RESERVE


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Platform]:
    """Run a platform whose processes get killed."""
    # Embedded servers find their data by this path: a name that an earlier run had would bring back its limits.
    platform = Platform(tmp_path_factory.mktemp("restart") / secrets.token_hex(2))
    try:
        platform.start()
        asyncio.run(platform.apply((pytestconfig.rootpath / CATALOGUE).read_text()))
        yield platform
    finally:
        platform.stop()


@pytest.fixture
def sidecar(platform: Platform) -> Iterator[AddedSidecar]:
    """Run one more sidecar, that the test may kill and start."""
    sidecar = AddedSidecar(platform.stack, secrets.token_hex(2), {})
    sidecar.start()
    yield sidecar
    sidecar.stop()


async def test_a_cold_start_admits_what_was_kept_and_not_one_more(
    platform: Platform, sidecar: AddedSidecar, report: Callable[[str], None]
) -> None:
    """Killed and started while ledger and Redis are down, a sidecar spends what it had kept and not one unit more.

    It ends its reservation; with both back exactly the rest is admitted, and never more than the limit.
    """
    name, amount = "cold", 20_000
    await platform.set_limit("shared", yearly(name, amount, case=name))
    caller = Caller(platform, sidecar, name)
    await caller.begin()
    await wait_until(lambda: asyncio.to_thread(has_snapshot_of, sidecar, name), "a snapshot that knows the limit")
    await caller.spend(10, 400)
    held = (await caller.call(10, RESERVE)).reservation.token
    # Waits for the disk, and with it for every mark before it. Units that lay idle for 2 s would be returned, not kept.
    await caller.call(1, RESERVE)
    await asyncio.to_thread(sidecar.kill)
    await asyncio.to_thread(platform.stack.kill_ledger)
    await asyncio.to_thread(platform.stack.kill_valkey)
    before = caller.admitted
    try:
        await asyncio.to_thread(sidecar.start)
        denial = await caller.spend(1, amount)
        kept = caller.admitted - before
        again = [(await caller.call(1)).decision for _ in range(20)]
        record = await caller.settle(held, 10)
    finally:
        # In this thread, not in one of the loop's: processes end with the thread that started them.
        platform.stack.start_valkey()
        platform.stack.start_ledger()
    assert (UNREACHABLE, {UNREACHABLE}) == (denial.reason, {decision.reason for decision in again})
    assert kept > 0
    await caller.exhaust()
    stranded = amount - caller.admitted
    report(f"cold start: {kept} units kept, {stranded} of {amount} stranded by the kill")
    assert 0 <= stranded < amount // 10
    await caller.until_stored(record)


@pytest.mark.parametrize("is_stopped", [False, True], ids=["idle", "stopped"])
async def test_what_a_killed_sidecar_kept_goes_back(
    platform: Platform, sidecar: AddedSidecar, report: Callable[[str], None], *, is_stopped: bool
) -> None:
    """What a killed sidecar had kept is back in the ledger when the next one has had no call for 2 s, or is stopped.

    Another sidecar can have it, and both together never more than the limit.
    """
    name, amount = f"heir-{is_stopped}".lower(), 200_000
    await platform.set_limit("shared", yearly(name, amount, case=name))
    dead, other = Caller(platform, sidecar, name), Caller(platform, platform, name)
    await dead.begin()
    back = 0
    for _ in range(5):
        if back := await returned_after_a_kill(platform, sidecar, dead, is_stopped=is_stopped):
            break
    assert back > 0
    await other.begin()
    await other.exhaust()
    stranded = amount - dead.admitted - other.admitted
    report(f"restart: {back} units of a killed sidecar came back, {stranded} of {amount} stranded by the kill")
    assert 0 <= stranded < amount // 10


async def returned_after_a_kill(platform: Platform, sidecar: AddedSidecar, dead: Caller, *, is_stopped: bool) -> int:
    """Kill a busy sidecar and start it, then leave it alone or stop it and start it; give what came back within 20 s.

    0 where it had nothing written down at that moment.
    """
    name = dead.case
    busy = asyncio.create_task(dead.spend(10, 10_000))
    await dead.call(1, RESERVE)
    goal = dead.admitted + 2_000

    async def is_busy_enough() -> bool:
        return dead.admitted >= goal or busy.done()

    await wait_until(is_busy_enough, "calls that keep a sidecar busy")
    # Waits for the disk, and with it for every mark before it. Units that lay idle for 2 s would be returned, not kept.
    await dead.call(1, RESERVE)
    await asyncio.to_thread(sidecar.kill)
    with contextlib.suppress(grpc.aio.AioRpcError):
        await busy
    before = await allotted(platform, name)
    await asyncio.to_thread(sidecar.start)
    if is_stopped:
        await asyncio.to_thread(sidecar.stop)
        await asyncio.to_thread(sidecar.start)
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        if back := before - await allotted(platform, name):
            return back
        await asyncio.sleep(0.05)
    return 0


async def test_what_a_killed_sidecar_held_of_levels_comes_back(
    platform: Platform, sidecar: AddedSidecar, report: Callable[[str], None]
) -> None:
    """Seats that a killed sidecar had leased and nobody took are free again once it was started on its volume.

    Those that were taken stay taken: all sidecars together fill the limit exactly.
    """
    name, amount = "seats", 200
    await platform.set_limit("shared", seats(name, amount))
    dead, other = Caller(platform, sidecar, name), Caller(platform, platform, name)
    await dead.begin()
    await dead.spend(1, 20)
    await asyncio.to_thread(sidecar.kill)
    held = await leased(platform, name) - dead.admitted
    await asyncio.to_thread(sidecar.start)

    async def is_over() -> bool:
        return await leased(platform, name) == 0

    await wait_until(is_over, "the end of what the killed sidecar held")
    await other.begin()
    await other.exhaust()
    report(f"levels: {held} of {amount} seats came back from a killed sidecar")
    assert amount == dead.admitted + other.admitted


async def leased(platform: Platform, name: str) -> int:
    """Read what processes that are not known to have ended have of a limit's windows, in the ledger's tables."""
    return await read_units(
        platform,
        "SELECT coalesce(sum(l.granted_cum - l.returned_cum), 0)::bigint FROM holder_lease l"
        " JOIN limit_window w USING (window_id) WHERE w.limit_name = $1 AND NOT l.ended",
        name,
    )


async def allotted(platform: Platform, name: str) -> int:
    """Read what is out of a limit's windows, in the ledger's tables."""
    return await read_units(platform, "SELECT sum(allotted)::bigint FROM limit_window WHERE limit_name = $1", name)


async def read_units(platform: Platform, query: str, name: str) -> int:
    """Run a query of one figure about a limit."""
    conn = await asyncpg.connect(
        platform.stack.environment()["TOLLKEEPER_DATABASE_URL"], server_settings={"search_path": "tollkeeper"}
    )
    try:
        units: int = await conn.fetchval(query, name)
    finally:
        await conn.close()
    return units


async def test_each_denial_is_counted_once_although_the_ledger_is_killed(
    platform: Platform, sidecar: AddedSidecar
) -> None:
    """Denied at two sidecars while the ledger is killed and started again: the ledger counts as many as callers heard.

    One of the two is stopped in order at the end, which leaves nothing untold.
    """
    name = "denials"
    await platform.set_limit("shared", yearly(name, 5, case=name))
    callers = [Caller(platform, one, name) for one in (platform, sidecar)]
    heard = 0

    async def be_denied(caller: Caller, target: str, calls: int) -> None:
        nonlocal heard
        async with platform.channel(target) as channel:
            for _ in range(calls):
                decision = (await caller.ask(channel, 6)).decision
                assert decision.reason == EXCEEDS
                heard += 1

    async def counted() -> int:
        request = decisions_pb2.CountDecisionsRequest(tenant="shared", limit=name)
        async with platform.ledger() as channel:
            answer = await reports_pb2_grpc.ReportServiceStub(channel).CountDecisions(request, timeout=20)
        return sum(one.count for one in answer.sums if one.reason == EXCEEDS)

    async def are_all_counted() -> bool:
        return await counted() == heard

    for caller in callers:
        await caller.begin()
    targets = (platform.target, sidecar.target)
    busy = asyncio.gather(*(be_denied(*one, 1_500) for one in zip(callers, targets, strict=True)))
    await wait_until(lambda: asyncio.sleep(0, heard > 500), "denied calls")
    platform.stack.kill_ledger()
    try:
        await busy
    finally:
        platform.stack.start_ledger()
    await wait_until(are_all_counted, f"{heard} denials", away=(grpc.aio.AioRpcError,))
    await be_denied(callers[1], sidecar.target, 7)
    assert await asyncio.to_thread(sidecar.stop)
    assert heard == await counted()
    assert heard == 3_007
