# ruff: noqa: SIM300 - expected first, then actual
"""Reservations that end elsewhere than at their home: one outcome stands, and the home hears of it until it says so."""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
from base64 import urlsafe_b64encode
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from tollkeeper.ledger.v1 import limits_pb2, limits_pb2_grpc, usage_pb2_grpc
from tollkeeper.quota.v1 import quota_pb2, usage_pb2
from tollkeeper_ledger.app import running
from tollkeeper_ledger.domain.pseudonyms import PseudonymKey
from tollkeeper_ledger.domain.usage import FLAG_EXCESS, FLAG_EXPIRED, FLAG_SYSTEM_ID
from usage_bench import open_bench, superuser
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tollkeeper_ledger.config import Settings
    from usage_bench import Bench

pytestmark = pytest.mark.asyncio

MINUTE_US = 60_000_000


@pytest_asyncio.fixture
async def channel(bench: Bench, ledger_settings: Settings) -> AsyncIterator[grpc.aio.Channel]:
    """Give a channel to a ledger on the bench's database."""
    async with running(ledger_settings) as ledger, grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as opened:
        yield opened


class Reserved:
    """A reservation as a sidecar would have made it, with its token."""

    def __init__(self, bench: Bench, key: Any, *, units: int = 7, lives_us: int = MINUTE_US, model: str = "m") -> None:
        self.home = secrets.token_bytes(16)
        self.reservation_id = secrets.token_bytes(16)
        self.record_id = f"r/{self.reservation_id.hex()}"
        said = limits_pb2.ReservationToken(
            reservation_id=self.reservation_id,
            tenant="acme",
            home=self.home,
            expires_us=bench.now_us + lives_us,
            costs=[limits_pb2.TokenCost(meter="requests", units=units)],
            attributes=[limits_pb2.TokenAttribute(name="model", value=model)],
        )
        self.content = b"\x01" + key["key_id"].to_bytes(4, "big") + said.SerializeToString()
        self.token = self.signed(key["secret"])

    def signed(self, secret: bytes) -> str:
        """Give the token under a key."""
        whole = self.content + hmac.digest(secret, self.content, "sha256")
        return urlsafe_b64encode(whole).rstrip(b"=").decode()


@pytest_asyncio.fixture
async def key(bench: Bench) -> Any:
    """Give the newest key for tokens."""
    rows = await bench.rows("SELECT key_id, secret FROM token_key ORDER BY key_id DESC LIMIT 1")
    return rows[0]


class Home:
    """The watch stream of a reservation's home."""

    def __init__(self, channel: grpc.aio.Channel, home: bytes) -> None:
        self._says: asyncio.Queue[limits_pb2.WatchLimitsRequest] = asyncio.Queue()
        hello = limits_pb2.WatchHello(protocol_version=1, holder=secrets.token_bytes(16), producer_id=home)
        self._says.put_nowait(limits_pb2.WatchLimitsRequest(hello=hello))
        self.heard: asyncio.Queue[limits_pb2.Settlement] = asyncio.Queue()
        self.call: Any = limits_pb2_grpc.LimitServiceStub(channel).WatchLimits(self._requests())

    async def _requests(self) -> AsyncIterator[limits_pb2.WatchLimitsRequest]:
        while True:
            yield await self._says.get()

    async def listen(self) -> None:
        """Take in outcomes until cancelled."""
        async for message in self.call:
            for settlement in message.settlements.settlements:
                self.heard.put_nowait(settlement)

    async def next(self) -> tuple[bytes, dict[str, int]]:
        """Wait for an outcome."""
        async with asyncio.timeout(60):
            settlement = await self.heard.get()
        return settlement.reservation_id, dict(settlement.units)

    def acknowledge(self, reservation_id: bytes) -> None:
        """Say that an outcome was taken in."""
        taken = limits_pb2.AcknowledgeSettlements(reservation_ids=[reservation_id])
        self._says.put_nowait(limits_pb2.WatchLimitsRequest(acknowledge=taken))


@asynccontextmanager
async def home_of(channel: grpc.aio.Channel, home: bytes) -> AsyncIterator[Home]:
    """Follow a home's stream until the block ends."""
    stream = Home(channel, home)
    listener = asyncio.create_task(stream.listen())
    try:
        yield stream
    finally:
        stream.call.cancel()
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)


def settlement(token: str, units: int | None, **more: Any) -> quota_pb2.SettleReservationRequest:
    """Give a settlement of so many requests; None names no quantity."""
    quantities = [] if units is None else [usage_pb2.Quantity(meter="requests", units=units)]
    return quota_pb2.SettleReservationRequest(token=token, quantities=quantities, **more)


