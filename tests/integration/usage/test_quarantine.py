# ruff: noqa: SIM300 - expected first, then actual
"""Records of quarantine, released or discarded: each comes to one end and counts at most once."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import grpc.aio
import pytest
import pytest_asyncio
from quarantine_support import RELEASER, act_of, discard, keys_of, release
from rpc_support import error_info
from tollkeeper.ledger.v1 import admin_pb2_grpc, quarantine_pb2
from tollkeeper_ledger.app import running
from tollkeeper_ledger.domain.errors import UnknownNameError
from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.domain.usage import Problem
from tollkeeper_ledger.domain.usage_quarantine import ActOutcome
from tollkeeper_ledger.services.usage_audit import verify_usage
from tollkeeper_ledger.services.usage_quarantine import Asked, Ended, find_refused, release_records
from tollkeeper_ledger.store.pool import connection, open_pool, transaction
from tollkeeper_ledger.store.usage_quarantine import read_acts
from usage_bench import add_catalogue, superuser
from usage_faults import POISON, ROLLUP_DIFFERENCES, held, refusing, waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tollkeeper_ledger.config import Settings
    from usage_bench import Bench
    from usage_support import Log

pytestmark = pytest.mark.asyncio

RELEASED, DUPLICATE, DISCARDED, REFUSED = ActOutcome
UNKNOWN_METER = Problem("METER_UNKNOWN", "quantities.meter")
UNKNOWN_TENANT = Problem("TENANT_UNKNOWN", "tenant")


def told(ended: Sequence[Ended]) -> list[tuple[ActOutcome, Problem | None, bool]]:
    """Give what became of records."""
    return [(one.outcome, one.problem, one.before) for one in ended]


async def refused_log(bench: Bench, name: str, *, meter: str, count: int = 3) -> Log:
    """Send records of a meter that nobody has declared, and one that is good."""
    log = await bench.new_log()
    log.record(
        *[
            bench.use(f"{name}-{at}", quantities=((meter, at + 1),), received_us=bench.now_us - 7)
            for at in range(count)
        ],
        bench.use(f"{name}-good"),
    )
    outcome = await bench.ingest.append(log.cut())
    assert (1, count) == (outcome.stored, outcome.quarantined)
    return log


async def declare(bench: Bench, *meters: str, tenants: tuple[str, ...] = ()) -> None:
    """Declare meters and tenants."""
    async with superuser(bench.url) as conn:
        await add_catalogue(conn, tenants, meters)


async def clean(bench: Bench) -> None:
    """See that sums, chain, quarantine and acts agree with each other."""
    assert [] == await bench.rows(ROLLUP_DIFFERENCES)
    billing = await open_pool(bench.url, role="tollkeeper_billing", size=1)
    try:
        async with connection(billing) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            assert [] == [one async for one in verify_usage(conn) if hasattr(one, "problem")]
    finally:
        billing.terminate()


async def counted(bench: Bench, name: str) -> list[tuple[str, int, int]]:
    """Give id, event time and receive time of stored records whose ids begin so."""
    rows = await bench.rows(
        "SELECT id, (extract(epoch FROM event_time) * 1e6)::bigint AS event_us,"
        " (extract(epoch FROM received_at) * 1e6)::bigint AS received_us"
        " FROM usage_record WHERE id LIKE $1 ORDER BY id",
        f"{name}-%",
    )
    return [(row["id"], row["event_us"], row["received_us"]) for row in rows]


async def test_a_released_record_counts_once_at_its_own_time(bench: Bench) -> None:
    """It has its id and both times; a second release, a resend and a repeat of its id add nothing."""
    log = await refused_log(bench, "once", meter="meter_once")
    keys = keys_of(log, 1, 2)
    await declare(bench, "meter_once")
    assert [(RELEASED, None, False)] * 2 == told(await release(bench, keys))
    times = (bench.now_us, bench.now_us - 7)
    assert [("once-0", *times), ("once-1", *times), ("once-good", bench.now_us, bench.now_us)] == await counted(
        bench, "once"
    )
    assert [(RELEASED, None, True)] * 2 == told(await release(bench, keys))
    assert [(RELEASED, None, True)] * 2 == told(await discard(bench, keys))
    assert (4, 0) == ((again := await bench.ingest.append(log.cut())).trimmed, again.stored)
    other = await bench.new_log()
    other.record(
        bench.use("once-0", quantities=(("meter_once", 1),)), bench.use("once-1", quantities=(("meter_once", 9),))
    )
    outcome = await bench.ingest.append(other.cut())
    assert (0, 1, 1) == (outcome.stored, outcome.duplicates, outcome.conflicts)
    assert 3 == len(await counted(bench, "once"))
    await clean(bench)


async def test_a_record_that_came_again_meanwhile_is_a_duplicate(bench: Bench) -> None:
    """Whoever sent it anew after the mend has it counted already: the release says so and adds nothing."""
    log = await refused_log(bench, "anew", meter="meter_anew", count=3)
    await declare(bench, "meter_anew")
    other = await bench.new_log()
    other.record(
        bench.use("anew-0", quantities=(("meter_anew", 1),)), bench.use("anew-1", quantities=(("meter_anew", 9),))
    )
    await bench.ingest.append(other.cut())
    expected = [(DUPLICATE, None, False), (REFUSED, Problem("CONFLICT", "id"), False), (RELEASED, None, False)]
    assert expected == told(await release(bench, keys_of(log, 1, 2, 3)))
    assert [(DUPLICATE, None, True)] == told(await release(bench, keys_of(log, 1)))
    assert 4 == len(await counted(bench, "anew"))
    await clean(bench)


async def test_of_many_at_once_one_decides(bench: Bench) -> None:
    """Releases and discards of the same records at the same time: each record comes to one end, told to all."""
    log = await refused_log(bench, "many", meter="meter_many", count=6)
    await declare(bench, "meter_many")
    keys = keys_of(log, *range(1, 7))
    calls = [call(bench, list(order)) for order in (keys, keys[::-1]) for call in (release, discard, release)]
    answers = [{one.key: one for one in answer} for answer in await asyncio.gather(*calls)]
    for key in keys:
        said = [answer[key] for answer in answers]
        assert 1 == len({one.outcome for one in said})
        assert 1 == sum(not one.before for one in said)
    released = sum(answers[0][key].outcome is RELEASED for key in keys)
    assert released + 1 == len(await counted(bench, "many"))
    await clean(bench)


async def test_a_release_that_is_killed_leaves_nothing_half_done(bench: Bench) -> None:
    """Killed after the append and before the mark, nothing is stored and the record waits; the next one stores it."""
    log = await refused_log(bench, "killed", meter="meter_killed")
    await declare(bench, "meter_killed")
    keys = keys_of(log, 1)

    async def unattempted() -> None:
        async with transaction(bench.pool) as conn:
            await release_records(conn, bench.ingest, RELEASER, Asked(keys, "", ""), await act_of(conn))

    for attempt in (unattempted, lambda: release(bench, keys)):
        async with held(bench, "LOCK TABLE usage_quarantine_act IN SHARE ROW EXCLUSIVE MODE"):
            call = asyncio.ensure_future(attempt())
            (pid,) = await waiting(bench, 1)
            assert [] == [one for one in await counted(bench, "killed") if one[0] == "killed-0"]
            async with superuser(bench.url) as conn:
                await conn.execute("SELECT pg_terminate_backend($1)", pid)
            if attempt is unattempted:
                with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
                    await call
                assert 1 == len(await counted(bench, "killed"))
                async with connection(bench.pool) as conn:
                    assert not (await find_refused(conn, keys[0], tenant="")).is_over
    assert [(RELEASED, None, False)] == told(await call)
    assert ["killed-0", "killed-good"] == [one[0] for one in await counted(bench, "killed")]
    await clean(bench)


async def test_what_is_still_poison_stays_with_its_new_reason(bench: Bench) -> None:
    """The others of the call are stored; what stays has the reason that was found last, and may be tried again."""
    log = await bench.new_log()
    log.record(
        bench.use("still-tenant", tenant="still-later", quantities=(("meter_still", 1),)),
        *[
            bench.use(f"still-{at}{'-poison' if at in (1, 4) else ''}", quantities=(("meter_still", 1),))
            for at in range(6)
        ],
        bench.use("still-below", quantities=(("meter_still", -1),)),
    )
    await bench.ingest.append(log.cut())
    keys = keys_of(log, *range(1, 9))
    assert [UNKNOWN_TENANT] + [UNKNOWN_METER] * 6 == [one.problem for one in await release(bench, keys[:7])]
    await declare(bench, tenants=("still-later",))
    assert [(REFUSED, UNKNOWN_METER, False)] == told(await release(bench, keys[:1]))
    await declare(bench, "meter_still")
    async with refusing(bench, "usage_record", "NEW.id LIKE '%-poison'", "data_exception"):
        ended = await release(bench, keys)
    below = (REFUSED, Problem("FIELD_OUT_OF_RANGE", "quantities.units"), False)
    good, poison = (RELEASED, None, False), (REFUSED, POISON, False)
    assert [good, good, poison, good, good, poison, good, below] == told(ended)
    async with connection(bench.pool) as conn:
        found = await find_refused(conn, keys[2], tenant="acme")
        assert (POISON, 2) == (found.problem, found.acts)
        acts = await read_acts(conn, (await find_refused(conn, keys[0], tenant="still-later")).row)
    assert [(REFUSED, UNKNOWN_TENANT), (REFUSED, UNKNOWN_METER), (RELEASED, None)] == [
        (act.outcome, act.problem) for act in acts
    ]
    assert 8 == len(await bench.rows("SELECT FROM usage_quarantine WHERE producer_id = $1", log.producer_id))
    assert [(RELEASED, None, False)] * 2 == told(await release(bench, [keys[2], keys[5]]))
    assert [(DISCARDED, None, False)] == told(await discard(bench, keys[7:]))
    assert [(DISCARDED, None, True)] == told(await release(bench, keys[7:]))
    assert 7 == len(await counted(bench, "still"))
    await clean(bench)


async def test_a_tenants_records_are_found_by_its_name_only(bench: Bench) -> None:
    """Asked for with another tenant's name a record is not there, and nothing happens to it."""
    log = await bench.new_log()
    log.record(
        bench.use("own-0", quantities=(("meter_own", 1),)),
        bench.use("own-1", tenant="globex", quantities=(("meter_own", 1),)),
    )
    await bench.ingest.append(log.cut())
    for call in (release, discard):
        for keys in (keys_of(log, 2), keys_of(log, 1, 2), keys_of(log, 3)):
            with pytest.raises(UnknownNameError) as caught:
                await call(bench, keys, tenant="acme")
            assert "USAGE_UNKNOWN" == caught.value.reason
    assert [] == await bench.rows("SELECT FROM usage_quarantine_act WHERE producer_id = $1", log.producer_id)
    assert [(DISCARDED, None, False)] == told(await discard(bench, keys_of(log, 1), tenant="acme"))
    (noted,) = await bench.rows("SELECT * FROM audit_log WHERE subject = $1", f"quarantine/{log.producer_id.hex}/1/1")
    assert ("ann", "DiscardQuarantined", bench.tenants["acme"]) == (noted["actor"], noted["action"], noted["tenant_id"])
    assert '"note": "never happened"' in noted["after"]
    await clean(bench)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM usage_quarantine_act WHERE producer_id = $1",
        "UPDATE usage_quarantine_act SET note = 'x' WHERE producer_id = $1",
        "DELETE FROM audit_log WHERE subject LIKE 'quarantine/' || replace($1::uuid::text, '-', '') || '/%'",
    ],
)
async def test_an_act_that_was_changed_or_is_gone_is_found(bench: Bench, statement: str) -> None:
    """Whoever takes back a release or a discard behind the ledger's back is named by the audit."""
    log = await refused_log(bench, uuid.uuid4().hex, meter="meter_hidden", count=1)
    await discard(bench, keys_of(log, 1))
    async with superuser(bench.url) as conn:
        attempt = conn.transaction()
        await attempt.start()
        await conn.execute("SET LOCAL session_replication_role = replica")
        await conn.execute(statement, log.producer_id)
        await conn.set_type_codec("jsonb", encoder=str, decoder=json.loads, schema="pg_catalog")
        found = [one async for one in verify_usage(conn) if hasattr(one, "problem")]
        await attempt.rollback()
    assert [("usage_quarantine_act", True)] == [(one.table, log.producer_id.hex in one.row) for one in found]


