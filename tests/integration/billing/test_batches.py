"""A run bills many tenants in one transaction: each invoice is what it would have been alone, and faults stay alone."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from billing_bench import RUN, catalogue, open_billing_bench, superuser, use
from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate
from tollkeeper_ledger.domain.errors import PreconditionError
from tollkeeper_ledger.services import invoice_run
from tollkeeper_ledger.services.billing_processes import BillingProcesses
from tollkeeper_ledger.services.invoices import preview_invoice
from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.services.prepaid import CouponAsked, GrantAsked, add_coupon_to, create_grant
from tollkeeper_ledger.services.profiles import add_invoice_item, set_profile
from tollkeeper_ledger.store import billing_usage
from tollkeeper_ledger.store.billing_invoices import ToldInvoice
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from datetime import datetime

    from billing_bench import BillingBench
    from usage_support import Use

pytestmark = pytest.mark.asyncio

HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)

POPULATION = """
version: 1
seller: {{id: default, name: Example AI GmbH, invoice_prefix: TK, currency: USD, time_zone: UTC}}
meters:
  - {{name: tokens, unit: tokens, attributes: [model], dimensions: [model]}}
  - {{name: turnover, unit: cents}}
  - {{name: users, unit: users, aggregation: unique, value_attribute: user, attributes: [user]}}
plans:
  - {{name: plain, {hourly}, currencies: [USD, EUR], fees: [{{name: base, amount: {{USD: "20.00", EUR: "18.00"}}}}],
     prices: [{{meter: tokens, per: 1000, unit_price: "2.50", included: 1000, minimum: "1.00"}}]}}
  - {{name: ahead, {hourly}, fees: [{{name: base, amount: "9.99", timing: advance}}]}}
  - {{name: trial, {hourly}, trial_days: 14, fees: [{{name: base, amount: "20.00"}}],
     prices: [{{meter: tokens, unit_price: "0.01"}}]}}
  - {{name: committed, {hourly}, commitment: "100.00", prices: [{{meter: tokens, unit_price: "0.01"}}]}}
  - {{name: models, {hourly}, prices: [
       {{meter: tokens, match: [{{attribute: model, exact: large}}], unit_price: "0.05"}},
       {{meter: tokens, group_by: [model], unit_price: "0.01"}}]}}
  - {{name: share, {hourly}, prices: [{{meter: turnover, model: percentage, convert: {{divide_by: 100}},
     rate_percent: "2.9", fixed_per_event: "0.30", per_event_max: "5.00"}}]}}
  - {{name: users, {hourly}, prices: [{{meter: users, unit_price: "0.10", included: 1}}]}}
tenants:
  - {{id: a-payer, plan: plain, {since}}}
  - {{id: b-child, plan: plain, billing_tenant: a-payer, {since}}}
  - {{id: c-child, plan: plain, billing_tenant: a-payer, {since}}}
  - {{id: committed, plan: committed, {since}}}
  - {{id: coupon, plan: plain, {since}}}
  - {{id: ends, plan: ahead, {since}}}
  - {{id: euro, plan: plain, subscription: {{start: "{start}", currency: EUR}}}}
  - {{id: grants, plan: plain, {since}}}
  - {{id: huge, plan: plain, {since}}}
  - {{id: inclusive, plan: plain, {since}}}
  - {{id: late, plan: plain, {since}}}
  - {{id: mailed, plan: plain, {since}}}
  - {{id: models, plan: models, {since}}}
  - {{id: opens, plan: ahead, subscription: {{start: "{later}"}}}}
  - {{id: own, plan: plain, prices: [{{meter: tokens, unit_price: "0.03"}}], {since}}}
  - {{id: reverse, plan: plain, {since}}}
  - {{id: reviewed, plan: plain, {since}}}
  - {{id: share, plan: share, {since}}}
  - {{id: taxed, plan: plain, {since}}}
  - {{id: trial, plan: trial, {since}}}
  - {{id: users, plan: users, {since}}}
