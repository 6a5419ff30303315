# ruff: noqa: SIM300 - expected first, then actual
"""What was earned and what is owed, from invoices on a real Postgres, through gRPC and the command line."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc.aio
import pytest
from billing_bench import BillingBench, catalogue, superuser, use
from pyarrow import parquet
from stripe_shop import act_on
from tollkeeper.ledger.v1 import reports_pb2, reports_pb2_grpc
from tollkeeper_cli.main import main
from tollkeeper_ledger.app import running
from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate
from tollkeeper_ledger.services.invoices import void_invoice
from tollkeeper_ledger.services.profiles import set_profile
from tollkeeper_ledger.services.receivables import credit_invoice, pay_by_hand
from tollkeeper_ledger.store.money_views import read_receivables, read_revenue
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from pathlib import Path

    from tollkeeper_ledger.config import Settings

pytestmark = pytest.mark.asyncio

HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)
STATES = ("finalised", "past_due", "paid", "refunded", "uncollectible", "void")


async def billed(bench: BillingBench, *, mode: str = "exclusive") -> list[Any]:
    """Bill three tenants for an hour with usage and 19 % tax, and give their invoices by tenant."""
    await bench.apply(catalogue(bench.start, "a", "b", "c"))
    for row in await bench.rows("SELECT tenant_id FROM tenant"):
        async with transaction(bench.billing) as conn:
            profile = BillingProfile(taxes=(TaxRate(name="VAT", percent="19"),), tax_mode=mode)
            await set_profile(conn, row["tenant_id"], profile, act=await act_on(conn))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    uses = [use(f"u{name}", bench.start, tenant=name, context_tokens=3_000_000) for name in ("a", "b", "c")]
    await bench.send(log, *uses, watermark=bench.start + HOUR)
    await bench.run()
    rows = await bench.rows("SELECT invoice_id FROM invoice JOIN tenant USING (tenant_id) ORDER BY wire_id")
    return [row["invoice_id"] for row in rows]


async def test_revenue_leaves_out_what_was_voided_and_credited(bench: BillingBench) -> None:
    """Three invoices of 25.00: one void, one credited by half; every cut has what is left of them."""
    first, second, _ = await billed(bench)
    async with transaction(bench.billing) as conn:
        await void_invoice(conn, first, note="", reissue=False, act=await act_on(conn))
        await credit_invoice(conn, second, amount_minor=1190, note="", refund=False, act=await act_on(conn))

        async def by(group: str) -> list[tuple[str, int]]:
            found = await read_revenue(conn, by=group, start=None, end=None)
            return [(row["name"], row["revenue_minor"]) for row in found]

        assert [("", 2500 - 1000 + 2500)] == await by("month")
        assert [("hourly", 4000)] == await by("plan")
        assert [("b", 1500), ("c", 2500)] == await by("tenant")
        assert [("", 2 * 2000 - 800), ("context_tokens", 2 * 500 - 200)] == await by("meter")
        later = datetime(2200, 1, 1, tzinfo=UTC)
        assert [] == await read_revenue(conn, by="month", start=later, end=None)


_SHADOWS = """
SET search_path = pg_temp, public;
CREATE TEMP TABLE tenant (tenant_id uuid, wire_id text);
CREATE TEMP TABLE invoice (tenant_id uuid, invoice_id uuid, period_end timestamptz, currency text, document bytea);
CREATE TEMP TABLE receivable (tenant_id uuid, invoice_id uuid, state text, subtotal_minor bigint, credited_minor bigint,
  credited_tax_minor bigint);
