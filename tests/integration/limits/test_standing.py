"""Levels and units in flight on a real Postgres."""

from __future__ import annotations

import asyncio
import random
import secrets
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc.aio
import pytest
from limits_support import kind, new_key
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc, limits_pb2
from tollkeeper_ledger.services.standing import LeaseReclaimer
from tollkeeper_ledger.services.usage import UsageIngest
from usage_support import Log, level_use

if TYPE_CHECKING:
    from limits_support import Serving, Sidecar

_FOREVER_US = 253_402_214_400_000_000


class Producer:
    """A producer with its log, which appends what it recorded."""

    def __init__(self, serving: Serving, holder: bytes) -> None:
        self._serving = serving
        self.ingest = UsageIngest(serving.ledger.resources.pools.ingest, embedded=True)
        self.log = Log(uuid4())
        self.holder = holder

    async def open(self, *, incarnation: int = 1, ended: tuple[bytes, ...] = (), ended_seq: int = 0) -> None:
        """Announce it."""
        self.log.incarnation = incarnation
        await self.ingest.open_producer(
            self.log.producer_id,
            incarnation=incarnation,
            holder=self.holder,
            version=1,
            ended=ended,
            ended_seq=ended_seq,
        )

    def record(self, limit: str, key: bytes, units: int, *, falls: bool = False, over: int = 0) -> None:
        """Record a rise or a fall."""
        now_us = self._serving.ledger.resources.clock.reading().now_us
        self.log.record(level_use(limit, key, self.holder, units, now_us=now_us, falls=falls, over=over))

    async def append(self, first: int = 0, *, closing: bool = False) -> Any:
        """Send the log from there on."""
        return await self.ingest.append(self.log.cut(first, closing=closing))


async def window(serving: Serving, window_id: bytes) -> dict[str, int]:
    """Read a window's row."""
    async with serving.ledger.resources.pools.ingest.acquire() as conn:
        row = await conn.fetchrow(
            "SELECT allotted, stored, stored_over FROM limit_window WHERE window_id = $1", window_id
        )
    return dict(row or {})


def reclaimer_of(serving: Serving, own: Own | None = None) -> LeaseReclaimer:
    """Give another replica's reclaimer, on the test's own time."""
    resources = serving.ledger.resources
    return LeaseReclaimer(resources.pools.ingest, resources.log, own_time_s=own)


async def leased(serving: Serving, limit: str, key: bytes, *, units: int) -> tuple[Sidecar, Producer, bytes]:
    """Give a holder with so many units of a limit, its producer, and the window."""
    sidecar = serving.sidecar()
    answer = await sidecar.ask(limit, key, need=units, want=units)
    assert kind(answer) == "lease", answer
    assert answer.lease.give == units
    producer = Producer(serving, sidecar.holder)
    await producer.open()
    return sidecar, producer, answer.window.window_id


@pytest.mark.parametrize("limit", ["seats", "flights"])
async def test_standing_limits_give_what_is_needed_and_never_a_pool(serving: Serving, limit: str) -> None:
    """Every holder leases from the ledger, nothing ahead of a small limit, and what is beyond it is denied."""
    key = new_key()
    amount = 10 if limit == "seats" else 5
    answers = await asyncio.gather(*(serving.sidecar().ask(limit, key, need=1, want=8) for _ in range(amount + 3)))
    assert sorted(map(kind, answers)) == ["denied"] * 3 + ["lease"] * amount
    assert {answer.lease.give for answer in answers if kind(answer) == "lease"} == {1}
    assert {(answer.window.start_us, answer.window.end_us) for answer in answers} == {(0, _FOREVER_US)}


async def test_a_fall_is_credited_once_however_often_it_comes(serving: Serving) -> None:
    """Repeats of a batch, at once and cut anew, lower the level once; the room is there for others."""
    key = new_key()
    _, producer, window_id = await leased(serving, "seats", key, units=10)
    producer.record("seats", key, 10)
    producer.record("seats", key, 4, falls=True)
    await producer.append()
    await asyncio.gather(*(producer.append() for _ in range(5)))
    assert await window(serving, window_id) == {"allotted": 6, "stored": 6, "stored_over": 0}
    answers = [await serving.sidecar().ask("seats", key, need=1, want=1) for _ in range(5)]
    assert list(map(kind, answers)) == ["lease"] * 4 + ["denied"]