def per_meter(quantities: Any) -> dict[str, int]:
    """Give quantities by meter."""
    return {quantity.meter: quantity.units for quantity in quantities}


async def kept(bench: Bench, reserved: Reserved) -> list[list[int]]:
    """Give the units of the outcomes that are kept for a reservation."""
    rows = await bench.rows("SELECT units FROM settlement WHERE reservation_id = $1", reserved.reservation_id)
    return [row["units"] for row in rows]


async def forgotten(bench: Bench, reserved: Reserved) -> None:
    """Wait until the ledger has forgotten the outcome."""

    async def gone() -> bool:
        return not await kept(bench, reserved)

    await wait_until(gone)


async def test_a_home_hears_of_an_outcome_until_it_acknowledges(bench: Bench, channel: Any, key: Any) -> None:
    """Kept with the record, told while connected and on every later stream, forgotten once acknowledged."""
    reserved = Reserved(bench, key)
    async with home_of(channel, reserved.home) as home:
        log = await bench.new_log()
        ended = bench.use(reserved.record_id, quantities=(("requests", 4),), flags=FLAG_SYSTEM_ID, home=reserved.home)
        log.record(bench.use("before"), ended, bench.use("after"))
        await bench.ingest.append(log.cut())
        expected = (reserved.reservation_id, {"requests": 4})
        assert expected == await home.next()
    async with home_of(channel, reserved.home) as home:
        assert expected == await home.next()
        assert [[4]] == await kept(bench, reserved)
        home.acknowledge(reserved.reservation_id)
        await forgotten(bench, reserved)


async def test_only_its_home_makes_the_ledger_forget(bench: Bench, channel: Any, key: Any) -> None:
    """An acknowledgement of another home changes nothing."""
    reserved = Reserved(bench, key)
    other = Reserved(bench, key)
    stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
    await stub.SettleReservation(settlement(reserved.token, 4))
    await stub.SettleReservation(settlement(other.token, 4))
    async with home_of(channel, other.home) as stranger:
        stranger.acknowledge(reserved.reservation_id)
        # Acknowledged in order: when its own is forgotten, the other's was looked at.
        stranger.acknowledge(other.reservation_id)
        await forgotten(bench, other)
    assert [[4]] == await kept(bench, reserved)


async def test_a_homes_own_record_is_no_outcome_elsewhere(bench: Bench) -> None:
    """A record that its home sent leaves nothing to tell."""
    log = await bench.new_log()
    record_id = f"r/{secrets.token_bytes(16).hex()}"
    log.record(bench.use(record_id, flags=FLAG_SYSTEM_ID, home=log.producer_id.bytes))
    await bench.ingest.append(log.cut())
    assert [] == await bench.rows("SELECT 1 FROM settlement WHERE home = $1", log.producer_id)


async def test_the_first_committed_outcome_stands(bench: Bench, key: Any) -> None:
    """Home and another settle at once with different quantities: one is stored, the other quarantined, whoever wins."""
    for round_number in range(10):
        reserved = Reserved(bench, key)
        logs = [await bench.new_log() for _ in range(3)]
        for units, log in enumerate(logs):
            home = b"" if units == 0 else reserved.home
            quantities = (("requests", units),)
            log.record(bench.use(reserved.record_id, quantities=quantities, flags=FLAG_SYSTEM_ID, home=home))
        outcomes = await asyncio.gather(*(bench.ingest.append(log.cut()) for log in logs))
        assert (1, 2) == (sum(one.stored for one in outcomes), sum(one.conflicts for one in outcomes)), round_number
        winner = next(units for units, outcome in enumerate(outcomes) if outcome.stored)
        assert ([] if winner == 0 else [[winner]]) == await kept(bench, reserved)


ENDS = (
    (4, {"requests": 3}, {}, FLAG_SYSTEM_ID),
    (7, {}, {}, FLAG_SYSTEM_ID),
    (9, {}, {"requests": 2}, FLAG_SYSTEM_ID | FLAG_EXCESS),
    (0, {"requests": 7}, {}, FLAG_SYSTEM_ID),
    (None, {"requests": 7}, {}, FLAG_SYSTEM_ID),
)


