# ruff: noqa: SIM300 - expected first, then actual
"""Usage is invoiced within its period at a threshold; all invoices together say what one would have said."""

from __future__ import annotations

import asyncio
import random
import uuid
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from billing_bench import RUN, use
from stripe_shop import HOUR, act_on
from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate
from tollkeeper_ledger.domain.errors import PreconditionError
from tollkeeper_ledger.domain.focus import focus_rows
from tollkeeper_ledger.jobs.runner import running_jobs
from tollkeeper_ledger.services.invoice_run import bill_thresholds, run_invoices
from tollkeeper_ledger.services.invoice_verify import reproduce_invoice, verify_invoice
from tollkeeper_ledger.services.invoices import preview_invoice, void_invoice
from tollkeeper_ledger.services.prepaid import CouponAsked, GrantAsked, add_coupon_to, create_grant
from tollkeeper_ledger.services.profiles import set_profile
from tollkeeper_ledger.services.progressive import cut_passed
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.pool import connection, transaction

if TYPE_CHECKING:
    from uuid import UUID

    from billing_bench import BillingBench

pytestmark = pytest.mark.asyncio

GRACE = timedelta(minutes=5)
CATALOGUE = """
version: 1
seller: {{id: default, name: Example AI GmbH, invoice_prefix: TK, currency: USD, time_zone: UTC}}
meters:
  - {{name: calls, unit: calls}}
  - {{name: tokens, unit: tokens}}
plans:
  - name: at-the-end
    billing_interval: hour
    grace: {{unit: minute, count: 5}}
    fees: [{{name: base, amount: "7.77"}}]
    prices:
      - meter: calls
        model: graduated
        tiers: [{{up_to: 100, unit_price: "0.103"}}, {{up_to: 1000, unit_price: "0.0507"}}, {{unit_price: "0.011"}}]
      - {{meter: tokens, model: package, size: 70, price: "0.33"}}
  - name: within
    progressive_threshold: "5.00"
    billing_interval: hour
    grace: {{unit: minute, count: 5}}
    fees: [{{name: base, amount: "7.77"}}]
    prices:
      - meter: calls
        model: graduated
        tiers: [{{up_to: 100, unit_price: "0.103"}}, {{up_to: 1000, unit_price: "0.0507"}}, {{unit_price: "0.011"}}]
      - {{meter: tokens, model: package, size: 70, price: "0.33"}}
tenants:
  - {{id: one, plan: at-the-end, subscription: {{start: "{start}"}}}}
  - {{id: many, plan: within, subscription: {{start: "{start}"}}}}
"""


async def prepare(bench: BillingBench, profile: BillingProfile | None = None) -> dict[str, UUID]:
    """Subscribe one tenant that is billed at the period's end and one that is billed within it as well."""
    await bench.apply(CATALOGUE.format(start=bench.start.isoformat()))
    async with transaction(bench.billing) as conn:
        tenants = await find_tenant_ids(conn, ["one", "many"])
        for tenant_id in tenants.values() if profile else ():
            await set_profile(conn, tenant_id, profile, act=await act_on(conn))
    return tenants


async def reduce(bench: BillingBench, tenants: dict[str, UUID], chance: random.Random) -> None:
    """Give both tenants the same coupon and the same credit."""
    percent, credit_minor = Decimal(chance.randint(1, 50)), chance.randint(1, 3000)
    async with transaction(bench.billing) as conn:
        act = await act_on(conn)
        for tenant_id in tenants.values():
            coupon = CouponAsked(name="Off", percent=percent, amount_minor=None, periods=None)
            await add_coupon_to(conn, tenant_id, coupon, act, new_id=uuid.uuid4)
            grant = GrantAsked(
                name="credit", meter="", currency="USD", amount=credit_minor, priority=0, expires_at=None,
                recurs=False, rollover_max=0,
            )  # fmt: skip
            await create_grant(conn, tenant_id, grant, act, new_id=uuid.uuid4)