@pytest.mark.parametrize("record", [b"{2}", b'{"attributes":[[1]]}', b"\xff"])
async def test_a_record_that_can_not_be_read_any_more_is_named_and_stays(
    bench: Bench, admin: Any, record: bytes
) -> None:
    """Changed behind the ledger's back: audit and lists go on, and it is neither released nor found by a tenant."""
    name = f"unread-{record.hex()}"
    log = await refused_log(bench, name, meter=f"meter_{record.hex()}", count=2)
    await declare(bench, f"meter_{record.hex()}")
    assert [(RELEASED, None, False)] == told(await release(bench, keys_of(log, 1)))
    async with superuser(bench.url) as conn:
        await conn.set_type_codec("jsonb", encoder=str, decoder=json.loads, schema="pg_catalog")
        await conn.execute("SET session_replication_role = replica")
        statement = "UPDATE usage_quarantine SET record = $2 WHERE producer_id = $1"
        before = await conn.fetch("SELECT seq, record FROM usage_quarantine WHERE producer_id = $1", log.producer_id)
        await conn.execute(statement, log.producer_id, record)
        try:
            async with conn.transaction(isolation="repeatable_read", readonly=True):
                found = [one async for one in verify_usage(conn) if hasattr(one, "problem")]
            assert [("usage_quarantine", True)] * 2 == [(one.table, log.producer_id.hex in one.row) for one in found]
            changed = Problem("RECORD_CHANGED", "")
            assert [(REFUSED, changed, False)] == told(await release(bench, keys_of(log, 2)))
            with pytest.raises(UnknownNameError):
                await release(bench, keys_of(log, 2), tenant="acme")
            key = str(keys_of(log, 2)[0])
            shown = await admin.GetQuarantined(quarantine_pb2.GetQuarantinedRequest(record=key))
            assert ("", "", "RECORD_CHANGED") == (shown.record.tenant, shown.record.id, shown.record.reason)
            listed = await admin.ListQuarantine(quarantine_pb2.ListQuarantineRequest(reason="RECORD_CHANGED"))
            assert key in [one.record for one in listed.records]
        finally:
            await conn.executemany(f"{statement} AND seq = $3", [(log.producer_id, *row[::-1]) for row in before])
    assert [(RELEASED, None, False)] == told(await release(bench, keys_of(log, 2)))
    await clean(bench)


