"""Periods become invoices: once each, without gaps in the numbers, whatever runs at the same time or dies."""

from __future__ import annotations

import asyncio
import hashlib
import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from billing_bench import amounts, catalogue, superuser, use
from tollkeeper_ledger.domain.catalogue.canonical import canonical_json
from tollkeeper_ledger.domain.errors import PreconditionError
from tollkeeper_ledger.services.invoice_verify import reproduce_invoice
from tollkeeper_ledger.services.invoices import preview_invoice
from tollkeeper_ledger.services.invoices_close import Closed, close_due
from tollkeeper_ledger.services.pdf.render import render_pdf
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from billing_bench import BillingBench
    from tollkeeper_ledger.services.invoice_run import Progress

pytestmark = pytest.mark.asyncio

TENANT_TABLES = (
    "tenant",
    "subscription",
    "subscription_phase",
    "billing_segment",
    "limit_state",
    "invoice",
    "invoice_line",
    "audit_log",
)

HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)
MILLION = 1_000_000


def made(steps: Sequence[Progress]) -> int:
    """Count the invoices that a run made."""
    return sum(1 for step in steps if step.invoice is not None)


async def numbers_of(bench: BillingBench) -> list[int]:
    """Give all serial numbers in order."""
    return [row["serial"] for row in await bench.rows("SELECT serial FROM invoice ORDER BY serial")]


async def test_a_period_becomes_one_invoice(bench: BillingBench) -> None:
    """Usage of an hour is rated with fee, included units and both meters; the numbers say how much was what."""
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    middle = bench.start + HOUR / 2
    await bench.send(
        log,
        *(use(f"a{n}", middle, context_tokens=600_000, generated_tokens=5_000) for n in range(4)),
        use("next", bench.start + HOUR, context_tokens=7),
        watermark=bench.start + HOUR,
    )
    first, last = await bench.run()
    assert (first.due, first.done, first.invoice) == (1, 0, None)
    assert (last.due, last.done) == (1, 1)
    (document,) = await bench.documents("code")
    assert amounts(document) == {"base": 2000, "context_tokens": 350, "generated_tokens": 20}
    assert tuple(
        document[name] for name in ("subtotal_minor", "tax_minor", "total_minor", "number", "currency", "record_count")
    ) == (2370, 0, 2370, "TK-000001", "USD", 4)
    assert document["manifest"]["not_waited_for"] == []
    assert [(head["stream"], head["position"]) for head in document["manifest"]["chain_heads"]] == [(0, 1)]
    lines = await bench.rows("SELECT line, meter, amount_minor FROM invoice_line ORDER BY line")
    assert [tuple(row) for row in lines] == [(1, "", 2000), (2, "context_tokens", 350), (3, "generated_tokens", 20)]
    assert made(await bench.run()) == 0
    (entry,) = await bench.rows("SELECT subject, actor, request_id, after FROM audit_log WHERE action = 'RunInvoices'")
    assert tuple(entry) == ("invoice/TK-000001", "test", "run", '{"currency": "USD", "total_minor": 2370}')


async def test_the_grace_is_kept_and_an_open_producer_is_waited_for(bench: BillingBench) -> None:
    """Nothing closes in its grace, nor while a living producer has not passed the end; six hours end the waiting."""
    await bench.apply(catalogue(bench.start, "code", "conv"))
    log = await bench.new_log()
    end = bench.start + HOUR
    await bench.send(log, use("a", bench.start, context_tokens=1), watermark=bench.start, tenants=("code",))
    await bench.set_now(end + GRACE - timedelta(seconds=1))
    assert [(step.due, step.done) for step in await bench.run()] == [(0, 0)]
    await bench.set_now(end + GRACE)
    steps = await bench.run()
    assert [step.held_tenant for step in steps if step.held_tenant] == ["code"]
    assert log.producer_id.hex in next(step.held_reason for step in steps if step.held_tenant)
    assert (made(steps), await bench.documents("code"), len(await bench.documents("conv"))) == (1, [], 1)
    await bench.send(log, watermark=end - timedelta(microseconds=1))
    assert made(await bench.run(only="code")) == 0
    await bench.send(log, watermark=end)
    assert made(await bench.run(only="code")) == 1
    await bench.set_now(end + HOUR + timedelta(hours=6))
    await bench.run(only="code")
    _, late = await bench.documents("code")
    assert [log.producer_id.hex] == [text.split()[0] for text in late["manifest"]["not_waited_for"]]