async def test_a_fall_may_be_committed_before_its_rise(serving: Serving) -> None:
    """Another sidecar's log may be faster: the fall counts at once, and the level is right in the end."""
    key = new_key()
    _, riser, window_id = await leased(serving, "seats", key, units=3)
    faller = Producer(serving, secrets.token_bytes(16))
    await faller.open()
    faller.record("seats", key, 2, falls=True)
    outcome = await faller.append()
    assert (outcome.stored, outcome.quarantined) == (1, 0)
    riser.record("seats", key, 3)
    await riser.append()
    assert await window(serving, window_id) == {"allotted": 1, "stored": 1, "stored_over": 0}


async def test_a_level_never_falls_below_zero(serving: Serving) -> None:
    """A fall of more than was ever given is quarantined and credits nothing, also where nothing was given at all."""
    key = new_key()
    _, producer, window_id = await leased(serving, "seats", key, units=2)
    producer.record("seats", key, 3, falls=True)
    producer.record("seats", new_key(), 1, falls=True)
    outcome = await producer.append()
    assert (outcome.stored, outcome.quarantined) == (0, 2)
    assert await window(serving, window_id) == {"allotted": 2, "stored": 0, "stored_over": 0}
    async with serving.ledger.resources.pools.ingest.acquire() as conn:
        reasons = await conn.fetch(
            "SELECT DISTINCT reason FROM usage_quarantine WHERE producer_id = $1", producer.log.producer_id
        )
    assert [row["reason"] for row in reasons] == ["LEVEL_BELOW_ZERO"]


async def test_what_was_stored_beyond_a_soft_level_falls_first(serving: Serving) -> None:
    """Units without a lease never make room for more than the amount when they fall."""
    key = new_key()
    _, producer, window_id = await leased(serving, "soft-seats", key, units=2)
    producer.record("soft-seats", key, 2)
    producer.record("soft-seats", key, 3, over=3)
    await producer.append()
    assert await window(serving, window_id) == {"allotted": 2, "stored": 5, "stored_over": 3}
    producer.record("soft-seats", key, 4, falls=True)
    await producer.append(2)
    assert await window(serving, window_id) == {"allotted": 1, "stored": 1, "stored_over": 0}


async def test_falls_beside_asks_and_appends_lose_nothing(serving: Serving) -> None:
    """Sixteen producers rise and fall at random while holders ask: no deadlock, no unit lost or made."""
    key = new_key()
    chance = random.Random(7)
    world = 0
    outstanding = 0
    window_id = b""

    async def one(moves: list[int]) -> None:
        nonlocal world, outstanding, window_id
        sidecar = serving.sidecar()
        producer = Producer(serving, sidecar.holder)
        await producer.open()
        own = sent = 0
        for move in moves:
            if move > 0 or own == 0:
                answer = await sidecar.ask("seats", key, need=1, want=1)
                if kind(answer) != "lease":
                    continue
                window_id = answer.window.window_id
                if move > 1:
                    outstanding += 1
                    continue
                own, world = own + 1, world + 1
                producer.record("seats", key, 1)
            else:
                own, world = own - 1, world - 1
                producer.record("seats", key, 1, falls=True)
            assert world + outstanding <= 10
            await producer.append(sent)
            sent = len(producer.log.entries)

    await asyncio.gather(*(one([chance.choice((0, 0, 0, 1, 1, 2)) for _ in range(12)]) for _ in range(16)))
    assert await window(serving, window_id) == {"allotted": world + outstanding, "stored": world, "stored_over": 0}


async def test_what_an_ended_process_held_comes_back_once_its_log_is_in(serving: Serving) -> None:
    """Not before the log is committed to the end, and never twice; its records are not taken back."""
    key = new_key()
    sidecar, producer, window_id = await leased(serving, "seats", key, units=9)
    producer.record("seats", key, 2)
    producer.record("seats", key, 3)
    reclaimer = reclaimer_of(serving)
    dead, producer.holder = sidecar.holder, secrets.token_bytes(16)
    await producer.ingest.append(producer.log.cut(0, 1))
    await producer.open(incarnation=2, ended=(dead,), ended_seq=2)
    await reclaimer.take_back_ended()
    assert await window(serving, window_id) == {"allotted": 9, "stored": 2, "stored_over": 0}
    await producer.append(1)
    await asyncio.gather(*(reclaimer.take_back_ended() for _ in range(4)))
    assert await window(serving, window_id) == {"allotted": 5, "stored": 5, "stored_over": 0}
    # A return that was under way when the process died adds nothing.
    await sidecar.give_back(window_id, 4)
    assert await window(serving, window_id) == {"allotted": 5, "stored": 5, "stored_over": 0}