"""
_TAXES = (TaxRate(name="VAT", percent="19"),)
_PROFILES = {
    "taxed": BillingProfile(taxes=_TAXES),
    "inclusive": BillingProfile(taxes=_TAXES, tax_mode="inclusive"),
    "reverse": BillingProfile(taxes=_TAXES, tax_mode="reverse_charge"),
    "reviewed": BillingProfile(review=True),
    "mailed": BillingProfile(email="pay@example.com", provider="stripe", due_days=30),
}

# Everything that a run writes, without the ids that it draws.
_WRITTEN = {
    "closes": "SELECT wire_id, c.period_start, period_end, closed_at, billable, is_draft, inputs"
    " FROM billing_close c JOIN tenant USING (tenant_id)",
    "invoices": "SELECT document, issue, replaces, record_count, subtotal_minor, tax_minor, total_minor, currency,"
    " number, serial, finalised_at, digest = sha256(document) AS has_digest FROM invoice",
    "lines": "SELECT number, line, description, meter, quantity, amount_minor, l.period_start, l.period_end"
    " FROM invoice_line l JOIN invoice USING (tenant_id, invoice_id)",
    "owed": "SELECT number, wire_id, r.state, due_at, r.subtotal_minor, r.tax_minor, balance_minor, due_minor"
    " FROM receivable r JOIN invoice USING (invoice_id) JOIN tenant t ON t.tenant_id = payer_tenant_id",
    "journal": "SELECT wire_id, j.seller_id, at, kind, debit, credit, amount_minor, j.currency, number, subject"
    " FROM journal j JOIN invoice USING (invoice_id) JOIN tenant t ON t.tenant_id = j.tenant_id",
    "accounts": "SELECT wire_id, a.seller_id, currency, balance_minor"
    " FROM billing_account a JOIN tenant USING (tenant_id)",
    "grants": "SELECT wire_id, name, e.at, kind, e.amount, e.balance, period_start FROM prepaid_entry e"
    " JOIN prepaid_grant g USING (grant_id) JOIN tenant t ON t.tenant_id = g.tenant_id",
    "coupons": "SELECT name, periods_left FROM subscription_coupon",
    "items": "SELECT description, subscription_id, period_start FROM invoice_item",
    "mails": "SELECT kind, stage, recipient, number FROM mail JOIN invoice USING (invoice_id)",
    "jobs": "SELECT wire_id, provider, kind, number, amount_minor, step FROM provider_job j"
    " JOIN invoice USING (invoice_id) JOIN tenant t ON t.tenant_id = j.tenant_id",
    "audit": "SELECT at, actor, action, request_id, subject, before, after FROM audit_log WHERE action = 'RunInvoices'",
    "billed": "SELECT subscription_id, billed_until FROM subscription",
    "segments": "SELECT segment_id, state, closed_at, period_start, period_end FROM billing_segment",
}


async def written(bench: BillingBench) -> dict[str, list[Any]]:
    """Give everything that runs wrote, in an order that depends on it alone."""
    found = {}
    for name, statement in _WRITTEN.items():
        rows = [dict(row) for row in await bench.rows(statement)]
        for row in rows:
            if "document" in row:
                row["document"] = {**json.loads(row["document"]), "invoice_id": ""}
        found[name] = sorted(rows, key=lambda row: json.dumps(row, default=str, sort_keys=True))
    return found


async def adorn(bench: BillingBench) -> None:
    """Give tenants profiles, coupons, grants and items: what each invoice depends on beside its usage."""
    async with transaction(bench.billing) as conn:
        act = Act(actor="test", request_id="adorn", now=await ledger_now(conn))
        names = ("a-payer", "coupon", "grants", *_PROFILES)
        ids = await find_tenant_ids(conn, names)
        for name, profile in _PROFILES.items():
            await set_profile(conn, ids[name], profile, act=act)
        for percent, amount_minor, periods in ((Decimal("12.5"), None, 2), (None, 333, None)):
            coupon = CouponAsked(f"{percent}", percent=percent, amount_minor=amount_minor, periods=periods)
            await add_coupon_to(conn, ids["coupon"], coupon, act, new_id=uuid.uuid4)
        for name, meter, amount, expires_at, recurs in (
            ("tokens", "tokens", 1_500, None, True),
            ("credit", "", 700, None, False),
            ("expires", "", 90_000, bench.start + HOUR * 1.5, False),
        ):
            grant = GrantAsked(
                name, meter=meter, currency="" if meter else "USD", amount=amount, priority=0, expires_at=expires_at,
                recurs=recurs, rollover_max=200,
            )  # fmt: skip
            await create_grant(conn, ids["grants"], grant, act, new_id=uuid.uuid4)
        # More than its own invoice: the rest pays what its children owe, in their order.
        for description, amount_minor in (("Setup", 1234), ("Apology", -9_000)):
            await add_invoice_item(
                conn, ids["a-payer"], description=description, amount_minor=amount_minor, currency="USD", act=act
            )


def used_in(name: str, at: datetime) -> list[Use]:
    """Give every tenant's usage of an hour."""
    tokens = {
        tenant: 1_000 + 777 * place
        for place, tenant in enumerate(
            ("a-payer", "b-child", "c-child", "committed", "coupon", "ends", "euro", "grants", "huge", "inclusive",
             "late", "mailed", "own", "reverse", "reviewed", "taxed", "trial")
        )
    }  # fmt: skip
    uses = [use(f"{name}-{tenant}", at, tenant=tenant, tokens=units) for tenant, units in tokens.items()]
    for number, model in enumerate(("large", "small", "large", "tiny")):
        uses.append(use(f"{name}-m{number}", at, tenant="models", attributes=(("model", model),), tokens=100 + number))
        uses.append(use(f"{name}-s{number}", at, tenant="share", turnover=12_345 * (number + 1)))
        uses.append(use(f"{name}-u{number}", at, tenant="users", attributes=(("user", model),), users=1))
    return uses


