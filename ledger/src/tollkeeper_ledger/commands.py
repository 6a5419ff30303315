"""What an operator tells the ledger to do once, beside serving."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tollkeeper_ledger.config import ConfigurationError
from tollkeeper_ledger.domain.usage_archive import ArchiveError
from tollkeeper_ledger.services.usage_archive import Archiver
from tollkeeper_ledger.services.usage_rebuild import rebuild_rollups
from tollkeeper_ledger.store.pool import open_pool

if TYPE_CHECKING:
    from datetime import date

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.config import Settings
    from tollkeeper_ledger.store.pool import Pool


async def rebuild(settings: Settings, *, check_only: bool) -> int:
    """Compare rollups with their records, and make those anew that differ; give how many rows differed."""
    pool = await open_pool(settings.database_url, role="tollkeeper_ingest", size=2)
    count = hours = 0
    try:
        async for hour in rebuild_rollups(pool, check_only=check_only):
            hours += 1
            count += len(hour.findings)
            for finding in hour.findings:
                sys.stdout.write(f"{finding.table}: {finding.row} {finding.problem}\n")
    finally:
        pool.terminate()
    sys.stdout.write(
        f"{hours} hours, {count} rows differed{'' if check_only or not count else ' and were made anew'}\n"
    )
    return count


def archiver_of(settings: Settings, pool: Pool, log: FilteringBoundLogger) -> Archiver | None:
    """Give what archives months; None where no directory is set."""
    if settings.archive_dir is None:
        return None
    return Archiver(pool, settings.archive_dir, months_kept=settings.archive_after_months, log=log)


async def move_month(settings: Settings, log: FilteringBoundLogger, command: str, month: date) -> str:
    """Archive one month's records, or bring them back, by an operator's command; gives what was done, for people.

    Raises ConfigurationError: no directory is set, or the month has to stay where it is.
    """
    pool = await open_pool(settings.database_url, role="tollkeeper_ingest", size=4)
    try:
        archiver = archiver_of(settings, pool, log)
        if archiver is None:
            raise ConfigurationError("TOLLKEEPER_ARCHIVE_DIR: set the directory of archived months")
        if command == "restore-month":
            return f"{await archiver.bring_back(month)} records of {month:%Y-%m} are back"
        archived = await archiver.archive(month)
        return f"{month:%Y-%m}: " + (
            "nothing to archive" if archived is None else f"{archived.records} records are in {archived.file}"
        )
    except ArchiveError as error:
        raise ConfigurationError(str(error)) from error
    finally:
        pool.terminate()