async def test_what_was_received_long_ago_is_released_while_its_id_is_kept(bench: Bench) -> None:
    """A record that came too long ago for an append is stored by a release with both of its times."""
    day_us = 86_400_000_000
    log = await bench.new_log()
    log.record(
        bench.use("long-0", event_us=bench.now_us - 20 * day_us, received_us=bench.now_us - 20 * day_us),
        bench.use("long-1", event_us=bench.now_us - 46 * day_us, received_us=bench.now_us - 20 * day_us),
    )
    assert 2 == (await bench.ingest.append(log.cut())).quarantined
    async with connection(bench.pool) as conn:
        await bench.ingest.need_months(conn, [bench.now_us - 46 * day_us], from_us(bench.now_us))
    expired = Problem("DEDUP_EXPIRED", "event_time_us")
    assert [(RELEASED, None, False), (REFUSED, expired, False)] == told(await release(bench, keys_of(log, 1, 2)))
    assert [("long-0", bench.now_us - 20 * day_us, bench.now_us - 20 * day_us)] == await counted(bench, "long")
    await clean(bench)


@pytest_asyncio.fixture
async def admin(bench: Bench, ledger_settings: Settings) -> AsyncIterator[Any]:
    """Give operators' calls of a ledger on the bench's database."""
    async with running(ledger_settings) as ledger, grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
        yield admin_pb2_grpc.AdminServiceStub(channel)