async def populate(bench: BillingBench) -> None:
    """Bill an hour of a mixed population, and stop where the next one is due: late usage and all."""
    end = bench.start + HOUR
    await bench.apply(
        POPULATION.format(
            hourly="billing_interval: {unit: hour, count: 1}, grace: {unit: minute, count: 5}",
            since=f'subscription: {{start: "{bench.start.isoformat()}"}}',
            start=bench.start.isoformat(),
            later=(end + HOUR).isoformat(),
        )
    )
    log = await bench.new_log()
    await bench.set_now(end + GRACE)
    await bench.send(log, *used_in("first", bench.start), watermark=end)
    await bench.run()
    await adorn(bench)
    late = [use(f"late{n}", bench.start + HOUR / 2, tenant="late", tokens=4_321 + n) for n in range(2)]
    huge = [use(f"huge{n}", end, tenant="huge", tokens=2**53 - 1) for n in range(1_025)]
    await bench.set_now(end + HOUR + GRACE)
    await bench.send(log, *used_in("second", end), *late, *huge, watermark=end + HOUR)


async def test_a_batch_bills_what_single_runs_bill(own_database_url: str) -> None:
    """Twenty kinds of tenants in one transaction and each in its own: equal inputs, documents, numbers, books, audit.

    The one is in a process of its own, as large runs have them. Trial, opening, fees ahead, commitment, own prices,
    prices by model, per record and per distinct user, coupons, grants, items, two currencies, taxes of three modes, a
    shared payer whose credit pays, drafts, mails, provider jobs, late usage, and one whose usage no invoice can carry.
    """
    async with open_billing_bench(own_database_url) as bench:
        await populate(bench)
    name = own_database_url.partition("?")[0].rpartition("/")[2]
    async with superuser(own_database_url) as conn:
        await conn.execute(f"CREATE DATABASE {name}_alone TEMPLATE {name}")
    async with (
        open_billing_bench(own_database_url) as together,
        open_billing_bench(own_database_url.replace(f"/{name}", f"/{name}_alone")) as alone,
    ):
        before = await written(together)
        assert before == await written(alone)
        # One process more, which has the first batch: all twenty.
        steps = await together.run(processes=BillingProcesses(own_database_url, count_max=1, periods_min=0, cores=2))
        assert [step.held_tenant for step in steps if step.held_tenant] == ["huge"]
        assert {ToldInvoice} == {type(step.invoice) for step in steps if step.invoice is not None}
        for row in await alone.rows("SELECT wire_id FROM tenant ORDER BY wire_id"):
            await alone.run(only=row["wire_id"])
        expected, found = await written(alone), await written(together)
        for what, rows in expected.items():
            assert rows == found[what], what
        # Each kind has come about: else the comparison says less than it seems to.
        assert len(found["invoices"]) - len(before["invoices"]) == 18
        assert {"used", "expired", "granted"} <= {row["kind"] for row in found["grants"]}
        assert any(row["total_minor"] < 0 for row in found["invoices"])
        assert {"paid", "finalised"} == {row["state"] for row in found["owed"]}
        assert 1 == len(found["mails"]) == len(found["jobs"])
        assert any(row["is_draft"] for row in found["closes"])
        assert any(line["late"] for row in found["invoices"] for line in row["document"]["lines"])