def sums(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Add invoices up: lines by meter and kind, discounts, taxes, totals."""
    lines: dict[tuple[str, str], list[int]] = {}
    for line in (line for document in documents for line in document["lines"]):
        known = lines.setdefault((line["meter"], line["kind"]), [0, 0, 0, 0])
        figures = (line["quantity"] if line["meter"] else 0, line["amount_minor"], line["discount_minor"])
        for place, figure in enumerate((*figures, line["tax"]["tax_minor"])):
            known[place] += figure
    whole = ("lines_minor", "discount_minor", "subtotal_minor", "tax_minor", "total_minor")
    return {"lines": lines, **{name: sum(document[name] for document in documents) for name in whole}}


async def use_both(bench: BillingBench, log: Any, name: str, **units: int) -> None:
    """Let both tenants use the same now."""
    (row,) = await bench.rows("SELECT ledger_now() AS now")
    uses = [use(f"{tenant}-{name}", row["now"], tenant=tenant, **units) for tenant in ("one", "many")]
    await bench.send(log, *uses, watermark=row["now"], tenants=("one", "many"))


@pytest.mark.parametrize("mode", ["exclusive", "inclusive"])
@pytest.mark.parametrize("seed", range(3))
async def test_invoices_within_a_period_add_up_to_what_one_would_have_said(
    bench: BillingBench, seed: int, mode: str
) -> None:
    """Lines, quantities, coupons, credit, taxes, totals, whatever is used when; each is verified, made again, booked.

    A preview at any time is what the period's invoice becomes.
    """
    chance = random.Random(seed)
    taxes = (TaxRate(name="VAT", percent="19", meters=("calls",)), TaxRate(name="VAT", percent="7"))
    tenants = await prepare(bench, BillingProfile(taxes=taxes, tax_mode=mode))
    if seed:
        await reduce(bench, tenants, chance)
    log = await bench.new_log()
    for turn in range(8):
        await bench.set_now(bench.start + timedelta(minutes=1 + 7 * turn))
        await use_both(bench, log, str(turn), calls=chance.randint(1, 300), tokens=chance.randint(1, 700))
        await bench.run()
    async with connection(bench.billing) as conn, conn.transaction(isolation="repeatable_read"):
        preview = await preview_invoice(conn, tenants["many"], wire_id="many")
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, watermark=bench.start + HOUR, tenants=("one", "many"))
    await bench.run()
    one, many = await bench.documents("one"), await bench.documents("many")
    assert 1 == len(one)
    assert 2 < len(many)
    assert sums(one) == sums(many)
    figures = ("lines", "taxes", "total_minor")
    assert [preview[name] for name in figures] == [many[-1][name] for name in figures]
    for document in many:
        assert document["total_minor"] == sum(Decimal(row["BilledCost"]) * 100 for row in focus_rows(document))
        async with connection(bench.billing) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            checks = await verify_invoice(conn, uuid.UUID(document["invoice_id"]))
            made = await reproduce_invoice(conn, uuid.UUID(document["invoice_id"]), from_records=True)
        assert [] == [check for check in checks if not check.ok]
        assert made.stored == made.document
    booked = await bench.rows("SELECT sum(amount_minor) FILTER (WHERE debit = 'receivable') AS owed FROM journal")
    assert one[0]["total_minor"] * 2 == booked[0]["owed"]


async def test_two_workers_cut_a_period_once_beside_appends(bench: BillingBench) -> None:
    """Usage comes in while four workers look at the threshold: nothing is billed twice, nothing is left out."""
    await prepare(bench)
    log = await bench.new_log()
    await bench.set_now(bench.start + timedelta(minutes=1))

    async def append() -> None:
        for number in range(12):
            await bench.send(
                log, use(f"u{number}", bench.start, tenant="many", calls=40), watermark=bench.start, tenants=("many",)
            )

    async def work() -> None:
        for _ in range(6):
            await bill_thresholds(bench.billing, actor="test")

    async def pass_time() -> None:
        for second in range(61, 91):
            await bench.set_now(bench.start + timedelta(seconds=second))
            await asyncio.sleep(0)

    await asyncio.gather(append(), pass_time(), *(work() for _ in range(4)))
    await bench.set_now(bench.start + timedelta(minutes=2))
    await bill_thresholds(bench.billing, actor="test")
    documents = await bench.documents("many")
    # 480 calls: 100 at 10.3 cents, 380 at 5.07, are 29.566; less than 5.00 of it is left.
    assert 2957 - 500 < sum(document["total_minor"] for document in documents) <= 2957
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, watermark=bench.start + HOUR, tenants=("many",))
    await bench.run(only="many")
    assert 2957 + 777 == sum(document["total_minor"] for document in await bench.documents("many"))


async def test_a_worker_that_died_after_a_cut_leaves_its_invoice_to_the_next(bench: BillingBench) -> None:
    """The cut was kept, its invoice not made: the next run makes it, once, and the period's invoice counts on it."""
    await prepare(bench)
    log = await bench.new_log()
    await bench.set_now(bench.start + timedelta(minutes=1))
    await use_both(bench, log, "a", calls=100)
    assert 1 == len([one async for one in cut_passed(bench.billing, only=None)])
    assert [] == [one async for one in cut_passed(bench.billing, only=None)]
    for _ in range(2):
        _ = [step async for step in run_invoices(bench.billing, run=RUN, only=None)]
    assert [1030] == [document["total_minor"] for document in await bench.documents("many")]
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, watermark=bench.start + HOUR, tenants=("one", "many"))
    await bench.run()
    assert [1030, 777] == [document["total_minor"] for document in await bench.documents("many")]


