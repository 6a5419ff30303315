"""Months of raw records that are kept as files: which are due, and what is told of one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import PreconditionError
from tollkeeper_ledger.domain.windows import add_months

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import date

LATE_FOR = timedelta(days=50)
"""Longer than a record may be committed after its event."""
MONTHS_KEPT_MIN = 4
"""A record is committed within 49 days of its event, and its id kept for 49 more: older ones can't come or change."""


class ArchiveError(Exception):
    """Says why a month stays where it is."""


class RecordsAwayError(PreconditionError, ValueError):
    """Refuses what needs raw records that are in files only; a period that does can't be billed meanwhile."""


@dataclass(frozen=True, slots=True)
class ArchivedMonth:
    """What Postgres keeps of a month whose raw records are in a file."""

    month: date
    """Its first day, UTC."""
    records: int
    rows_digest: bytes
    """SHA-256 over the records' hashes in order of batch and sequence number."""
    file: str
    """Name in the archive's directory."""
    file_digest: bytes
    """SHA-256 over the file's bytes."""


def file_name(month: date) -> str:
    """Name the file of a month."""
    return f"usage_record_{month:%Y%m}.parquet"


def named_file(month: date, file: str) -> str:
    """Give the name of a month's file as Postgres has it. Raises ValueError where that is no file of the archive.

    Whoever changed it may name anything, also what never ends.
    """
    if file != file_name(month):
        raise ValueError(f"its file is called {file!r}, not {file_name(month)}")
    return file


def span_of_month(month: date) -> tuple[datetime, datetime]:
    """Give the first instant of a month and of the next, UTC."""
    first, end = (datetime(day.year, day.month, 1, tzinfo=UTC) for day in (month, add_months(month, 1)))
    return first, end


def due_months(months: Iterable[date], *, today: date, kept: int) -> list[date]:
    """Give those months, oldest first, that ended at least `kept` months before the one that `today` is in."""
    first_kept = add_months(today.replace(day=1), -kept)
    return sorted(month for month in months if month < first_kept)


def away_text(months: Sequence[date]) -> str:
    """Say for people which months' raw records are in files only."""
    told = ", ".join(f"{month:%Y-%m}" for month in months)
    return f"raw records of {told} are archived"


def need_records(months: Sequence[date]) -> None:
    """Refuse to go on without raw records. Raises RecordsAwayError where those of `months` are in files only."""
    if months:
        told = ",".join(f"{month:%Y-%m}" for month in months)
        raise RecordsAwayError(
            f"{away_text(months)}; `tollkeeper ledger restore-month` brings them back",
            reason="USAGE_ARCHIVED",
            metadata={"months": told},
        )