async def test_a_fault_in_a_batch_holds_up_its_own_tenant_only(bench: BillingBench) -> None:
    """A row that Postgres refuses: its tenant is named, all others of the batch are billed, numbers without a gap.

    Nothing of it stays: once the fault is mended the next run bills it.
    """
    names = [f"t{n}" for n in range(9)]
    await bench.apply(catalogue(bench.start, *names))
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.rows(
        "CREATE FUNCTION refuse_one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF new.tenant_id = (SELECT tenant_id FROM tenant WHERE wire_id = 't4') THEN"
        " RAISE EXCEPTION 'this row is at fault' USING ERRCODE = 'check_violation'; END IF; RETURN new; END $$"
    )
    await bench.rows("CREATE TRIGGER refuse_one BEFORE INSERT ON receivable FOR EACH ROW EXECUTE FUNCTION refuse_one()")
    steps = await bench.run()
    held = [(step.held_tenant, step.held_reason) for step in steps if step.held_tenant]
    assert held == [("t4", "can't be billed: this row is at fault")]
    assert (steps[-1].due, steps[-1].done) == (9, 8)
    billed = {row["wire_id"] for row in await bench.rows("SELECT wire_id FROM invoice JOIN tenant USING (tenant_id)")}
    assert {*names} - {"t4"} == billed
    await bench.rows("DROP TRIGGER refuse_one ON receivable")
    await bench.run()
    serials = [row["serial"] for row in await bench.rows("SELECT serial FROM invoice ORDER BY serial")]
    assert list(range(1, 10)) == serials


@pytest.mark.parametrize(
    "fault",
    [
        "RAISE EXCEPTION 'a tie' USING ERRCODE = 'serialization_failure'",
        "PERFORM pg_terminate_backend(pg_backend_pid())",
    ],
    ids=["tie", "connection"],
)
@pytest.mark.parametrize("beside", [0, 1])
async def test_a_run_that_breaks_off_tells_of_all_that_it_made(
    bench: BillingBench, monkeypatch: pytest.MonkeyPatch, fault: str, beside: int
) -> None:
    """A tie that stays, a connection that ends: each invoice that was committed is told first; the rest follow.

    Also where the batch is in a process of its own: that gives back what it could not bill, and the run meets it again.
    """
    monkeypatch.setattr(invoice_run, "TENANTS_PER_BATCH", 4)
    await bench.apply(catalogue(bench.start, *(f"t{n}" for n in range(11))))
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.rows(
        "CREATE FUNCTION break_off() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        " IF new.tenant_id = (SELECT tenant_id FROM tenant WHERE wire_id = 't5') THEN"
        " FAULT; END IF; RETURN new; END $$".replace("FAULT", fault)
    )
    await bench.rows("CREATE TRIGGER break_off BEFORE INSERT ON receivable FOR EACH ROW EXECUTE FUNCTION break_off()")
    told: list[str] = []

    async def listen() -> None:
        processes = BillingProcesses(bench.url, count_max=beside, periods_min=0, cores=2)
        steps = invoice_run.run_invoices(bench.billing, run=RUN, only=None, processes=processes)
        async for some in invoice_run.together(steps, count_max=100):
            told.extend(one.invoice.read()["number"] for one in some if one.invoice is not None)

    with pytest.raises((asyncpg.SerializationError, asyncpg.InterfaceError)):
        await listen()
    made = [row["number"] for row in await bench.rows("SELECT number FROM invoice ORDER BY number")]
    assert made == sorted(told)
    assert 0 < len(told) < 11
    await bench.rows("DROP TRIGGER break_off ON receivable")
    await bench.run()
    serials = [row["serial"] for row in await bench.rows("SELECT serial FROM invoice ORDER BY serial")]
    assert list(range(1, 12)) == serials


