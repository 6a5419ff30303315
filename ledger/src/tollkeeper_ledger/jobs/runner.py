"""Run duties by the clock on pgqueuer, whose tables see to it that one of several runners does each."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING

from croniter import croniter
from pgqueuer import PgQueuer

from tollkeeper_ledger.jobs.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from pgqueuer.models import Schedule
    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.services.usage_archive import Archiver
    from tollkeeper_ledger.store.pool import Pool

    Duty = Callable[[], Awaitable[object]]

_CRON_FIELDS = 5
SCHEDULES = {
    "make_months": "17 * * * *",
    "expire_ids": "*/10 * * * *",
    "expire_settlements": "29 * * * *",
    "expire_readings": "37 * * * *",
    "expire_answers": "47 * * * *",
    "expire_decisions": "59 * * * *",
    "expire_messages": "53 * * * *",
    "archive_months": "41 * * * *",
    "reconcile": "23 3 * * *",
    "warn_cards": "7 8 * * *",
    "bill_thresholds": "* * * * *",
}
"""When each duty is done, as cron has it, in UTC."""
_LONG = ("archive_months", "run_invoices")
"""Duties that may take minutes or hours: at the start the others are not kept waiting by them."""


def schedules_with(invoice_schedule: str) -> dict[str, str]:
    """Give every schedule, that of invoices where one is set. Raises ValueError: it is none that cron knows."""
    if not invoice_schedule:
        return dict(SCHEDULES)
    if not croniter.is_valid(invoice_schedule) or len(invoice_schedule.split()) != _CRON_FIELDS:
        raise ValueError(f"{invoice_schedule!r} is no cron expression of five fields, such as */15 * * * *")
    return {**SCHEDULES, "run_invoices": invoice_schedule}


def duties_of(upkeep: Upkeep, archiver: Archiver | None, money: Mapping[str, Duty]) -> dict[str, Duty]:
    """Give every duty by name; nothing is archived without an archiver. `money` are those of the billing role."""
    duties: dict[str, Duty] = {
        "make_months": upkeep.make_months,
        "expire_ids": upkeep.expire_ids,
        "expire_settlements": upkeep.expire_settlements,
        "expire_readings": upkeep.expire_readings,
        "expire_answers": upkeep.expire_answers,
        "expire_decisions": upkeep.expire_decisions,
    }
    if archiver is not None:
        duties["archive_months"] = archiver.archive_due
    return duties | dict(money)


@asynccontextmanager
async def running_jobs(
    pool: Pool,
    log: FilteringBoundLogger,
    *,
    archiver: Archiver | None = None,
    money: Mapping[str, Duty] = MappingProxyType({}),
    schedules: Mapping[str, str] = SCHEDULES,
) -> AsyncIterator[None]:
    """Do every duty once, then by the clock until the block ends; one under way is finished first.

    Long ones are done beside the others. A duty that fails, also at the start, is logged and done again at its next
    time.
    """
    duties = {name: duty for name, duty in duties_of(Upkeep(pool, log), archiver, money).items() if name in schedules}
    for name, duty in duties.items():
        if name not in _LONG:
            await _begin(name, duty, log)
    runner = PgQueuer.from_asyncpg_pool(pool)
    for name, duty in duties.items():
        _schedule(runner, name, schedules[name], duty, log)
    long = [asyncio.create_task(_begin(name, duties[name], log)) for name in _LONG if name in duties]
    task = asyncio.create_task(runner.run())
    try:
        yield
    finally:
        runner.shutdown.set()
        await asyncio.gather(task, *long)


async def _begin(name: str, duty: Duty, log: FilteringBoundLogger) -> None:
    """Do a duty for the first time; its failure is logged."""
    with suppress(Exception):
        await _do(name, duty, log)


async def _do(name: str, duty: Duty, log: FilteringBoundLogger) -> None:
    try:
        await duty()
    except Exception as error:
        log.warning("job failed", job=name, error=str(error), kind=type(error).__name__)
        raise


def _schedule(runner: PgQueuer, name: str, expression: str, duty: Duty, log: FilteringBoundLogger) -> None:
    @runner.schedule(name, expression)
    async def done(_schedule: Schedule) -> None:
        await _do(name, duty, log)
