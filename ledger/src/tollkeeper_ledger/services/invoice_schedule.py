"""Run invoices by the clock."""

from __future__ import annotations

import uuid
from contextlib import aclosing
from typing import TYPE_CHECKING

from tollkeeper_ledger.services.invoice_issue import Run
from tollkeeper_ledger.services.invoice_run import run_invoices

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.services.billing_processes import BillingProcesses
    from tollkeeper_ledger.store.pool import Pool


_NAMED_MAX = 100
"""So many held periods of a run are named in the log; the rest are counted."""


async def run_due_invoices(pool: Pool, log: FilteringBoundLogger, *, processes: BillingProcesses | None = None) -> int:
    """Bill every period that is due, as `invoice run` does, and give how many invoices were made.

    Any number of processes may do so at once: each invoice is made once. What is held is named with
    its reason in the log, and tried next time.
    """
    made = held = 0
    run = Run(actor="jobs", request_id=f"jobs/{uuid.uuid4()}")
    async with aclosing(run_invoices(pool, run=run, only=None, processes=processes, with_lines=False)) as steps:
        async for step in steps:
            made += step.invoice is not None
            held += bool(step.held_tenant)
            if step.held_tenant and held <= _NAMED_MAX:
                log.warning("invoice held", tenant=step.held_tenant, reason=step.held_reason)
    if made or held:
        log.info("invoices run", made=made, held=held)
    return made
