"""Run invoices by the clock."""

from __future__ import annotations

import uuid
from contextlib import aclosing
from typing import TYPE_CHECKING

from tollkeeper_ledger.services.invoice_issue import Run
from tollkeeper_ledger.services.invoice_run import run_invoices

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.store.pool import Pool


async def run_due_invoices(pool: Pool, log: FilteringBoundLogger) -> int:
    """Bill every period that is due, as `invoice run` does, and give how many invoices were made.

    Any number of processes may do so at once: each invoice is made once. What is held is logged and tried next time.
    """
    made = held = 0
    run = Run(actor="jobs", request_id=f"jobs/{uuid.uuid4()}")
    async with aclosing(run_invoices(pool, run=run, only=None)) as steps:
        async for step in steps:
            made += step.invoice is not None
            held += bool(step.held_tenant)
    if made or held:
        log.info("invoices run", made=made, held=held)
    return made