async def test_concurrent_runs_make_each_invoice_once(bench: BillingBench) -> None:
    """Four runs at once over five tenants and four hours: twenty invoices, numbers 1 to 20, one per period."""
    names = [f"t{n}" for n in range(5)]
    await bench.apply(catalogue(bench.start, *names))
    await bench.set_now(bench.start + 4 * HOUR + GRACE)
    runs = await asyncio.gather(*(bench.run() for _ in range(4)))
    assert sum(made(steps) for steps in runs) == 20
    assert list(range(1, 21)) == await numbers_of(bench)
    periods = await bench.rows("SELECT count(DISTINCT (tenant_id, subscription_id, period_start)) FROM invoice")
    assert periods[0][0] == 20
    for name in names:
        starts = [document["period"]["start"] for document in await bench.documents(name)]
        assert len(set(starts)) == 4


async def test_a_close_without_its_invoice_is_picked_up(bench: BillingBench) -> None:
    """A run that died between close and invoice: the next makes that invoice from the stored inputs, once."""
    await bench.apply(catalogue(bench.start, "code"))
    await bench.set_now(bench.start + HOUR + GRACE)
    (row,) = await bench.rows("SELECT tenant_id, subscription_id FROM subscription")
    async with transaction(bench.billing) as conn:
        (outcome,) = await close_due(conn, [(row["tenant_id"], row["subscription_id"])])
    assert isinstance(outcome, Closed)
    assert await bench.documents("code") == []
    first, second = await asyncio.gather(bench.run(), bench.run())
    assert made(first) + made(second) == 1
    assert made(await bench.run()) == 0
    assert await numbers_of(bench) == [1]


@pytest.mark.parametrize("seed", range(3))
async def test_killed_runs_leave_no_gap_and_no_double(bench: BillingBench, seed: int) -> None:
    """Connections of runs are killed at random moments until all is done: every period once, numbers without a gap."""
    chance = random.Random(seed)
    names = [f"t{n}" for n in range(3)]
    await bench.apply(catalogue(bench.start, *names))
    await bench.set_now(bench.start + 8 * HOUR + GRACE)
    finished = asyncio.Event()
    killed = 0

    async def kill() -> None:
        nonlocal killed
        async with superuser(bench.url) as conn:
            while not finished.is_set() and killed < 25:
                await asyncio.sleep(chance.random() * 0.02)  # the moment of the kill, not a wait
                killed += await conn.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE state <> 'idle'"
                    " AND application_name = 'tollkeeper_billing' AND datname = current_database()"
                )

    async def run_on() -> None:
        for _ in range(1_000):
            try:
                await bench.run()
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                continue
            finished.set()
            return
        raise AssertionError("a thousand runs were killed")

    async with asyncio.TaskGroup() as group:
        group.create_task(kill())
        group.create_task(run_on())
        group.create_task(run_on())
    assert killed > 0
    assert list(range(1, 25)) == await numbers_of(bench)
    closes = await bench.rows("SELECT count(*) FROM billing_close")
    periods = await bench.rows("SELECT count(DISTINCT (tenant_id, period_start)) FROM invoice")
    assert (closes[0][0], periods[0][0]) == (24, 24)


async def test_late_usage_is_billed_next_and_names_its_period(bench: BillingBench) -> None:
    """Usage of a closed hour comes on later invoices as differences; in the end all costs what it had cost at once."""
    await bench.apply(catalogue(bench.start, "code", "same"))
    log = await bench.new_log()
    middle, end = bench.start + HOUR / 2, bench.start + HOUR
    parts = (700_000, 900_001, 333_333)
    for number, part in enumerate(parts):
        await bench.set_now(bench.start + (number + 1) * HOUR + GRACE)
        await bench.send(
            log,
            use(f"p{number}", middle, context_tokens=part),
            use(f"same{number}", middle, tenant="same", received=middle, context_tokens=0),
            watermark=bench.start + (number + 1) * HOUR,
        )
        assert made(await bench.run()) == 2
    documents = await bench.documents("code")
    assert [
        amounts(documents[0]),
        *(next(line["amount_minor"] for line in document["lines"] if line["late"]) for document in documents[1:]),
    ] == [{"base": 2000, "context_tokens": 0}, 150, 83]
    late = next(line for line in documents[1]["lines"] if line["late"])
    assert documents[0]["period"] == late["period"]
    assert late["description"].startswith("context_tokens, late usage of ")
    at_once = (sum(parts) - MILLION) * 250
    assert round(at_once / MILLION) == sum(document["total_minor"] - 2000 for document in documents)
    segments = await bench.rows(
        "SELECT count(*) FILTER (WHERE late_for IS NOT NULL) AS late FROM billing_segment JOIN tenant USING (tenant_id)"
        " WHERE wire_id = 'code'"
    )
    assert segments[0]["late"] == 2
    assert end == bench.start + HOUR


