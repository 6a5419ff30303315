# ruff: noqa: SIM300 - expected first, then actual
"""Invoices are run by the clock where a schedule is set, and once however many do it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import structlog
from billing_bench import catalogue, use
from tollkeeper_ledger.app import run_jobs
from tollkeeper_ledger.config import ConfigurationError
from tollkeeper_ledger.jobs.runner import SCHEDULES, running_jobs, schedules_with
from tollkeeper_ledger.services.invoice_schedule import run_due_invoices

if TYPE_CHECKING:
    from billing_bench import BillingBench
    from tollkeeper_ledger.config import Settings

HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)


@pytest.mark.asyncio
async def test_two_runners_of_jobs_make_each_invoice_once(bench: BillingBench) -> None:
    """Two runners that begin at once bill three tenants' hour, and a third nothing more; the audit says `jobs`."""
    names = ("a", "b", "c")
    await bench.apply(catalogue(bench.start, *names))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    uses = [use(f"u{name}", bench.start, tenant=name, context_tokens=3_000_000) for name in names]
    await bench.send(log, *uses, watermark=bench.start + HOUR)
    quiet = structlog.wrap_logger(structlog.ReturnLogger())
    made: list[int] = []

    async def duty() -> None:
        made.append(await run_due_invoices(bench.billing, quiet))

    async def runner() -> None:
        schedules = {"run_invoices": "* * * * *"}
        async with running_jobs(bench.ingest_pool, quiet, money={"run_invoices": duty}, schedules=schedules):
            pass

    await asyncio.gather(runner(), runner())
    assert 3 == sum(made)
    await runner()
    assert 3 == sum(made)
    rows = await bench.rows("SELECT serial FROM invoice ORDER BY serial")
    assert [1, 2, 3] == [row["serial"] for row in rows]
    actors = await bench.rows("SELECT DISTINCT actor FROM audit_log WHERE action ~ 'Invoice'")
    assert ["jobs"] == [row["actor"] for row in actors]


def test_invoices_are_scheduled_only_where_it_is_said() -> None:
    """Nothing is billed by the clock unless an operator sets when."""
    assert SCHEDULES == schedules_with("")
    assert "run_invoices" not in SCHEDULES
    assert {**SCHEDULES, "run_invoices": "*/15 * * * *"} == schedules_with("*/15 * * * *")


@pytest.mark.asyncio
@pytest.mark.parametrize("schedule", ["hourly", "61 * * * *", "* * * * * *", "* * *"])
async def test_a_schedule_that_is_none_is_refused_by_name(ledger_settings: Settings, schedule: str) -> None:
    """`ledger jobs` does not start, and says which setting is wrong."""
    settings = ledger_settings.model_copy(update={"invoice_schedule": schedule})
    with pytest.raises(ConfigurationError, match="TOLLKEEPER_INVOICE_SCHEDULE"):
        await run_jobs(settings)