async def test_operators_list_show_release_and_discard(bench: Bench, admin: Any) -> None:
    """Pages by tenant and reason; a repeated call gets its answer again; what is done with is listed when asked for."""
    log = await bench.new_log()
    tenants = ("acme", "globex", "acme", 'acme","tenant":"globex')
    log.record(
        *[bench.use(f"rpc-{at}", tenant=name, quantities=(("meter_rpc", 1),)) for at, name in enumerate(tenants)]
    )
    await bench.ingest.append(log.cut())
    names = [str(key) for key in keys_of(log, 1, 2, 3, 4)]

    async def listed(**asked: Any) -> list[tuple[str, str]]:
        found, token = [], ""
        while True:
            request = quarantine_pb2.ListQuarantineRequest(page_size=2, page_token=token, **asked)
            answer = await admin.ListQuarantine(request)
            found += [(one.record, one.reason) for one in answer.records if one.record in names]
            if not (token := answer.next_page_token):
                return found

    unknown = [(names[0], "METER_UNKNOWN"), (names[1], "METER_UNKNOWN"), (names[2], "METER_UNKNOWN")]
    assert [*unknown, (names[3], "FIELD_INVALID")] == await listed()
    assert [unknown[0], unknown[2]] == await listed(tenant="acme")
    assert [unknown[1]] == await listed(tenant="globex", reason="METER_UNKNOWN")
    assert [] == await listed(tenant="globex", reason="CONFLICT")
    await declare(bench, "meter_rpc")
    request = quarantine_pb2.ReleaseQuarantinedRequest(request_id="r-1", records=names[:1], tenant="acme", note="now")
    first = await admin.ReleaseQuarantined(request)
    assert [(names[0], quarantine_pb2.QUARANTINE_STATE_RELEASED, False)] == [
        (one.record, one.state, one.before) for one in first.results
    ]
    assert first == await admin.ReleaseQuarantined(request)
    assert 1 == len(await counted(bench, "rpc"))
    request = quarantine_pb2.DiscardQuarantinedRequest(request_id="d-1", records=names[:2])
    assert (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_REQUIRED") == await refusal(admin.DiscardQuarantined(request))
    request = quarantine_pb2.DiscardQuarantinedRequest(request_id="d-2", records=names[:2], note="not ours")
    states = [one.state for one in (await admin.DiscardQuarantined(request)).results]
    assert [quarantine_pb2.QUARANTINE_STATE_RELEASED, quarantine_pb2.QUARANTINE_STATE_DISCARDED] == states
    assert [unknown[2]] == await listed(reason="METER_UNKNOWN")
    assert unknown == (await listed(ended=True))[:3]
    shown = await admin.GetQuarantined(quarantine_pb2.GetQuarantinedRequest(record=names[1], tenant="globex"))
    assert [("operator", "not ours")] == [(act.actor, act.note) for act in shown.acts]
    assert ("rpc-1", 1) == (json.loads(shown.json)["id"], shown.record.quantities[0].units)
    for name, code in ((names[1], "USAGE_UNKNOWN"), (f"{'0' * 32}-1", "USAGE_UNKNOWN"), ("x-1", "FIELD_INVALID")):
        asked = quarantine_pb2.GetQuarantinedRequest(record=name, tenant="acme")
        assert code == (await refusal(admin.GetQuarantined(asked)))[1]
    await clean(bench)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    """Give code and reason of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), error_info(caught.value).reason