async def test_appends_beside_closes_lose_nothing(bench: BillingBench) -> None:
    """Usage that arrives while periods close is billed exactly once: on time or late, never both, never not."""
    await bench.apply(catalogue(bench.start, "code", price="1000000.00"))
    await bench.set_now(bench.start + 3 * HOUR + GRACE)
    chance = random.Random(7)
    logs = [await bench.new_log() for _ in range(4)]
    now = bench.start + 3 * HOUR + GRACE
    await bench.send(logs[3], use("first", bench.start, generated_tokens=1), watermark=now)
    sent = 1

    async def produce(number: int) -> None:
        nonlocal sent
        for turn in range(15):
            uses = [
                use(f"{number}-{turn}-{n}", bench.start + chance.random() * 3 * HOUR, generated_tokens=1 + n)
                for n in range(5)
            ]
            await bench.send(logs[number], *uses, watermark=now)
            sent += sum(1 + n for n in range(5))

    await asyncio.gather(*(produce(number) for number in range(3)), *(bench.run() for _ in range(3)))
    # What came after the three closes is late, for the fourth hour's invoice.
    await bench.set_now(bench.start + 4 * HOUR + GRACE)
    for log in logs:
        await bench.send(log, watermark=bench.start + 4 * HOUR)
    await bench.run()
    documents = await bench.documents("code")
    assert len(documents) == 4
    billed = sum(
        line["quantity"] for document in documents for line in document["lines"] if line["meter"] == "generated_tokens"
    )
    assert sent == billed
    assert sent * 100 == sum(document["total_minor"] - 2000 for document in documents)
    assert any(line["late"] for line in documents[3]["lines"])
    counted = await bench.rows("SELECT count(*) FROM usage_record")
    assert counted[0][0] == sum(document["record_count"] for document in documents)


async def test_a_preview_is_what_the_invoice_becomes(bench: BillingBench) -> None:
    """The preview of a finished hour has the lines of the later invoice, and making it changes nothing."""
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR / 2)
    await bench.send(log, use("a", bench.start, context_tokens=3 * MILLION), watermark=bench.start)
    (row,) = await bench.rows("SELECT tenant_id FROM tenant")
    async with bench.billing.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        preview = await preview_invoice(conn, row["tenant_id"], wire_id="code")
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, watermark=bench.start + HOUR)
    await bench.run()
    (document,) = await bench.documents("code")
    assert (preview["state"], preview["number"], preview["finalised_at"]) == ("preview", None, None)
    assert document["lines"] == preview["lines"]
    assert document["total_minor"] == preview["total_minor"] == 2500


async def test_usage_beyond_any_invoice_holds_up_its_own_tenant_only(bench: BillingBench) -> None:
    """Sums that no invoice can carry leave their period open, named on the run; everyone else is billed."""
    await bench.apply(catalogue(bench.start, "code", "conv"))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    uses = (use(f"u{n}", bench.start, context_tokens=2**53 - 1) for n in range(1025))
    await bench.send(log, *uses, watermark=bench.start + HOUR)
    steps = await bench.run()
    assert made(steps) == 1
    (held,) = [step for step in steps if step.held_tenant]
    assert held.held_tenant == "code"
    assert "is more than an invoice can carry" in held.held_reason
    states = await bench.rows("SELECT DISTINCT b.state, wire_id FROM billing_segment b JOIN tenant USING (tenant_id)")
    assert {tuple(row) for row in states} == {("open", "code"), ("closed", "conv")}
    assert len(await bench.documents("conv")) == 1
    (row,) = await bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'code'")
    await bench.send(
        log, *(use(f"v{n}", bench.start + HOUR, context_tokens=2**53 - 1) for n in range(1025)), watermark=bench.start
    )
    async with bench.billing.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        with pytest.raises(PreconditionError, match="more than an invoice can carry"):
            await preview_invoice(conn, row["tenant_id"], wire_id="code")


