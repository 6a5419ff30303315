"""Levels on a Postgres that is set back: noticed before one is set, falls, or rises."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc.aio
from limits_support import Sidecar, apply_catalogue
from set_back_support import confirm, serving_on, state_of
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc
from tollkeeper_ledger.domain.keys import key_hash
from tollkeeper_ledger.services.restores import Restores
from tollkeeper_ledger.services.standing import LeaseReclaimer
from tollkeeper_ledger.services.usage import UsageIngest
from tollkeeper_ledger.store.installation import read_installation
from tollkeeper_ledger.store.pool_functions import PoolFunctions
from usage_support import Log, level_use
from waiting import wait_until

if TYPE_CHECKING:
    import pytest
    from limits_support import Serving
    from set_back_support import History
    from tollkeeper_ledger.config import Settings

LIMIT, USER = "seats", "somebody"
KEY = key_hash([USER])


class Home:
    """A sidecar that leases seats and records what it fills, over restarts of the ledger."""

    def __init__(self) -> None:
        self.holder = secrets.token_bytes(16)
        self.log = Log(uuid4())
        self._ask_seq = 0

    async def lease(self, served: Serving, units: int) -> None:
        """Lease so many seats."""
        self._ask_seq += 1
        sidecar = Sidecar(channel=served.channel, ledger=served.ledger, holder=self.holder)
        answer = await sidecar.ask(LIMIT, KEY, need=units, want=units, request_seq=self._ask_seq)
        assert answer.lease.give == units, answer

    def record(self, served: Serving, units: int, *, falls: bool = False) -> None:
        """Fill seats, or empty them."""
        now_us = served.ledger.resources.clock.reading().now_us
        self.log.record(level_use(LIMIT, KEY, self.holder, units, now_us=now_us, falls=falls))

    async def ship(self, ingest: UsageIngest) -> None:
        """Open the log and send what the ledger lacks of it."""
        known = await ingest.open_producer(self.log.producer_id, incarnation=1, holder=self.holder, version=1)
        await ingest.append(self.log.cut(known.committed_seq))


async def replica_of(served: Serving) -> tuple[Restores, UsageIngest]:
    """Give another replica's ingest, which has seen what is committed now."""
    resources = served.ledger.resources
    async with resources.pools.ingest.acquire() as conn:
        installation = await read_installation(conn)
    restores = Restores(
        resources.pools.ingest,
        PoolFunctions(resources.redis, resources.log),
        resources.log,
        installation_id=installation.installation_id,
        timeline=installation.timeline,
    )
    return restores, UsageIngest(resources.pools.ingest, embedded=True, restores=restores)


async def level(served: Serving) -> dict[str, int]:
    """Read the level as it stands."""
    async with served.ledger.resources.pools.ingest.acquire() as conn:
        row = await conn.fetchrow(
            "SELECT w.allotted, w.stored FROM limit_window w JOIN limit_cursor c ON c.newer_id = w.window_id"
            " WHERE c.key_hash = $1",
            KEY,
        )
    return dict(row or {})


async def prepare(settings: Settings, history: History, home: Home) -> None:
    """Fill three seats, and copy the database."""
    async with serving_on(settings) as served:
        await apply_catalogue(served.channel)
        _, ingest = await replica_of(served)
        await home.lease(served, 3)
        home.record(served, 3)
        await home.ship(ingest)
    await history.back_up()


async def test_records_tell_a_set_back_ledger_what_was_leased(
    settings: Settings, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four seats more are filled and two emptied after the backup: sent again, they leave five, and five are counted.

    The first to meet the set-back is the append itself, which notices it before it credits what fell.
    """

    async def never(_restores: Restores) -> None:
        """Nothing tells but the transaction itself."""

    monkeypatch.setattr(Restores, "tick", never)
    home = Home()
    await prepare(settings, history, home)
    async with serving_on(settings) as served:
        restores, ingest = await replica_of(served)
        async with served.ledger.resources.pools.ingest.acquire() as conn, conn.transaction():
            witness, _ = await restores.issue(conn)
        restores.committed(witness)
        await home.lease(served, 4)
        home.record(served, 4)
        home.record(served, 2, falls=True)
        await home.ship(ingest)
        assert await level(served) == {"allotted": 5, "stored": 5}
        await history.set_back()
        await home.ship(ingest)
        assert (await state_of(served.channel)).timeline == 2
        assert await level(served) == {"allotted": 5, "stored": 5}
        await confirm(served.channel)
        answer = await served.sidecar().ask(LIMIT, KEY, need=5, want=5)
        assert answer.lease.give == 5, "ten less five are left"
        assert await level(served) == {"allotted": 10, "stored": 5}


async def test_a_level_is_set_only_where_it_is_known_what_is_leased(settings: Settings, history: History) -> None:
    """Seats leased after the backup are unknown: nobody sets the level before the restore is confirmed."""
    home = Home()
    await prepare(settings, history, home)
    async with serving_on(settings) as served:
        await home.lease(served, 4)
        await history.set_back()

        async def refused() -> bool:
            try:
                answers.append(await set_level(served, 3))
            except grpc.aio.AioRpcError as error:
                # Connections that are gone are another failure: the ledger takes new ones.
                return error.code() is grpc.StatusCode.FAILED_PRECONDITION
            return True

        answers: list[Any] = []
        await wait_until(refused)
        assert answers == []
        await confirm(served.channel)
        done = await set_level(served, 6)
        assert (done.before_units, done.units) == (3, 6)
        assert await level(served) == {"allotted": 6, "stored": 6}


async def test_units_that_were_in_flight_are_free_again_after_a_restore(settings: Settings, history: History) -> None:
    """Whoever holds them knows the window of before: 40 s later they are reclaimed in the present one as well."""
    async with serving_on(settings) as served:
        await apply_catalogue(served.channel)
        await served.sidecar().ask("flights", KEY, need=3, want=3)
    await history.back_up()
    async with serving_on(settings) as served:
        await served.sidecar().ask("flights", KEY, need=2, want=2)
    await history.set_back()
    async with serving_on(settings) as served:
        await confirm(served.channel)
        answer = await served.sidecar().ask("flights", KEY, need=1, want=1)
        assert (answer.window.timeline, answer.window.allotted) == (2, 4)
        own_s = iter(range(1000))
        resources = served.ledger.resources
        reclaimer = LeaseReclaimer(resources.pools.ingest, resources.log, own_time_s=lambda: next(own_s))
        assert sum([await reclaimer.look() for _ in range(40)]) == 0
        # Three of the window of before, the same three in the present one, and the one unit that nobody renews here.
        assert await reclaimer.look() == 3 + 3 + 1
        assert (await level(served))["allotted"] == 0


async def set_level(served: Serving, units: int) -> admin_pb2.SetLevelResponse:
    """Set how many seats are filled."""
    request = admin_pb2.SetLevelRequest(
        request_id=secrets.token_hex(8), tenant="acme", limit=LIMIT, key=[USER], units=units, reason="counted by hand"
    )
    answer: admin_pb2.SetLevelResponse = await admin_pb2_grpc.AdminServiceStub(served.channel).SetLevel(request)
    return answer