async def test_a_closed_producers_holder_has_ended(serving: Serving) -> None:
    """A clean stop whose returns were lost strands nothing."""
    key = new_key()
    _, producer, window_id = await leased(serving, "seats", key, units=6)
    producer.record("seats", key, 1)
    await producer.append(closing=True)
    await reclaimer_of(serving).take_back_ended()
    assert await window(serving, window_id) == {"allotted": 1, "stored": 1, "stored_over": 0}


async def test_what_was_settled_above_its_reserve_and_fell_keeps_nobody_from_giving_back(serving: Serving) -> None:
    """More comes back of such a level than is out of it: nothing goes below 0."""
    key = new_key()
    _, producer, window_id = await leased(serving, "seats", key, units=1)
    other = serving.sidecar()
    assert (await other.ask("seats", key, need=5, want=5)).lease.give == 5
    producer.record("seats", key, 3)
    producer.record("seats", key, 3, falls=True)
    await producer.append()
    await other.give_back(window_id, 5)
    assert await window(serving, window_id) == {"allotted": 0, "stored": 0, "stored_over": 0}
    answers = [await serving.sidecar().ask("seats", key, need=1, want=1) for _ in range(11)]
    assert list(map(kind, answers)) == ["lease"] * 10 + ["denied"]


async def test_what_comes_back_before_a_rise_is_owed_by_it(serving: Serving) -> None:
    """Its fall was committed first, and it was settled above its reserve: others give back, no unit goes twice."""
    key = new_key()
    _, riser, window_id = await leased(serving, "seats", key, units=1)
    other, faller = serving.sidecar(), Producer(serving, secrets.token_bytes(16))
    assert (await other.ask("seats", key, need=4, want=4)).lease.give == 4
    await faller.open()
    faller.record("seats", key, 3, falls=True)
    await faller.append()
    await other.give_back(window_id, 4)
    assert await window(serving, window_id) == {"allotted": 0, "stored": -3, "stored_over": 0}
    # Room is there for the whole limit, and for nothing more, before the rise and after it.
    third = serving.sidecar()
    assert (await third.ask("seats", key, need=10, want=10)).lease.give == 10
    assert kind(await third.ask("seats", key, need=1, want=1)) == "denied"
    riser.record("seats", key, 3)
    outcome = await riser.append()
    assert (outcome.stored, outcome.quarantined) == (1, 0)
    assert await window(serving, window_id) == {"allotted": 10, "stored": 0, "stored_over": 0}
    assert kind(await serving.sidecar().ask("seats", key, need=1, want=1)) == "denied"
    await third.give_back(window_id, 10)
    assert await window(serving, window_id) == {"allotted": 0, "stored": 0, "stored_over": 0}


async def report(sidecar: Sidecar, window_id: bytes, *, epoch: int, in_flight: int) -> limits_pb2.WindowUse:
    """Report, and renew a lease."""
    entry = limits_pb2.ConsumptionEntry(window_id=window_id, lease_epoch=epoch, in_flight=in_flight)
    answer = await sidecar.stub.ReportConsumption(
        limits_pb2.ReportConsumptionRequest(holder=sidecar.holder, entries=[entry])
    )
    use: limits_pb2.WindowUse = answer.uses[0]
    return use


class Own:
    """A process's own time, set by the test."""

    now_s = 1000.0

    def __call__(self) -> float:
        """Tell it."""
        return self.now_s


async def looks(reclaimer: LeaseReclaimer, own: Own, seconds: int) -> int:
    """Look once a second for so long; gives the units that came back."""
    units = 0
    for _ in range(seconds):
        own.now_s += 1
        units += await reclaimer.look()
    return units


async def test_units_in_flight_are_reclaimed_at_40_s_and_not_before(serving: Serving) -> None:
    """A renewal begins the 40 s anew; a lease that stood still is lost, with its returns and its renewals."""
    key = new_key()
    living, dead = serving.sidecar(), serving.sidecar()
    first = await living.ask("flights", key, need=2, want=2)
    second = await dead.ask("flights", key, need=3, want=3)
    assert (first.lease.lease_epoch, first.lease.valid_for_ms) == (1, 30_000)
    window_id = first.window.window_id
    own = Own()
    reclaimer = reclaimer_of(serving, own)
    await looks(reclaimer, own, 40)
    assert (await window(serving, window_id))["allotted"] == 5
    assert (await report(living, window_id, epoch=1, in_flight=2)).lease_epoch == 1
    await looks(reclaimer, own, 1)
    assert (await window(serving, window_id))["allotted"] == 2
    use = await report(dead, window_id, epoch=1, in_flight=3)
    assert (use.lease_epoch, use.allotted) == (2, 2)
    await dead.give_back(window_id, 3)
    assert (await window(serving, window_id))["allotted"] == 2
    again = await dead.ask("flights", key, need=3, want=3)
    assert (again.lease.give, again.lease.lease_epoch) == (3, 2)
    assert second.lease.granted_cum + 3 == again.lease.granted_cum