async def test_a_plan_that_charges_nothing_makes_no_invoice(bench: BillingBench) -> None:
    """Periods of a free plan close without an invoice or a number."""
    await bench.apply(catalogue(bench.start, "probe", plan="free"))
    log = await bench.new_log()
    await bench.set_now(bench.start + 2 * HOUR + GRACE)
    await bench.send(log, use("a", bench.start, tenant="probe", context_tokens=5), watermark=bench.start + 2 * HOUR)
    steps = await bench.run()
    assert (steps[-1].due, steps[-1].done, made(steps)) == (2, 2, 0)
    assert await numbers_of(bench) == []
    assert made(await bench.run()) == 0


async def test_a_move_changes_prices_from_the_next_period_on(bench: BillingBench) -> None:
    """A running period keeps the version that it began with; late usage of it keeps that as well."""
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR / 2)
    await bench.send(log, use("a", bench.start, generated_tokens=MILLION), watermark=bench.start)
    await bench.apply(catalogue(bench.start, "code", price="30.00", extra=", plan_version: latest"))
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(
        log,
        use("b", bench.start + HOUR / 2 + timedelta(minutes=1), generated_tokens=MILLION),
        use("c", bench.start + HOUR, generated_tokens=MILLION),
        watermark=bench.start + HOUR,
    )
    await bench.run()
    await bench.set_now(bench.start + 2 * HOUR + GRACE)
    await bench.send(log, use("d", bench.start, generated_tokens=MILLION), watermark=bench.start + 2 * HOUR)
    await bench.run()
    first, second = await bench.documents("code")
    assert (first["plan"]["version"], amounts(first)["generated_tokens"]) == (1, 2000)
    assert (second["plan"]["version"], amounts(second)["generated_tokens"]) == (2, 3000)
    assert [line["amount_minor"] for line in second["lines"] if line["late"]] == [1000]


async def test_an_invoice_can_be_made_again(bench: BillingBench) -> None:
    """From the stored inputs come the same bytes; the digest is theirs; the PDF is the same on both papers."""
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, use("a", bench.start, context_tokens=5 * MILLION), watermark=bench.start + HOUR)
    await bench.run()
    # What the seller is called later doesn't change what was finalised.
    await bench.apply(catalogue(bench.start, "code").replace("Example AI GmbH", "Renamed AG"))
    (row,) = await bench.rows("SELECT invoice_id, document, digest FROM invoice")
    async with transaction(bench.billing) as conn:
        made = await reproduce_invoice(conn, row["invoice_id"], from_records=False)
        again, stored = made.document, made.stored
    assert stored == again == row["document"]
    assert hashlib.sha256(again).digest() == row["digest"]
    (document,) = await bench.documents("code")
    assert row["document"] == canonical_json(document)
    assert document["seller"]["name"] == "Example AI GmbH"
    for paper in ("a4", "letter"):
        pdfs = [render_pdf(row["document"], digest=row["digest"], paper=paper) for _ in range(2)]
        assert pdfs[0] == pdfs[1]


async def test_closed_money_never_changes(bench: BillingBench) -> None:
    """No role, not even the owner of the server, updates, deletes or truncates closes, invoices, lines or the audit."""
    await bench.apply(catalogue(bench.start, "code"))
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.run()
    columns = {
        "billing_close": "billable",
        "invoice": "total_minor",
        "invoice_line": "amount_minor",
        "audit_log": "actor",
    }
    for table, column in columns.items():
        for statement in (
            f"UPDATE {table} SET {column} = {column}",  # noqa: S608 - names from above
            f"DELETE FROM {table}",  # noqa: S608 - names from above
            f"TRUNCATE {table} CASCADE",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with transaction(bench.billing) as conn:
                    await conn.execute(statement)
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                await bench.rows(statement)
    assert len(await bench.documents("code")) == 1


async def test_readers_see_their_own_tenant_only(bench: BillingBench) -> None:
    """Without a tenant a reader sees no row of any tenant table; with one, that tenant's; no closes at all."""
    await bench.apply(catalogue(bench.start, "code", "conv"))
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.run()
    (row,) = await bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'code'")

    async def seen(tenant_id: object) -> dict[str, set[Any]]:
        async with bench.reader.acquire() as conn, conn.transaction():
            await conn.execute("SELECT set_config('tollkeeper.tenant_id', $1, true)", str(tenant_id or ""))
            return {
                table: {found["tenant_id"] for found in await conn.fetch(f"SELECT tenant_id FROM {table}")}  # noqa: S608
                for table in TENANT_TABLES
            }

    assert {table: set() for table in TENANT_TABLES} == await seen(None)
    assert {table: {row["tenant_id"]} for table in TENANT_TABLES} == await seen(row["tenant_id"])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with bench.reader.acquire() as conn:
            await conn.fetch("SELECT * FROM billing_close")