async def test_a_close_whose_invoice_can_not_be_made_is_named(bench: BillingBench) -> None:
    """A cut was kept, its invoice not made, and Postgres refuses it: the run names its tenant and counts nothing."""
    await prepare(bench)
    log = await bench.new_log()
    await bench.set_now(bench.start + timedelta(minutes=1))
    await use_both(bench, log, "a", calls=100)
    assert 1 == len([one async for one in cut_passed(bench.billing, only=None)])
    await bench.rows("ALTER TABLE receivable ADD CONSTRAINT nothing_owed CHECK (subtotal_minor = 0) NOT VALID")
    steps = await bench.run()
    held = [(step.held_tenant, step.held_reason.startswith("can't be billed: ")) for step in steps if step.held_tenant]
    assert ([("many", True)], (1, 0)) == (held, (steps[-1].due, steps[-1].done))
    await bench.rows("ALTER TABLE receivable DROP CONSTRAINT nothing_owed")
    steps = await bench.run()
    assert (1, 1) == (steps[-1].due, steps[-1].done)
    assert [1030] == [document["total_minor"] for document in await bench.documents("many")]


async def test_what_a_void_invoice_within_a_period_said_is_billed_by_the_next(bench: BillingBench) -> None:
    """Void and not replaced: it counts no more. Issued again: it counts. Counted on already: it can't be void alone."""
    await prepare(bench)
    log = await bench.new_log()
    await bench.set_now(bench.start + timedelta(minutes=1))
    await use_both(bench, log, "a", calls=100)
    await bench.run()
    first = (await bench.documents("many"))[0]["invoice_id"]
    async with transaction(bench.billing) as conn:
        await void_invoice(conn, uuid.UUID(first), note="", reissue=False, act=await act_on(conn))
    await bench.set_now(bench.start + timedelta(minutes=2))
    await bench.run()
    second = (await bench.documents("many"))[1]
    assert 1030 == second["total_minor"]
    async with transaction(bench.billing) as conn:
        again = await void_invoice(conn, uuid.UUID(second["invoice_id"]), note="", reissue=True, act=await act_on(conn))
    assert again is not None
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, watermark=bench.start + HOUR, tenants=("one", "many"))
    await bench.run()
    last = (await bench.documents("many"))[-1]
    assert 777 == last["total_minor"]
    (taken_off,) = [line for line in last["lines"] if "invoiced" in line]
    assert [again.read()["number"]] == taken_off["invoiced"]
    with pytest.raises(PreconditionError, match="counts on it"):
        async with transaction(bench.billing) as conn:
            await void_invoice(conn, again.invoice_id, note="", reissue=False, act=await act_on(conn))


async def test_runners_of_jobs_bill_thresholds(bench: BillingBench) -> None:
    """A runner invoices what is passed when it starts; two of them make one invoice."""
    await prepare(bench)
    log = await bench.new_log()
    await bench.set_now(bench.start + timedelta(minutes=1))
    await use_both(bench, log, "a", calls=100)
    quiet = structlog.wrap_logger(structlog.ReturnLogger())
    money = {"bill_thresholds": lambda: bill_thresholds(bench.billing, actor="jobs")}
    schedules = {"bill_thresholds": "* * * * *"}
    async with (
        running_jobs(bench.ingest_pool, quiet, money=money, schedules=schedules),
        running_jobs(bench.ingest_pool, quiet, money=money, schedules=schedules),
    ):
        assert [1030] == [document["total_minor"] for document in await bench.documents("many")]
