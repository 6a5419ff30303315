"""Read records wherever they are: in Postgres, or in files of archived months."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import PreconditionError
from tollkeeper_ledger.domain.usage_archive import away_text, named_file, need_records
from tollkeeper_ledger.services.archive_file import find_in_file
from tollkeeper_ledger.store import usage_archive as archives
from tollkeeper_ledger.store.damaged import UNREADABLE
from tollkeeper_ledger.store.usage_audit import batch_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date, datetime
    from pathlib import Path

    from tollkeeper_ledger.domain.usage_audit import AuditedRecord
    from tollkeeper_ledger.store.pool import Connection


async def records_of_batch(
    conn: Connection, batch_id: int, names: Mapping[int, str], directory: Path | None
) -> list[AuditedRecord]:
    """Give the records of a batch in order; `names` of meters, `directory` with the files of archived months.

    Raises PreconditionError USAGE_ARCHIVED where a file is needed that can't be read.
    """
    here = (await batch_rows(conn, [batch_id], names)).get(batch_id, [])
    away = await archived_records(directory, await archives.archives_of_batch(conn, batch_id), batch_id=batch_id)
    return sorted([*here, *away], key=lambda record: record.seq)


async def archived_records(
    directory: Path | None, months: Mapping[date, str], **values: str | int | datetime
) -> list[AuditedRecord]:
    """Give the records of archived months whose columns have these values; `months` with the names of their files.

    Raises PreconditionError USAGE_ARCHIVED where a file can't be read.
    """
    if directory is None:
        need_records(list(months))
        return []
    records = []
    for month, file in months.items():
        try:
            records += await asyncio.to_thread(find_in_file, directory / named_file(month, file), **values)
        except (OSError, *UNREADABLE) as error:
            told = f"{away_text([month])}, and their file can't be read here: {error}"
            raise PreconditionError(told, reason="USAGE_ARCHIVED", metadata={"months": f"{month:%Y-%m}"}) from error
    return records