async def test_runs_of_many_batches_make_each_invoice_once(
    bench: BillingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs at once, two batches each under way, three hours of seven tenants: each once, numbers without a gap."""
    monkeypatch.setattr(invoice_run, "TENANTS_PER_BATCH", 2)
    await bench.apply(catalogue(bench.start, *(f"t{n}" for n in range(7))))
    await bench.set_now(bench.start + 3 * HOUR + GRACE)
    runs = await asyncio.gather(bench.run(), bench.run())
    assert sum(step.invoice is not None for steps in runs for step in steps) == 21
    rows = await bench.rows("SELECT serial, tenant_id, period_start FROM invoice ORDER BY serial")
    assert list(range(1, 22)) == [row["serial"] for row in rows]
    assert len({(row["tenant_id"], row["period_start"]) for row in rows}) == 21
    for steps in runs:
        assert steps[-1].done == sum(step.invoice is not None for step in steps)


async def test_a_run_that_is_left_leaves_whole_batches(bench: BillingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller goes away after the first invoice: what was closed is billed, and the next run bills the rest, once."""
    monkeypatch.setattr(invoice_run, "TENANTS_PER_BATCH", 2)
    await bench.apply(catalogue(bench.start, *(f"t{n}" for n in range(9))))
    await bench.set_now(bench.start + 2 * HOUR + GRACE)
    steps = invoice_run.run_invoices(bench.billing, run=RUN, only=None)
    async for step in steps:
        if step.invoice is not None:
            break
    await steps.aclose()
    (left,) = await bench.rows(
        "SELECT (SELECT count(*) FROM billing_close) AS closes, (SELECT count(*) FROM invoice) AS invoices"
    )
    assert 0 < left["invoices"] == left["closes"] < 18
    await bench.run()
    serials = [row["serial"] for row in await bench.rows("SELECT serial FROM invoice ORDER BY serial")]
    assert list(range(1, 19)) == serials


async def test_more_records_than_a_price_takes_hold_up_their_own_tenant_only(
    bench: BillingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A price per record has a bound: a tenant beyond it is named by the run and its preview, others are billed."""
    monkeypatch.setattr(billing_usage, "EVENTS_MAX", 3)
    later = (bench.start + HOUR).isoformat()
    hourly = "billing_interval: {unit: hour, count: 1}, grace: {unit: minute, count: 5}"
    since = f'subscription: {{start: "{bench.start.isoformat()}"}}'
    await bench.apply(POPULATION.format(hourly=hourly, since=since, start=bench.start.isoformat(), later=later))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, *used_in("first", bench.start), watermark=bench.start + HOUR)
    steps = await bench.run()
    held = [(step.held_tenant, step.held_reason) for step in steps if step.held_tenant]
    assert held == [("share", "can't be billed: turnover has more than 3 records, too many for a price per record")]
    assert steps[-1].due - 1 == steps[-1].done
    await bench.send(log, *used_in("second", bench.start + HOUR), watermark=bench.start + HOUR)
    async with transaction(bench.billing) as conn:
        tenant_id = (await find_tenant_ids(conn, ["share"]))["share"]
    async with bench.billing.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        with pytest.raises(PreconditionError, match="turnover has more than 3 records"):
            await preview_invoice(conn, tenant_id, wire_id="share")