"""


def any_document(chance: random.Random) -> dict[str, Any]:
    """Make up an invoice's lines and terms: free lines, credit below zero, coupons, tax within or on top."""
    lines = []
    for _ in range(chance.randrange(7)):
        amount = chance.choice([0, 1, -chance.randrange(1, 900), chance.randrange(1, 10 ** chance.randrange(1, 15))])
        lines.append({
            "meter": chance.choice(["", "calls", "tokens", "storage"]),
            "amount_minor": amount,
            "discount_minor": chance.randrange(amount + 1) if amount > 0 else 0,
            "tax": {"tax_minor": amount // 5},
        })  # fmt: skip
    mode = chance.choice(["exclusive", "inclusive", "reverse_charge"])
    return {"plan": {"name": chance.choice(["free", "pro"])}, "billing": {"tax_mode": mode}, "lines": lines}


async def test_every_cut_of_revenue_has_the_same_sum(bench: BillingBench) -> None:
    """Whatever 600 invoices say and are credited: months are sums of plans, of meters, of tenants, to the unit."""
    chance = random.Random(7)
    expected: dict[tuple[str, str], int] = {}
    async with superuser(bench.url) as conn:
        await conn.execute(_SHADOWS)
        tenants = [uuid4() for _ in range(9)]
        await conn.executemany("INSERT INTO tenant VALUES ($1, $2)", [(one, f"t-{one}") for one in tenants])
        for _ in range(600):
            document = any_document(chance)
            is_within = document["billing"]["tax_mode"] == "inclusive"
            net = sum(
                line["amount_minor"] - line["discount_minor"] - is_within * line["tax"]["tax_minor"]
                for line in document["lines"]
            )
            credited, tax = chance.randrange(max(net, 0) + 1), chance.randrange(50)
            month, currency, state = chance.randrange(1, 5), chance.choice(["USD", "JPY"]), chance.choice(STATES)
            key = chance.choice(tenants), uuid4()
            until = datetime(2026, month + 1, 1, tzinfo=UTC)
            text = json.dumps(document).encode()
            await conn.execute("INSERT INTO invoice VALUES ($1, $2, $3, $4, $5)", *key, until, currency, text)
            standing = (state, net, credited + tax, tax)
            await conn.execute("INSERT INTO receivable VALUES ($1, $2, $3, $4, $5, $6)", *key, *standing)
            if state != "void":
                where = f"2026-{month:02}", currency
                expected[where] = expected.get(where, 0) + net - credited
        for by in ("month", "plan", "meter", "tenant"):
            sums: dict[tuple[str, str], int] = {}
            names = set()
            for row in await read_revenue(conn, by=by, start=None, end=None):
                where = row["month"], row["currency"]
                sums[where] = sums.get(where, 0) + row["revenue_minor"]
                names.add(row["name"])
            assert expected == {where: sums.get(where, 0) for where in expected}, by
            assert set(sums) <= set(expected)
            assert {"month": 1, "plan": 2, "meter": 4, "tenant": 9}[by] == len(names)


async def test_what_is_owed_moves_through_the_ages(bench: BillingBench) -> None:
    """29.75 each, due in 14 days: current, then up to 30, 60, 90 days and older; what is paid is not owed."""
    first, second, third = await billed(bench)
    async with transaction(bench.billing) as conn:
        await pay_by_hand(conn, first, amount_minor=0, reference="x", act=await act_on(conn))
        await pay_by_hand(conn, second, amount_minor=975, reference="y", act=await act_on(conn))
    (row,) = await bench.rows("SELECT due_at FROM receivable WHERE invoice_id = $1", third)
    ages = ("current_minor", "days_30_minor", "days_60_minor", "days_90_minor", "older_minor")
    for age, days in zip(ages, (-1, 0, 30, 60, 90), strict=True):
        async with transaction(bench.billing) as conn:
            found = await read_receivables(conn, now=row["due_at"] + timedelta(days=days), only=None)
        assert [("c", 2975), ("b", 2000)] == [(one["wire_id"], one[age]) for one in found]
        assert [2975, 2000] == [one["total_minor"] for one in found]


def as_text(cell: object, text: str) -> str:
    """Give a cell of Parquet as the export's text says it; a number must be the same, not written the same."""
    if isinstance(cell, Decimal):
        return text if cell == Decimal(text) else f"{cell:f}"
    if isinstance(cell, datetime):
        return text if cell == datetime.fromisoformat(text) else cell.isoformat()
    return "" if cell is None else str(cell)


def with_cost(yaml: str, **prices: str) -> str:
    """Give a catalogue in which usage of meters costs their seller so much per million."""
    for meter, amount in prices.items():
        priced = f'{{name: {meter}, unit: tokens, cost_price: {{amount: "{amount}", per: 1000000}}}}'
        yaml = yaml.replace(f"{{name: {meter}, unit: tokens}}", priced)
    return yaml


async def test_margins_are_what_usage_leaves_of_revenue(
    bench: BillingBench, ledger_settings: Settings, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """3 million tokens at 0.40 cost 1.20 of 25.00, and as much where the invoice is void or the plan free.

    A period keeps the cost price that it ended with; where none was given yet, the first counts. Taken away, later
    periods have none. Table, JSON, CSV and Parquet say the same.
    """
    yaml = catalogue(bench.start, "a", "b") + catalogue(bench.start, "f", plan="free").rpartition("tenants:\n")[2]
    await bench.apply(with_cost(yaml, context_tokens="0.40"))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    uses = [
        use(f"u{name}", bench.start, tenant=name, context_tokens=3_000_000, generated_tokens=1_000)
        for name in ("a", "b", "f")
    ]
    await bench.send(log, *uses, watermark=bench.start + HOUR)
    await bench.run()
    (row,) = await bench.rows("SELECT invoice_id FROM invoice JOIN tenant USING (tenant_id) WHERE wire_id = 'b'")
    async with transaction(bench.billing) as conn:
        await void_invoice(conn, row["invoice_id"], note="", reissue=False, act=await act_on(conn))
    (update, *others) = [one for one in await bench.apply(with_cost(yaml, context_tokens="9")) if one.kind == "meter"]
    assert ("update", "context_tokens") == (update.action, update.name)
    assert ["unchanged"] == [one.action for one in others]
    settings = ledger_settings.model_copy(update={"database_url": bench.url})
    async with running(settings) as ledger:

        async def told(*words: str) -> Any:
            capfd.readouterr()
            assert 0 == await asyncio.to_thread(main, ["--ledger", f"127.0.0.1:{ledger.port}", *words])
            return capfd.readouterr().out

        async def by(group: str) -> list[tuple[str, int, int, int, int | None]]:
            names = (group, "revenue_minor", "own_cost_minor", "margin_minor", "margin_bp")
            rows = json.loads(await told("revenue", "margin", "--by", group, "-o", "json"))
            return [tuple(row[name] for name in names) for row in rows]  # type: ignore[misc]

        assert [("a", 2501, 120, 2381, 9520), ("b", 0, 120, -120, None), ("f", 0, 120, -120, None)] == await by(
            "tenant"
        )
        # Told only now, so it is what that hour cost as well: 1,000 tokens at 3,000 per million.
        await bench.apply(with_cost(yaml, context_tokens="9", generated_tokens="3000"))
        assert [
            ("", 2000, 0, 2000, 10_000),
            ("context_tokens", 500, 360, 140, 2800),
            ("generated_tokens", 1, 900, -899, -8_990_000),
        ] == [(name if name != month else "", *rest) for month, (name, *rest) in zip(
            [row["month"] for row in json.loads(await told("revenue", "margin", "--by", "meter", "-o", "json"))],
            await by("meter"), strict=True,
        )]  # fmt: skip
        await bench.set_now(bench.start + HOUR + 2 * GRACE)
        await bench.apply(yaml)
        await bench.set_now(bench.start + 2 * HOUR + GRACE)
        await bench.send(log, use("later", bench.start + HOUR, tenant="f", context_tokens=1_000_000),
                         watermark=bench.start + 2 * HOUR)  # fmt: skip
        await bench.run()
        # Two periods may end in two months.
        assert [2501 + 4000, 360 + 900] == [sum(row[place] for row in await by("month")) for place in (1, 2)]
        rows = json.loads(await told("revenue", "margin", "-o", "json"))
        assert [str(row["margin_minor"]) for row in rows] == [
            row["margin_minor"] for row in csv.DictReader(io.StringIO(await told("revenue", "margin", "-o", "csv")))
        ]
        await told("revenue", "margin", "-o", "parquet", "--file", str(tmp_path / "margin"))
        table = parquet.read_table(tmp_path / "margin")
        for name in ("revenue", "own_cost", "margin"):
            assert [Decimal(row[f"{name}_minor"]) / 100 for row in rows] == table.column(name).to_pylist()
        assert "-4.20 USD" in await told("revenue", "margin")


@pytest.mark.parametrize("mode", ["exclusive", "inclusive"])
async def test_rows_of_an_invoice_cost_its_total(
    bench: BillingBench, ledger_settings: Settings, capfd: pytest.CaptureFixture[str], tmp_path: Path, mode: str
) -> None:
    """Page by page every line and tax is a row; an invoice's rows cost its total; the command prints the same.

    As Parquet they are the same figures as well.
    """
    invoices = await billed(bench, mode=mode)
    async with superuser(bench.url) as conn:
        totals = dict(await conn.fetch("SELECT number, total_minor FROM invoice"))
    settings = ledger_settings.model_copy(update={"database_url": bench.url})
    async with running(settings) as ledger:
        address = f"127.0.0.1:{ledger.port}"
        async with grpc.aio.insecure_channel(address) as channel:
            stub = reports_pb2_grpc.ReportServiceStub(channel)
            request = reports_pb2.ExportFocusRequest(page_size=2)
            rows: list[dict[str, str]] = []
            while True:
                page = await stub.ExportFocus(request)
                rows += [dict(row.columns) for row in page.rows]
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            with pytest.raises(grpc.aio.AioRpcError, match="not known"):
                await stub.GetRevenue(reports_pb2.GetRevenueRequest(by="colour"))
        costs: dict[str, Decimal] = {}
        for row in rows:
            costs[row["InvoiceId"]] = costs.get(row["InvoiceId"], Decimal(0)) + Decimal(row["BilledCost"])
        assert {number: Decimal(total) / 100 for number, total in totals.items()} == costs
        assert {"Purchase", "Usage", "Tax"} == {row["ChargeCategory"] for row in rows}

        async def cli(*words: str) -> str:
            capfd.readouterr()
            assert 0 == await asyncio.to_thread(main, ["--ledger", address, *words])
            return capfd.readouterr().out

        assert rows == list(csv.DictReader(io.StringIO(await cli("revenue", "focus"))))
        await cli("revenue", "focus", "--format", "parquet", "--file", str(tmp_path / "focus"))
        for row, read in zip(rows, parquet.read_table(tmp_path / "focus").to_pylist(), strict=True):
            assert {name: as_text(cell, row[name]) for name, cell in read.items()} == row
        for words, amount in (
            (("revenue", "show", "--by", "meter"), "revenue"),
            (("revenue", "receivables"), "total"),
            (("invoice", "list"), "total"),
        ):
            await cli(*words, "-o", "parquet", "--file", str(tmp_path / "file"))
            table = parquet.read_table(tmp_path / "file")
            told = json.loads(await cli(*words, "-o", "json"))
            assert [one[f"{amount}_minor"] for one in told] == [100 * one for one in table.column(amount).to_pylist()]
            assert [one[f"{amount}_minor"] for one in told] == table.column(f"{amount}_minor").to_pylist()
        owed = json.loads(await cli("revenue", "receivables", "-o", "json"))
        assert len(invoices) == len(owed)
        (earned,) = json.loads(await cli("revenue", "show", "--by", "plan", "-o", "json"))
        assert "hourly" == earned["plan"]


@pytest.mark.parametrize("mode", ["exclusive", "inclusive"])
async def test_rows_of_credit_notes_take_off_their_totals(
    bench: BillingBench, ledger_settings: Settings, mode: str
) -> None:
    """Two credits on an invoice are rows of their own documents, once over all pages; with them rows cost the rest."""
    first, second, _ = await billed(bench, mode=mode)
    async with transaction(bench.billing) as conn:
        for amount_minor in (1190, 1):
            await credit_invoice(
                conn, second, amount_minor=amount_minor, note="late", refund=False, act=await act_on(conn)
            )
        await void_invoice(conn, first, note="", reissue=False, act=await act_on(conn))
    async with superuser(bench.url) as conn:
        left = await conn.fetchval("SELECT sum(total_minor) FROM invoice WHERE invoice_id <> $1", first) - 1191
        taken = dict(await conn.fetch("SELECT number, -amount_minor FROM credit_note"))
    settings = ledger_settings.model_copy(update={"database_url": bench.url})
    rows: list[dict[str, str]] = []
    async with running(settings) as ledger, grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
        stub = reports_pb2_grpc.ReportServiceStub(channel)
        request = reports_pb2.ExportFocusRequest(page_size=1)
        while True:
            page = await stub.ExportFocus(request)
            rows += [dict(row.columns) for row in page.rows]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    assert left == 100 * sum(Decimal(row["BilledCost"]) for row in rows)
    corrected: dict[str, Decimal] = dict.fromkeys(taken, Decimal(0))
    for row in rows:
        if row["ChargeClass"] == "Correction":
            assert row["ChargeCategory"] in {"Credit", "Tax"}
            corrected[row["InvoiceId"]] += 100 * Decimal(row["BilledCost"])
    assert {-1190, -1} == set(taken.values())
    assert taken == corrected
    assert 2 == sum(row["ChargeCategory"] == "Credit" for row in rows)
    assert all(": late" in row["ChargeDescription"] for row in rows if row["ChargeCategory"] == "Credit")
