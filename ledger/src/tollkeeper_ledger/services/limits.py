"""Everything of limits, wired."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.services.allot import AllotService
from tollkeeper_ledger.services.amounts import AmountFollower
from tollkeeper_ledger.services.bucket_clock import BucketClock
from tollkeeper_ledger.services.caches import Caches
from tollkeeper_ledger.services.learning import Learning
from tollkeeper_ledger.services.restores import Restores
from tollkeeper_ledger.services.returns import ReturnService
from tollkeeper_ledger.services.settlements import SettlementHub
from tollkeeper_ledger.services.standing import LeaseReclaimer
from tollkeeper_ledger.services.tenant_directory import TenantDirectory
from tollkeeper_ledger.services.watch import WatchHub
from tollkeeper_ledger.store.installation import Installation, read_installation
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.pool_functions import PoolFunctions

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tollkeeper_ledger.services.resources import Resources


@dataclass(frozen=True, slots=True)
class Limits:
    """Hold what serves sidecars' calls about limits."""

    installation: Installation
    tenants: TenantDirectory
    hub: WatchHub
    allot: AllotService
    returns: ReturnService
    restores: Restores
    amounts: AmountFollower
    functions: PoolFunctions
    bucket_clock: BucketClock
    settlements: SettlementHub
    reclaimer: LeaseReclaimer
    caches: Caches
    learning: Learning

    def loops(self) -> list[Coroutine[None, None, None]]:
        """Give what has to run while the process serves."""
        return [
            self.tenants.run(),
            self.hub.beat(),
            self.allot.run(),
            self.amounts.run(),
            self.bucket_clock.run(),
            self.settlements.run(),
            self.reclaimer.run(),
        ]


async def open_limits(resources: Resources) -> Limits:
    """Wire the services and take in what is there: installation, meters, open token buckets."""
    pool = resources.pools.ingest
    async with connection(pool) as conn:
        installation = await read_installation(conn)
    tenants = TenantDirectory(pool, resources.listener, resources.log)
    hub = WatchHub(tenants, resources.listener, resources.log)
    functions = PoolFunctions(resources.redis, resources.log)
    restores = Restores(
        pool,
        functions,
        resources.log,
        installation_id=installation.installation_id,
        timeline=installation.timeline,
        learning_s=resources.settings.learning_s,
    )
    restores.follow(shown=hub.show_witness)
    allot = AllotService(resources, tenants, functions, restores)
    amounts = AmountFollower(pool, resources.clock, functions, restores, resources.log)
    bucket_clock = BucketClock(allot.buckets, resources.clock, functions)
    tenants.follow(amounts.changed, lambda _: None)
    resources.clock.follow(hub.clock_set)
    resources.clock.follow(bucket_clock.clock_set)
    await asyncio.gather(tenants.catch_up(), allot.buckets.load(pool), amounts.start())
    # Before anybody is served: what Redis kept may say that Postgres was set back while no ledger ran.
    await restores.tick()
    return Limits(
        installation=installation,
        tenants=tenants,
        hub=hub,
        allot=allot,
        returns=ReturnService(pool, resources.clock, functions, restores),
        restores=restores,
        amounts=amounts,
        functions=functions,
        bucket_clock=bucket_clock,
        settlements=SettlementHub(pool, resources.listener, resources.log),
        reclaimer=LeaseReclaimer(pool, resources.log),
        caches=Caches(pool, resources.listener, hub, resources.log),
        learning=Learning(pool, resources.clock, functions, restores, tenants),
    )
