"""Real sidecars on a real ledger decide as the obvious model does, for random limits and random calls.

Tenants walk beside each other; the ledger's clock stands still while they do, so that answers are exact, and moves
between rounds. `MODEL_SEEDS=n` walks more of them; a failure names its seed, which `MODEL_SEED=n` walks alone.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING

import pytest
from clock_support import set_clock
from google.protobuf.duration_pb2 import Duration
from model_limits import catalogue, draw_limits
from model_walk import CALL_S, SECOND_US, Lane
from quota_model import MINUTE_US, Model
from redis.asyncio import Redis
from tollkeeper.quota.v1 import quota_pb2, quota_pb2_grpc
from waiting import wait_until

if TYPE_CHECKING:
    from platform_support import Platform

LANES = 16
ROUNDS, STEPS, BUCKET_STEPS = 4, 16, 5
ONLY = os.environ.get("MODEL_SEED")
SEEDS = [int(ONLY)] if ONLY else range(1, 1 + int(os.environ.get("MODEL_SEEDS", "1")))
SHAPES = {
    "one sidecar": (1, False),
    "two sidecars": (2, False),
    "buckets": (1, True),
    "buckets at two sidecars": (2, True),
}
"""How many sidecars, and whether limits on requests are token buckets."""
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def second_sidecar(platform: Platform) -> str:
    """Run another sidecar and give its target."""
    return platform.add_sidecar("second")


async def advance(platform: Platform, stubs: list[quota_pb2_grpc.QuotaServiceStub], now_us: int) -> None:
    """Set the ledger's clock, and wait until sidecars and token buckets have heard of it."""
    await set_clock(platform, now_us)
    tenant = f"nobody-{next(_numbers)}-child"
    await platform.apply(catalogue([(tenant.removesuffix("-child"), ())]))

    async def has_heard(stub: quota_pb2_grpc.QuotaServiceStub) -> bool:
        request = quota_pb2.CheckQuotaRequest(
            tenant=tenant,
            costs=[quota_pb2.Cost(meter="requests", units=1)],
            mode=quota_pb2.CHECK_MODE_RESERVE,
            request_id=f"heard-{next(_numbers)}",
            reservation_ttl=Duration(seconds=1),
        )
        answer = await stub.CheckQuota(request, timeout=CALL_S)
        return answer.reservation.expires_at.ToMicroseconds() == now_us + SECOND_US

    for stub in stubs:
        await wait_until(lambda stub=stub: has_heard(stub), f"a sidecar to be at {now_us}")
    async with Redis.from_url(platform.stack.environment()["TOLLKEEPER_REDIS_URL"], decode_responses=True) as redis:

        async def have_heard() -> bool:
            markers = [key async for key in redis.scan_iter(match="tk:*:m")]
            return all([int(await redis.hget(key, "ledger_us") or 0) >= now_us for key in markers])

        await wait_until(have_heard, f"token buckets to be at {now_us}")


def lanes_of(seed: int, now_us: int, stubs: dict[str, quota_pb2_grpc.QuotaServiceStub]) -> list[Lane]:
    """Draw tenants, each with limits of its own and as many sidecars as its shape says."""
    lanes = []
    for number, (shape, (count, has_buckets)) in zip(range(LANES), itertools.cycle(SHAPES.items()), strict=False):
        rng = Random(f"{seed}/{number}")
        model = Model(draw_limits(rng, with_buckets=has_buckets), now_us, is_shared=count > 1)
        name = f"walk-{next(_numbers)}-{seed}-{number}-{shape.replace(' ', '-')}"
        used = dict(itertools.islice(stubs.items(), count))
        lanes.append(Lane(f"{name}-child", rng, model, used, has_buckets))
    return lanes


async def walk(platform: Platform, seed: int, targets: dict[str, str]) -> None:
    """Let every tenant do its steps, round by round."""
    async with AsyncExitStack() as stack:
        stubs = {
            name: quota_pb2_grpc.QuotaServiceStub(await stack.enter_async_context(platform.channel(target)))
            for name, target in targets.items()
        }
        rng = Random(seed)
        # A sidecar's clock never goes back: one that ran a little ahead before the clock stopped must be overtaken.
        now_us = await set_clock(platform, None) + SECOND_US
        await advance(platform, list(stubs.values()), now_us)
        lanes = lanes_of(seed, now_us, stubs)
        await platform.apply(catalogue((lane.tenant.removesuffix("-child"), lane.model.limits) for lane in lanes))

        async def one_round(lane: Lane) -> None:
            for _ in range(BUCKET_STEPS if lane.has_buckets else STEPS):
                await lane.step()
            await lane.buckets_agree()

        for _ in range(ROUNDS):
            await asyncio.gather(*(one_round(lane) for lane in lanes))
            us = rng.choice([1, rng.randrange(MINUTE_US), MINUTE_US - now_us % MINUTE_US, MINUTE_US])
            now_us += us
            await advance(platform, list(stubs.values()), now_us)
            for lane in lanes:
                lane.model.advance(us)

        await asyncio.gather(*(lane.finish() for lane in lanes))


@pytest.mark.parametrize("seed", SEEDS)
def test_decisions_are_the_models(platform: Platform, second_sidecar: str, seed: int) -> None:
    """Random limits and calls at one or two sidecars are admitted, denied, explained and counted as the model says.

    Windows, levels, units in flight and token buckets; hard, soft and shadow; reserved, settled above, below, late and
    elsewhere, given back, asked twice. What the model denies is never admitted.
    """
    asyncio.run(walk(platform, seed, {"first": platform.target, "second": second_sidecar}))
