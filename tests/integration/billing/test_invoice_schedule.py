# ruff: noqa: SIM300 - expected first, then actual
"""Invoices are run by the clock where a schedule is set, and once however many do it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import structlog
from billing_bench import catalogue, use
from pydantic import SecretStr
from tollkeeper_ledger import app
from tollkeeper_ledger.app import run_jobs
from tollkeeper_ledger.config import ConfigurationError
from tollkeeper_ledger.jobs import runner
from tollkeeper_ledger.jobs.runner import SCHEDULES, running_jobs, schedules_with
from tollkeeper_ledger.services.invoice_issue import Run
from tollkeeper_ledger.services.invoice_run import run_invoices
from tollkeeper_ledger.services.invoice_schedule import run_due_invoices
from waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

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

    async def jobs() -> None:
        schedules = {"run_invoices": "* * * * *"}
        async with running_jobs(bench.ingest_pool, quiet, money={"run_invoices": duty}, schedules=schedules):
            pass

    await asyncio.gather(jobs(), jobs())
    assert 3 == sum(made)
    await jobs()
    assert 3 == sum(made)
    rows = await bench.rows("SELECT serial FROM invoice ORDER BY serial")
    assert [1, 2, 3] == [row["serial"] for row in rows]
    actors = await bench.rows("SELECT DISTINCT actor FROM audit_log WHERE action ~ 'Invoice'")
    assert ["jobs"] == [row["actor"] for row in actors]


@pytest.mark.asyncio
async def test_a_run_by_the_clock_names_who_is_held_and_why(bench: BillingBench) -> None:
    """Nobody reads its answer, so its log has each held tenant with the reason that `invoice run` gives."""
    await bench.apply(catalogue(bench.start, "late", "quick"))
    log = await bench.new_log()
    await bench.send(log, use("u", bench.start, tenant="late", context_tokens=1), watermark=bench.start)
    await bench.set_now(bench.start + HOUR + GRACE)
    with structlog.testing.capture_logs() as logged:
        made = await run_due_invoices(bench.billing, structlog.get_logger())
    expected = {
        (step.held_tenant, step.held_reason)
        async for step in run_invoices(bench.billing, run=Run(actor="t", request_id="r"), only=None)
        if step.held_tenant
    }
    held = {(one["tenant"], one["reason"]) for one in logged if one["event"] == "invoice held"}
    assert ({"late"}, 1) == ({tenant for tenant, _ in expected}, made)
    assert expected == held
    assert all(reason for _, reason in held)


@pytest.mark.asyncio
async def test_a_duty_that_fails_at_the_start_ends_nothing(bench: BillingBench) -> None:
    """It is logged by its name; the other duties are done, the runner goes on, and a long run keeps nobody waiting."""
    done: list[str] = []
    release = asyncio.Event()

    async def fails() -> None:
        raise LookupError("no such thing")

    async def takes_long() -> None:
        await release.wait()
        done.append("run_invoices")

    async def works() -> None:
        done.append("bill_thresholds")

    money = {"warn_cards": fails, "run_invoices": takes_long, "bill_thresholds": works}
    schedules = dict.fromkeys(money, "0 0 1 1 *")
    with structlog.testing.capture_logs() as logged:
        async with running_jobs(bench.ingest_pool, structlog.get_logger(), money=money, schedules=schedules):
            assert ["bill_thresholds"] == done
            release.set()
    assert ["bill_thresholds", "run_invoices"] == done
    failed = [(one["job"], one["error"]) for one in logged if one["event"] == "job failed"]
    assert [("warn_cards", "no such thing")] == failed


@pytest.mark.asyncio
async def test_every_duty_runs_by_its_clock(
    bench: BillingBench, ledger_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ledger jobs` gives each schedule a duty and each duty a schedule, and bills by the clock, not at its start only.

    All that is optional is configured; invoices are run each second, which no setting allows.
    """
    stop = asyncio.Event()
    monkeypatch.setattr(app, "stop_by_signals", lambda: stop)
    monkeypatch.setattr(runner, "schedules_with", lambda text: {**schedules_with(text), "run_invoices": "* * * * * *"})
    await bench.apply(catalogue(bench.start, "a"))
    optional = {
        "invoice_schedule": "*/15 * * * *",
        "archive_dir": tmp_path,
        "stripe_key": SecretStr("sk_test"),
        "stripe_url": "http://127.0.0.1:1",
    }
    jobs = asyncio.create_task(run_jobs(ledger_settings.model_copy(update={"database_url": bench.url, **optional})))
    try:
        # The first may be made at the start; the second can't.
        for hours in (1, 2):
            await bench.set_now(bench.start + hours * HOUR + GRACE)

            async def is_billed(hours: int = hours) -> bool:
                return jobs.done() or len(await bench.documents("a")) == hours

            await wait_until(is_billed, "an invoice by the clock")
            assert not jobs.done()
        rows = await bench.rows("SELECT entrypoint, expression FROM pgqueuer_schedules")
        assert {**SCHEDULES, "run_invoices": "* * * * * *"} == {row["entrypoint"]: row["expression"] for row in rows}
    finally:
        stop.set()
        await jobs


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