async def test_a_repeated_answer_renews_the_lease_that_it_tells_of(serving: Serving) -> None:
    """Whoever hears of a lease only by repeating its ask counts the time from then on: the 40 s begin anew as well."""
    key = new_key()
    sidecar = serving.sidecar()
    first = await sidecar.ask("flights", key, need=2, want=2, request_seq=1)
    own = Own()
    reclaimer = reclaimer_of(serving, own)
    await looks(reclaimer, own, 40)
    again = await sidecar.ask("flights", key, need=2, want=2, request_seq=1)
    assert (again.lease.give, again.lease.granted_cum) == (2, first.lease.granted_cum)
    await looks(reclaimer, own, 40)
    assert (await window(serving, first.window.window_id))["allotted"] == 2
    await looks(reclaimer, own, 1)
    assert (await window(serving, first.window.window_id))["allotted"] == 0


async def test_a_ledger_that_was_paused_takes_nothing_at_once(serving: Serving) -> None:
    """Time in which this process did not look counts for little: holders can renew first."""
    key = new_key()
    await serving.sidecar().ask("flights", key, need=1, want=1)
    own = Own()
    reclaimer = reclaimer_of(serving, own)
    await looks(reclaimer, own, 2)
    own.now_s += 3600
    assert await looks(reclaimer, own, 1) == 0


async def test_use_of_units_in_flight_is_what_flies_now(serving: Serving) -> None:
    """Figures fall again when units land, over all holders."""
    key = new_key()
    one, two = serving.sidecar(), serving.sidecar()
    window_id = (await one.ask("flights", key, need=2, want=2)).window.window_id
    await two.ask("flights", key, need=1, want=1)
    assert (await report(one, window_id, epoch=1, in_flight=2)).consumed == 2
    assert (await report(two, window_id, epoch=1, in_flight=1)).consumed == 3
    assert (await report(one, window_id, epoch=1, in_flight=0)).consumed == 1


async def set_level(serving: Serving, key: list[str], units: int, **changes: Any) -> admin_pb2.SetLevelResponse:
    """Set a level."""
    request = admin_pb2.SetLevelRequest(
        **{
            "request_id": secrets.token_hex(8), "tenant": "acme", "limit": "seats", "key": key, "units": units,
            "reason": "counted by hand", **changes,
        }
    )  # fmt: skip
    answer: admin_pb2.SetLevelResponse = await admin_pb2_grpc.AdminServiceStub(serving.channel).SetLevel(request)
    return answer


async def test_a_level_is_set_and_audited(serving: Serving) -> None:
    """The bound is the value plus unreturned leases; a repeat changes nothing; who, what and why are on record."""
    user = secrets.token_hex(4)
    request_id = secrets.token_hex(8)
    done = await set_level(serving, [user], 7, request_id=request_id)
    assert (done.before_units, done.units, done.leased_units, done.amount) == (0, 7, 0, 10)
    assert await set_level(serving, [user], 7, request_id=request_id) == done
    async with serving.ledger.resources.pools.ingest.acquire() as conn:
        key = await conn.fetchval("SELECT key_hash FROM limit_cursor WHERE key_values = $1", [user])
    answers = [await serving.sidecar().ask("seats", key, need=1, want=1) for _ in range(4)]
    assert list(map(kind, answers)) == ["lease"] * 3 + ["denied"]
    lower = await set_level(serving, [user], 4)
    assert (lower.before_units, lower.leased_units) == (7, 3)
    answers = [await serving.sidecar().ask("seats", key, need=1, want=1) for _ in range(4)]
    assert list(map(kind, answers)) == ["lease"] * 3 + ["denied"]
    async with serving.ledger.resources.pools.billing.acquire() as conn:
        said = await conn.fetchval("SELECT after::text FROM audit_log WHERE request_id = $1", request_id)
    assert "counted by hand" in said


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"units": -1}, "units"), ({"reason": ""}, "reason"), ({"limit": "small"}, "limit"), ({"key": []}, "key")],
)
async def test_a_bad_level_is_refused(serving: Serving, changes: dict[str, Any], field: str) -> None:
    """Each rule has its field; nothing is set."""
    asked = {"key": ["u"], "units": 1, **changes}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await set_level(serving, asked.pop("key"), asked.pop("units"), **asked)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (refused.value.details() or "")
