"""Large runs bill in several processes: whichever dies, each period is billed once, and numbers have no gap."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING

import psutil
import pytest
from billing_bench import RUN, catalogue, superuser
from tollkeeper_ledger.domain.invoice import document_to_bytes
from tollkeeper_ledger.services import billing_processes, invoice_run
from tollkeeper_ledger.services.billing_processes import BillingProcesses
from tollkeeper_ledger.store.billing_invoices import ToldInvoice

if TYPE_CHECKING:
    from billing_bench import BillingBench
    from tollkeeper_ledger.services.invoice_run import Progress

pytestmark = pytest.mark.asyncio

HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)
HOURS, TENANTS = 3, 9
_WAIT_S = 60.0


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invoice_run, "TENANTS_PER_BATCH", 2)


async def make_due(bench: BillingBench) -> None:
    """Have three hours of nine tenants due."""
    await bench.apply(catalogue(bench.start, *(f"t{n}" for n in range(TENANTS))))
    await bench.set_now(bench.start + HOURS * HOUR + GRACE)


def beside(bench: BillingBench, count: int = 1) -> BillingProcesses:
    """Have processes for any run, however few cores there are."""
    return BillingProcesses(bench.url, count_max=count, periods_min=0, cores=count + 1)


def billers() -> list[psutil.Process]:
    """Give this process' children that bill."""
    found = []
    for child in psutil.Process().children():
        try:
            if billing_processes.MODULE in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


async def all_is_billed_once(bench: BillingBench) -> None:
    """Hold what is stored against three hours of nine tenants, each once."""
    rows = await bench.rows("SELECT serial, tenant_id, period_start FROM invoice ORDER BY serial")
    assert list(range(1, HOURS * TENANTS + 1)) == [row["serial"] for row in rows]
    assert len({(row["tenant_id"], row["period_start"]) for row in rows}) == HOURS * TENANTS


def told(steps: list[Progress]) -> list[ToldInvoice]:
    """Give the invoices that other processes made."""
    return [step.invoice for step in steps if isinstance(step.invoice, ToldInvoice)]


async def test_runs_with_processes_make_each_invoice_once(bench: BillingBench) -> None:
    """Two runs at once, a process more each: each period once, no gap; what is told of an invoice is what is stored."""
    await make_due(bench)
    both = await asyncio.gather(*(bench.run(processes=beside(bench)) for _ in range(2)))
    await all_is_billed_once(bench)
    steps = [step for run in both for step in run]
    assert sum(step.invoice is not None for step in steps) == HOURS * TENANTS
    stored = {row["digest"]: row["document"] for row in await bench.rows("SELECT digest, document FROM invoice")}
    assert told(steps)
    for invoice in told(steps):
        assert stored[invoice.digest] == document_to_bytes(invoice.read())
    assert not billers()


async def test_a_process_that_is_killed_costs_no_invoice(bench: BillingBench) -> None:
    """Two processes are killed with batches under way: the run goes on alone, and all is billed once, without a gap."""
    await make_due(bench)
    # Every batch waits for the lock: four in the processes, one here.
    async with superuser(bench.url) as conn, conn.transaction():
        await conn.execute("LOCK TABLE receivable IN ACCESS EXCLUSIVE MODE")
        run = asyncio.create_task(bench.run(processes=beside(bench, 2)))
        async with asyncio.timeout(_WAIT_S):
            while await waiting_batches(bench) < 5:  # noqa: ASYNC110 - Postgres tells nobody
                await asyncio.sleep(0.01)
        killed = billers()
        assert len(killed) == 2
        for process in killed:
            process.kill()
    steps = await run
    await all_is_billed_once(bench)
    assert not told(steps)
    assert steps[-1].done == HOURS * TENANTS
    assert not billers()


async def waiting_batches(bench: BillingBench) -> int:
    """Count connections of runs that wait for a lock."""
    (row,) = await bench.rows(
        "SELECT count(*) AS waiting FROM pg_stat_activity WHERE application_name = 'tollkeeper_billing'"
        " AND datname = current_database() AND wait_event_type = 'Lock'"
    )
    return int(row["waiting"])


async def test_a_run_that_is_left_ends_its_processes(bench: BillingBench) -> None:
    """A caller goes away after the first invoice: no process is left, and what was closed is billed."""
    await make_due(bench)
    async with aclosing(invoice_run.run_invoices(bench.billing, run=RUN, only=None, processes=beside(bench))) as steps:
        async for step in steps:
            if step.invoice is not None:
                assert len(billers()) == 1
                break
    assert not billers()
    (left,) = await bench.rows(
        "SELECT (SELECT count(*) FROM billing_close) AS closes, (SELECT count(*) FROM invoice) AS invoices"
    )
    assert 0 < left["invoices"] == left["closes"] < HOURS * TENANTS
    await bench.run(processes=beside(bench))
    await all_is_billed_once(bench)


async def test_a_process_ends_with_its_parent(bench: BillingBench) -> None:
    """The socket of a process that bills is closed, as by a parent that was killed: it ends by itself."""
    opening = billing_processes.Opening(bench.url, RUN, with_lines=False)
    async with billing_processes.billing_processes(opening, 1) as (process,):
        process.writer.close()
        async with asyncio.timeout(_WAIT_S):
            assert await process.process.wait() == 0


async def test_a_process_that_reaches_no_postgres_costs_no_invoice(bench: BillingBench) -> None:
    """Processes whose connections are refused: the run bills alone."""
    await make_due(bench)
    nowhere = bench.url.replace(bench.url.rpartition("/")[2].partition("?")[0], "no_such_database")
    steps = await bench.run(processes=BillingProcesses(nowhere, count_max=1, periods_min=0, cores=2))
    await all_is_billed_once(bench)
    assert not told(steps)
    assert steps[-1].done == HOURS * TENANTS


@pytest.mark.parametrize(
    ("due", "cores", "expected"), [(1_999, 8, 0), (2_000, 8, 3), (2_000, 3, 2), (2_000, 2, 1), (100_000, 1, 0)]
)
async def test_processes_are_for_large_runs_and_other_cores(due: int, cores: int, expected: int) -> None:
    """A small run, and one on one core, bill in their own process; others have one for each core more, bounded."""
    assert expected == BillingProcesses("", count_max=3, cores=cores).count_for(due)
