"""What can happen to a fleet while it is loaded: each fault begins, lasts, and ends with everything whole again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

from tcp_proxy import PARTITION, REPLIES_LOST, Line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fleet_support import Fleet

    Fault: TypeAlias = Callable[[Fleet, float], Awaitable[None]]


async def nothing(fleet: Fleet, lasts_s: float) -> None:
    """Leave everything alone: what the faults are compared with."""
    await asyncio.sleep(lasts_s)


async def redis_killed(fleet: Fleet, lasts_s: float) -> None:
    """Kill Redis; it comes back empty."""
    await fleet.do(fleet.redis.first.kill)
    await asyncio.sleep(lasts_s)
    await fleet.do(fleet.redis.first.start)


async def redis_failed_over(fleet: Fleet, lasts_s: float) -> None:
    """Fail over to a replica that was cut off: what the old master acknowledged since is gone."""
    fleet.redis.cut_replica_off()
    await asyncio.sleep(lasts_s)
    await fleet.do(fleet.redis.promote_second)
    await fleet.do(fleet.lead_to, fleet.redis.second.port)


async def redis_split(fleet: Fleet, lasts_s: float) -> None:
    """Fail over for the ledger and two sidecars; the other three go on with the old master for a while."""
    fleet.redis.cut_replica_off()
    await asyncio.sleep(lasts_s / 2)
    await fleet.do(fleet.redis.promote_second)
    await fleet.do(fleet.lead_to, fleet.redis.second.port, first=2)
    await asyncio.sleep(lasts_s / 2)
    await fleet.do(fleet.lead_to, fleet.redis.second.port)


async def redis_promoted_again(fleet: Fleet, lasts_s: float) -> None:
    """Demote the master, let it copy a stale replica, promote it again: its run id stays, its grants are gone."""
    fleet.redis.cut_replica_off()
    await asyncio.sleep(lasts_s)
    before, after = await fleet.do(fleet.redis.demote_and_promote_first)
    assert before == after, "the fault is the one meant only where the run id stays"


async def redis_flushed(fleet: Fleet, lasts_s: float) -> None:
    """Empty Redis, twice."""
    await fleet.do(fleet.redis.first.client.flushall)
    await asyncio.sleep(lasts_s)
    await fleet.do(fleet.redis.first.client.flushall)


async def redis_without_functions(fleet: Fleet, lasts_s: float) -> None:
    """Take the function library away; the ledger loads it again."""
    await fleet.do(fleet.redis.first.client.function_flush)
    await asyncio.sleep(lasts_s)


async def redis_cut_off(fleet: Fleet, lasts_s: float) -> None:
    """Part three sidecars from Redis; what they had sent arrives when the partition ends."""
    for line in fleet.redis_lines[2:]:
        line.use(PARTITION)
    await asyncio.sleep(lasts_s)
    for line in fleet.redis_lines[2:]:
        line.heal()


async def redis_replies_lost(fleet: Fleet, lasts_s: float) -> None:
    """Carry requests to Redis but no replies, then break the connections: grants and returns of unknown outcome."""
    for line in fleet.redis_lines:
        line.use(REPLIES_LOST)
    await asyncio.sleep(lasts_s)
    for line in fleet.redis_lines:
        line.cut()
        line.heal()


async def redis_cut_mid_frame(fleet: Fleet, lasts_s: float) -> None:
    """Cut connections in the middle of a reply, ten times."""
    for number in range(10):
        fleet.redis_lines[number % len(fleet.redis_lines)].cut_reply_after(7)
        await asyncio.sleep(lasts_s / 10)


async def redis_slow(fleet: Fleet, lasts_s: float) -> None:
    """Let Redis answer late and unevenly."""
    for line in fleet.redis_lines:
        line.use(Line(delay_s=0.02, jitter_s=0.1))
    await asyncio.sleep(lasts_s)
    for line in fleet.redis_lines:
        line.heal()


async def sidecars_killed(fleet: Fleet, lasts_s: float) -> None:
    """Kill two sidecars and start them again, twice."""
    for _ in range(2):
        for sidecar in fleet.added[:2]:
            await fleet.do(sidecar.kill)
        await asyncio.sleep(lasts_s / 2)
        await asyncio.gather(*(fleet.do(sidecar.start) for sidecar in fleet.added[:2]))


async def sidecars_paused(fleet: Fleet, lasts_s: float) -> None:
    """Stop two sidecars in the middle of their work and let them go on."""
    fleet.pause(1, 2)
    try:
        await asyncio.sleep(lasts_s)
    finally:
        fleet.resume(1, 2)


async def ledger_killed(fleet: Fleet, lasts_s: float) -> None:
    """Kill the ledger and start it again."""
    await fleet.do(fleet.stack.kill_ledger)
    await asyncio.sleep(lasts_s / 4)
    await fleet.do(fleet.stack.start_ledger)


async def postgres_killed(fleet: Fleet, lasts_s: float) -> None:
    """Kill Postgres and start it again."""
    await fleet.do(fleet.stack.kill_postgres)
    await asyncio.sleep(lasts_s / 4)
    await fleet.do(fleet.stack.start_postgres)


async def ledger_cut_off(fleet: Fleet, lasts_s: float) -> None:
    """Part four sidecars from the ledger."""
    for line in fleet.ledger_lines:
        line.use(PARTITION)
    await asyncio.sleep(lasts_s)
    for line in fleet.ledger_lines:
        line.heal()


async def everything(fleet: Fleet, lasts_s: float) -> None:
    """Flush Redis while a sidecar is paused, another is killed, and a third is cut off; then fail over with loss."""
    fleet.pause(1)
    try:
        await fleet.do(fleet.added[1].kill)
        fleet.redis_lines[3].use(PARTITION)
        await fleet.do(fleet.redis.first.client.flushall)
        await asyncio.sleep(lasts_s / 4)
        await fleet.do(fleet.added[1].start)
    finally:
        fleet.resume(1)
    await redis_failed_over(fleet, lasts_s / 4)


FAULTS: dict[str, Fault] = {
    "nothing": nothing,
    "redis killed": redis_killed,
    "redis failed over with loss": redis_failed_over,
    "redis split brain": redis_split,
    "redis demoted, resynced, promoted again": redis_promoted_again,
    "redis flushed": redis_flushed,
    "redis without its functions": redis_without_functions,
    "redis cut off from three sidecars": redis_cut_off,
    "replies of redis lost": redis_replies_lost,
    "redis cut mid-frame": redis_cut_mid_frame,
    "redis slow": redis_slow,
    "two sidecars killed twice": sidecars_killed,
    "two sidecars paused": sidecars_paused,
    "ledger killed": ledger_killed,
    "postgres killed": postgres_killed,
    "ledger cut off from four sidecars": ledger_cut_off,
    "everything": everything,
}
