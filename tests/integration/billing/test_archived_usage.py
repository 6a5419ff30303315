# ruff: noqa: SIM300 - expected first, then actual
"""Invoices whose raw records are in the file of an archived month."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import grpc.aio
import pytest
import structlog
from billing_bench import catalogue, use
from tollkeeper.ledger.v1 import billing_pb2, billing_pb2_grpc
from tollkeeper_ledger.app import running
from tollkeeper_ledger.domain.errors import PreconditionError
from tollkeeper_ledger.domain.windows import add_months
from tollkeeper_ledger.jobs.upkeep import Upkeep
from tollkeeper_ledger.services.invoice_verify import reproduce_invoice, verify_invoice
from tollkeeper_ledger.services.usage_archive import Archiver
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from billing_bench import BillingBench
    from tollkeeper_ledger.config import Settings
    from tollkeeper_ledger.services.closed_usage import Check
    from tollkeeper_ledger.store.pool import Connection

pytestmark = pytest.mark.asyncio
LOG = structlog.get_logger()
HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)


async def test_an_archived_months_invoice_is_checked_as_far_as_its_inputs(bench: BillingBench, tmp_path: Path) -> None:
    """Verification says that raw records are archived; the bytes come from the inputs; back again, from records too."""
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, use("a", bench.start, context_tokens=5_000_000), watermark=bench.start + HOUR)
    await bench.run()
    await bench.set_now(bench.start + timedelta(days=470))
    await Upkeep(bench.ingest_pool, LOG).expire_ids()
    archiver = Archiver(bench.ingest_pool, tmp_path, months_kept=13, log=LOG)
    (archived,) = await archiver.archive_due()
    (row,) = await bench.rows("SELECT invoice_id, document FROM invoice")
    async with transaction(bench.billing) as conn:
        checks = {check.name: check for check in await verify_invoice(conn, row["invoice_id"])}
        assert {check.ok for check in checks.values()} == {True}
        told = f"raw records of {archived.month:%Y-%m} are archived"
        assert told in checks["chain"].detail
        assert told in checks["usage"].detail
        assert row["document"] == (await reproduce_invoice(conn, row["invoice_id"], from_records=False)).document
        with pytest.raises(PreconditionError) as refused:
            await reproduce_invoice(conn, row["invoice_id"], from_records=True)
        assert "USAGE_ARCHIVED" == refused.value.reason
    await archiver.bring_back(archived.month)
    async with transaction(bench.billing) as conn:
        assert row["document"] == (await reproduce_invoice(conn, row["invoice_id"], from_records=True)).document
        checks = {check.name: check for check in await verify_invoice(conn, row["invoice_id"])}
        assert "1 records, 1 sums" == checks["usage"].detail


async def test_no_month_leaves_while_an_invoice_is_checked(
    bench: BillingBench, ledger_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a check sees as still there is still there when it reads it: the month waits for its next turn."""
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, use("a", bench.start, context_tokens=5_000_000), watermark=bench.start + HOUR)
    await bench.run()
    await bench.set_now(bench.start + timedelta(days=470))
    await Upkeep(bench.ingest_pool, LOG).expire_ids()
    archiver = Archiver(bench.ingest_pool, tmp_path, months_kept=13, log=LOG)

    async def meanwhile(conn: Connection, invoice_id: UUID) -> list[Check]:
        await conn.fetchval("SELECT count(*) FROM invoice")
        assert [] == await archiver.archive_due()
        return await verify_invoice(conn, invoice_id)

    (row,) = await bench.rows("SELECT number FROM invoice")
    settings = ledger_settings.model_copy(update={"database_url": bench.url})
    async with running(settings) as ledger, grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
        monkeypatch.setattr("tollkeeper_ledger.rpc.billing_service.verify_invoice", meanwhile)
        service = billing_pb2_grpc.BillingServiceStub(channel)
        answer = await service.VerifyInvoice(billing_pb2.VerifyInvoiceRequest(invoice=row["number"]))
    assert [] == [check.detail for check in answer.checks if not check.ok]
    assert 1 == len(await archiver.archive_due())


PER_RECORD = """
version: 1
seller: {{id: default, name: Example, address: [Street 1], invoice_prefix: TK, currency: USD, time_zone: UTC}}
meters: [{{name: turnover, unit: cents}}]
plans:
  - name: quarterly
    billing_interval: {{unit: month, count: 3}}
    grace: {{unit: minute, count: 5}}
    prices:
      - {{meter: turnover, model: percentage, convert: {{divide_by: 100}}, rate_percent: "1", fixed_per_event: "0.30",
          free_events: 1}}
tenants: [{{id: code, plan: quarterly, subscription: {{start: "{start}"}}}}]
"""


async def with_late_usage(bench: BillingBench) -> datetime:
    """Bill a quarter whose first record is free, have another one come late, and give the next quarter's end."""
    await bench.apply(PER_RECORD.format(start=bench.start.isoformat()))
    log = await bench.new_log()
    days = [add_months(bench.start.date(), months) for months in (3, 6)]
    first, second = (datetime.combine(day, bench.start.timetz()) for day in days)
    await bench.set_now(bench.start + HOUR)
    await bench.send(log, use("free", bench.start, turnover=10_000), watermark=bench.start)
    await bench.set_now(first + GRACE)
    await bench.send(log, watermark=first)
    await bench.run()
    await bench.send(log, use("late", first - HOUR, received=first, turnover=10_000), watermark=first)
    await bench.set_now(bench.start + timedelta(days=140))
    await Upkeep(bench.ingest_pool, LOG).expire_ids()
    return second


async def test_records_stay_that_late_usage_is_priced_beside(bench: BillingBench, tmp_path: Path) -> None:
    """A month is archived only when no late usage of its period may come or waits: its price may depend on all records.

    The late record is the second of its quarter, so it is not the free one.
    """
    second = await with_late_usage(bench)
    archiver = Archiver(bench.ingest_pool, tmp_path, months_kept=4, log=LOG)
    assert [] == await archiver.archive_due()
    await bench.set_now(second + GRACE)
    await bench.rows("UPDATE producer SET watermark = $1", second)
    await bench.run()
    (line,) = (await bench.documents("code"))[1]["lines"]
    assert (True, 130) == (line["late"], line["amount_minor"])
    await Upkeep(bench.ingest_pool, LOG).expire_ids()
    (archived,) = await archiver.archive_due()
    assert bench.start.month == archived.month.month


async def test_what_is_archived_too_early_holds_the_invoice(
    bench: BillingBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where records are away that a price needs, the period is held and says why; with them back it is billed right."""
    second = await with_late_usage(bench)
    archiver = Archiver(bench.ingest_pool, tmp_path, months_kept=4, log=LOG)

    async def nothing_is_open(*_: object, **__: object) -> None:
        return None

    with monkeypatch.context() as patched:
        patched.setattr("tollkeeper_ledger.store.usage_archive.open_period", nothing_is_open)
        (archived,) = await archiver.archive_due()
    await bench.set_now(second + GRACE)
    await bench.rows("UPDATE producer SET watermark = $1", second)
    held = [step.held_reason for step in await bench.run() if step.held_reason]
    assert [f"raw records of {archived.month:%Y-%m} are archived" in reason for reason in held] == [True]
    await archiver.bring_back(archived.month)
    await bench.run()
    (line,) = (await bench.documents("code"))[1]["lines"]
    assert (True, 130) == (line["late"], line["amount_minor"])