@pytest.mark.parametrize("end", ENDS, ids=["below", "at", "above", "zero", "nothing"])
async def test_the_ledger_settles(bench: Bench, channel: Any, key: Any, end: Any) -> None:
    """Below, at, above the reserve, at zero: recorded once with the token's attributes, told to home, repeats alike."""
    used, refunded, excess, flags = end
    reserved = Reserved(bench, key)
    stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
    first = await stub.SettleReservation(settlement(reserved.token, used))
    again = await stub.SettleReservation(settlement(reserved.token, used))
    for answer, repeated in ((first, False), (again, True)):
        assert (refunded, excess, reserved.record_id, False, repeated) == (
            per_meter(answer.refunded),
            per_meter(answer.excess),
            answer.record_id,
            answer.expired,
            answer.repeated_call,
        )
    rows = await bench.rows("SELECT flags, units, attributes FROM usage_record WHERE id = $1", reserved.record_id)
    assert [(flags, [used or 0], '{"model": "m"}')] == [tuple(row) for row in rows]
    async with home_of(channel, reserved.home) as home:
        assert (reserved.reservation_id, {"requests": used or 0}) == await home.next()
    text = reserved.record_id.encode()
    assert [] == await bench.rows("SELECT 1 FROM usage_quarantine WHERE position($1 IN record) > 0", text)


async def test_the_same_end_at_ledger_and_sidecar_is_one_record(bench: Bench, channel: Any, key: Any) -> None:
    """A settlement tried at a sidecar and, unheard, again at the ledger is a duplicate there, not a conflict."""
    reserved = Reserved(bench, key)
    stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
    await stub.SettleReservation(settlement(reserved.token, 4))
    log = await bench.new_log()
    same = {"quantities": (("requests", 4),), "attributes": (("model", "m"),), "flags": FLAG_SYSTEM_ID}
    log.record(bench.use(reserved.record_id, home=reserved.home, **same))
    outcome = await bench.ingest.append(log.cut())
    assert (0, 1, 0) == (outcome.stored, outcome.duplicates, outcome.conflicts)


async def test_what_a_meter_of_the_settlement_hides_is_hidden(
    new_database: Callable[[], str], ledger_settings: Settings
) -> None:
    """Of the settlement and of the reservation, whatever other meters declare; what is a pseudonym already stays."""
    signed = "p1." + "x" * 22
    url = await asyncio.to_thread(new_database)
    async with open_bench(url) as bench:
        async with superuser(url) as conn:
            await conn.execute("UPDATE meter SET attributes = '{model,zone}' WHERE name = 'requests'")
            await conn.execute(
                "UPDATE meter SET attributes = '{model}', pseudonymised = '{model}' WHERE name = 'context_tokens'"
            )
        settings = ledger_settings.model_copy(update={"database_url": url})
        async with running(settings) as ledger, grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
            stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
            (key,) = await bench.rows("SELECT key_id, secret FROM token_key ORDER BY key_id DESC LIMIT 1")
            names = []
            for attributes, of_the_token in (({"model": "n"}, "m"), ({}, "m"), ({}, "n"), ({}, signed)):
                reserved = Reserved(bench, key, model=of_the_token)
                both = settlement(reserved.token, 4, attributes={**attributes, "zone": "z"})
                both.quantities.append(usage_pb2.Quantity(meter="context_tokens", units=1))
                await stub.SettleReservation(both)
                rows = await bench.rows("SELECT attributes FROM usage_record WHERE id = $1", reserved.record_id)
                names += [json.loads(row["attributes"]) for row in rows]
        (made,) = await bench.rows("SELECT version, secret FROM pseudonym_key")
        own = PseudonymKey(made["version"], made["secret"])
        n, m = own.pseudonym("model", "n"), own.pseudonym("model", "m")
        assert [{"model": model, "zone": "z"} for model in (n, m, n, signed)] == names


async def test_concurrent_ends_at_the_ledger_have_one_outcome(bench: Bench, channel: Any, key: Any) -> None:
    """Twenty settlements at once: one record, the same answer for all."""
    reserved = Reserved(bench, key)
    stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
    calls = [stub.SettleReservation(settlement(reserved.token, 1 + n % 5)) for n in range(20)]
    answers = await asyncio.gather(*calls)
    assert 1 == sum(not answer.repeated_call for answer in answers)
    assert 1 == len({tuple(per_meter(answer.refunded).items()) for answer in answers})
    rows = await bench.rows("SELECT units FROM usage_record WHERE id = $1", reserved.record_id)
    assert 1 == len(rows)


async def test_a_settlement_after_expiry_is_recorded_and_flagged(bench: Bench, channel: Any, key: Any) -> None:
    """Late use is billed; nothing goes back."""
    reserved = Reserved(bench, key, lives_us=-MINUTE_US)
    stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
    answer = await stub.SettleReservation(settlement(reserved.token, 3))
    assert (True, {}) == (answer.expired, per_meter(answer.refunded))
    rows = await bench.rows("SELECT flags, units FROM usage_record WHERE id = $1", reserved.record_id)
    assert [(FLAG_SYSTEM_ID | FLAG_EXPIRED, [3])] == [tuple(row) for row in rows]


