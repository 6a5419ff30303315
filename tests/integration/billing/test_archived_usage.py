# ruff: noqa: SIM300 - expected first, then actual
"""Invoices whose raw records are in the file of an archived month."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import structlog
from billing_bench import catalogue, use
from tollkeeper_ledger.domain.errors import PreconditionError
from tollkeeper_ledger.jobs.upkeep import Upkeep
from tollkeeper_ledger.services.invoice_verify import reproduce_invoice, verify_invoice
from tollkeeper_ledger.services.usage_archive import Archiver
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from pathlib import Path

    from billing_bench import BillingBench

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
