"""Read stored usage again, in order to check it or to derive rollups anew."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.domain.usage_audit import AuditedRecord, RefusedRecord
from tollkeeper_ledger.domain.usage_rollup import RollupKey, Rollups, RollupSum, StateKey, ValueKey
from tollkeeper_ledger.store.damaged import attributes_of, json_of, quantities_of
from tollkeeper_ledger.store.queries import sql
from tollkeeper_ledger.store.usage_rollups import raw_record

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.usage_rollup import RawRecord
    from tollkeeper_ledger.store.pool import Connection, Row

FINDINGS_MAX = 1_000
"""Rows of one kind that are named."""
HOUR = timedelta(hours=1)
LONG_READ_S = 3_600.0
"""Bound of a statement that reads everything that is stored."""
_NO_SUM = 10**38
"""More than a sum can be: what stands for one that is no number."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream's head, and what its links add up to; None where there is no head, or no link."""

    stream: int
    position: int | None
    hash: bytes | None
    stored_total: int | None
    quarantined_total: int | None
    last: int | None
    stored: int | None
    refused: int | None


async def allow_pauses(conn: Connection) -> None:
    """Let this transaction pause for long between statements, while what was read is worked on."""
    await conn.execute(sql("audit.allow_pauses"))


async def read_streams(conn: Connection) -> list[StreamState]:
    """Give every stream of the chain."""
    return [StreamState(**row) for row in await conn.fetch(sql("audit.streams"), timeout=LONG_READ_S)]


async def batch_rows(
    conn: Connection, batches: Sequence[int], meters: Mapping[int, str]
) -> dict[int, list[AuditedRecord]]:
    """Give the records of batches with their ids, by batch, in sequence order."""
    found: dict[int, list[AuditedRecord]] = {}
    for row in await conn.fetch(sql("audit.batch_rows"), batches):
        found.setdefault(row["batch_id"], []).append(_audited(row, meters))
    return found


async def placed_rows(
    conn: Connection, places: Sequence[tuple[int, int]], meters: Mapping[int, str]
) -> dict[tuple[int, int], AuditedRecord]:
    """Give the records that stand at batch and number, by these."""
    batches, seqs = [batch for batch, _ in places], [seq for _, seq in places]
    rows = await conn.fetch(sql("audit.placed_rows"), batches, seqs)
    return {(row["batch_id"], row["seq"]): _audited(row, meters) for row in rows}


def _audited(row: Row, meters: Mapping[int, str]) -> AuditedRecord:
    return AuditedRecord(
        tenant=row["wire_id"],
        id=row["id"],
        batch_id=row["batch_id"],
        seq=row["seq"],
        event_us=to_us(row["event_time"]),
        received_us=to_us(row["received_at"]),
        flags=row["flags"],
        segment_id=row["segment_id"],
        quantities=[(meters.get(meter_id, f"#{meter_id}"), units) for meter_id, units in quantities_of(row)],
        attributes=attributes_of(row["attributes"]),
        row_check=row["row_check"],
        kept=None if row["kept_batch"] is None else (row["kept_batch"], row["kept_seq"], row["kept_hash"]),
    )


async def batch_refused(conn: Connection, batches: Sequence[int]) -> dict[int, list[RefusedRecord]]:
    """Give what of batches went to quarantine, by batch, in sequence order."""
    found: dict[int, list[RefusedRecord]] = {}
    for row in await conn.fetch(sql("audit.batch_refused"), batches):
        fields = dict(row)
        at_us = to_us(fields.pop("quarantined_at"))
        found.setdefault(row["batch_id"], []).append(RefusedRecord(**fields, at_us=at_us))
    return found


async def unchained_refused(conn: Connection) -> list[str]:
    """Name quarantined records whose batch no link names."""
    rows = await conn.fetch(sql("audit.unchained_refused"), FINDINGS_MAX, timeout=LONG_READ_S)
    return [f"producer {row['producer_id'].hex}, number {row['seq']}" for row in rows]


async def unchained_records(conn: Connection) -> list[str]:
    """Name records whose batch no link names."""
    rows = await conn.fetch(sql("audit.unchained_records"), FINDINGS_MAX, timeout=LONG_READ_S)
    return [f"tenant {row['wire_id']}, id {row['id']!r}" for row in rows]


async def lone_ids(conn: Connection) -> list[str]:
    """Name ids without a record."""
    rows = await conn.fetch(sql("audit.lone_ids"), FINDINGS_MAX, timeout=LONG_READ_S)
    return [f"tenant {row['wire_id']}, id {row['id']!r}" for row in rows]


async def misplaced_producers(conn: Connection) -> list[UUID]:
    """Give producers that stand elsewhere than their last link says."""
    return [row["producer_id"] for row in await conn.fetch(sql("audit.producers"), FINDINGS_MAX, timeout=LONG_READ_S)]


async def tenant_names(conn: Connection) -> dict[UUID, str]:
    """Give every tenant's name."""
    return {row["tenant_id"]: row["wire_id"] for row in await conn.fetch(sql("audit.tenant_names"))}


async def read_hours(conn: Connection) -> list[datetime]:
    """Give the hours of UTC that records or rollups are of, without those of archived months."""
    return [row["hour"] for row in await conn.fetch(sql("audit.hours"), timeout=LONG_READ_S)]


async def records_of_hour(conn: Connection, hour: datetime, meter_ids: Collection[int]) -> list[RawRecord]:
    """Give the records of an hour, voids as well."""
    rows = await conn.fetch(sql("audit.records_of_hour"), hour, hour + HOUR)
    return [raw_record(row, quantities_of(row), attributes_of(row["attributes"]), meter_ids) for row in rows]


async def rollups_of_hour(conn: Connection, hour: datetime) -> Rollups:
    """Give everything that is derived of an hour, as it is stored."""

    async def summed(statement: str) -> dict[RollupKey, RollupSum]:
        found = {}
        for row in await conn.fetch(statement, hour, hour + HOUR):
            total = RollupSum(_NO_SUM if row["units"] == "NaN" else int(row["units"]), row["records"])
            # A void and a later record may leave a row that says nothing.
            if any(total):
                key = RollupKey(row["tenant_id"], row["segment_id"], row["meter_id"], row["dims"], to_us(row["start"]))
                found[key] = total
        return found

    states = await conn.fetch(sql("audit.states_of_hour"), hour, hour + HOUR)
    values = await conn.fetch(sql("audit.values_of_hour"), hour, hour + HOUR)
    return Rollups(
        minutes=await summed(sql("audit.minutes_of_hour")),
        quarters=await summed(sql("audit.quarters_of_hour")),
        states={
            StateKey(row["tenant_id"], row["meter_id"], row["dims"], to_us(row["start"])): json_of(row["state"])
            for row in states
        },
        values={
            ValueKey(
                row["tenant_id"], row["segment_id"], row["meter_id"], row["dims"], to_us(row["start"]), row["value"]
            ): row["records"]
            for row in values
            if row["records"]
        },
    )