async def test_released_at_the_ledger_is_not_settled(bench: Bench, channel: Any, key: Any) -> None:
    """A release is repeatable and refuses use afterwards; the outcome at zero is told to home."""
    reserved = Reserved(bench, key)
    stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
    request = quota_pb2.ReleaseReservationRequest(token=reserved.token)
    first, again = await stub.ReleaseReservation(request), await stub.ReleaseReservation(request)
    assert ({"requests": 7}, False, True) == (per_meter(first.refunded), first.repeated_call, again.repeated_call)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.SettleReservation(settlement(reserved.token, 1))
    assert grpc.StatusCode.FAILED_PRECONDITION == refused.value.code()
    assert [[0]] == await kept(bench, reserved)


async def test_forged_tokens_are_refused(bench: Bench, channel: Any, key: Any) -> None:
    """Another key, a changed byte, a truncated or empty token: INVALID_ARGUMENT without the token, nothing stored."""
    reserved = Reserved(bench, key)
    stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
    middle = len(reserved.token) // 2
    changed = "A" if reserved.token[middle] != "A" else "B"
    for forged in (
        reserved.signed(secrets.token_bytes(32)),
        reserved.token[:middle] + changed + reserved.token[middle + 1 :],
        reserved.token[:-4],
        reserved.token + "!",
        "",
        "x" * 100_000,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.SettleReservation(settlement(forged, 1))
        assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()
        assert not forged or forged not in (refused.value.details() or "")
    assert [] == await bench.rows("SELECT 1 FROM usage_id WHERE id = $1", reserved.record_id)


async def test_bad_settlements_are_refused_and_store_nothing(bench: Bench, channel: Any, key: Any) -> None:
    """An unknown meter, a meter twice, units out of range, a time too late: refused with the reservation still open."""
    reserved = Reserved(bench, key)
    stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
    twice = [usage_pb2.Quantity(meter="requests", units=1)] * 2
    late = settlement(reserved.token, 1)
    late.event_time.FromMicroseconds(bench.now_us - 36 * 86_400_000_000)
    for bad, code in (
        (settlement(reserved.token, -1), grpc.StatusCode.INVALID_ARGUMENT),
        (settlement(reserved.token, 2**53), grpc.StatusCode.INVALID_ARGUMENT),
        (quota_pb2.SettleReservationRequest(token=reserved.token, quantities=twice), grpc.StatusCode.INVALID_ARGUMENT),
        (
            quota_pb2.SettleReservationRequest(token=reserved.token, quantities=[usage_pb2.Quantity(meter="nope")]),
            grpc.StatusCode.NOT_FOUND,
        ),
        (late, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.SettleReservation(bad)
        assert code == refused.value.code(), bad
    assert [] == await bench.rows("SELECT 1 FROM usage_id WHERE id = $1", reserved.record_id)
    answer = await stub.SettleReservation(settlement(reserved.token, 7))
    assert not answer.repeated_call


async def test_a_settlement_at_the_ledger_is_as_late_as_its_meters_allow(
    bench: Bench, key: Any, ledger_settings: Settings
) -> None:
    """A meter that allows a minute back and nothing ahead: what lies further is refused, and nothing stored."""
    async with superuser(bench.url) as conn:
        await conn.execute("UPDATE meter SET late_max_s = 60, early_max_s = 0 WHERE name = 'requests'")
    try:
        async with running(ledger_settings) as ledger, grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as opened:
            stub: Any = usage_pb2_grpc.UsageServiceStub(opened)
            reserved = Reserved(bench, key)
            for units, far_us in ((3, -10 * MINUTE_US), (None, -10 * MINUTE_US), (3, 10 * MINUTE_US)):
                request = settlement(reserved.token, units)
                request.event_time.FromMicroseconds(bench.now_us + far_us)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.SettleReservation(request)
                assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()
                said = dict(refused.value.trailing_metadata() or ())["grpc-status-details-bin"]
                assert b"60 s back to 0 s ahead" in said
            assert [] == await bench.rows("SELECT 1 FROM usage_id WHERE id = $1", reserved.record_id)
            answer = await stub.SettleReservation(settlement(reserved.token, 3))
            assert {"requests": 4} == per_meter(answer.refunded)
    finally:
        async with superuser(bench.url) as conn:
            await conn.execute("UPDATE meter SET late_max_s = DEFAULT, early_max_s = DEFAULT WHERE name = 'requests'")
