"""What is wrong with stored usage, row by row. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.domain.usage import DAY_US, FLAG_SYSTEM_ID, LATENESS_MAX_US, SHIPPING_MAX_US
from tollkeeper_ledger.domain.usage_chain import link_hash
from tollkeeper_ledger.domain.usage_hash import (
    content_hash,
    merkle_root_by_tenant,
    refused_hash,
    row_check,
    row_hash,
    rows_digest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.usage_chain import BatchBody
    from tollkeeper_ledger.domain.usage_rollup import Rollups

ID_KEPT_US = LATENESS_MAX_US + SHIPPING_MAX_US - DAY_US
"""How long an id is there in any case, in microseconds since its commit."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Name a row that is not what was committed."""

    table: str
    row: str
    """Its key, for people."""
    problem: str


@dataclass(slots=True)
class Checked:
    """Say how much was checked so far."""

    links: int = 0
    records: int = 0
    hours: int = 0
    periods: int = 0
    roots: int = 0
    archived: int = 0
    """Records that are in files of archived months: counted, and the files compared where their directory is known."""


Found: TypeAlias = "Finding | Checked"
"""What an audit tells, in order: a wrong row, or how far it is."""


class AuditedRecord(NamedTuple):
    """A stored record and its id as they are stored."""

    tenant: str
    id: str
    batch_id: int
    seq: int
    event_us: int
    received_us: int
    flags: int
    segment_id: UUID
    quantities: Sequence[tuple[str, int]]
    attributes: Mapping[str, str]
    row_check: int
    kept: tuple[int, int, bytes] | None
    """Batch, sequence number and content hash that its id has; None = the id is gone."""

    @property
    def name(self) -> str:
        """Give its key."""
        return f"tenant {self.tenant}, id {self.id!r}"


class RefusedRecord(NamedTuple):
    """A record in quarantine as it is stored."""

    tenant_id: UUID
    producer_id: UUID
    seq: int
    batch_id: int
    reason: str
    field: str
    content_hash: bytes
    record: bytes
    at_us: int
    row_check: int

    @property
    def name(self) -> str:
        """Give its key."""
        return f"producer {self.producer_id.hex}, number {self.seq}"


def hashes_of(record: AuditedRecord) -> tuple[bytes, bytes]:
    """Give the content hash and the row's hash as they follow from what is stored."""
    content = content_hash(
        tenant=record.tenant,
        quantities=record.quantities,
        attributes=record.attributes.items(),
        event_time_us=None if record.flags & FLAG_SYSTEM_ID else record.event_us,
    )
    return content, row_hash(
        content,
        record_id=record.id,
        batch_id=record.batch_id,
        seq=record.seq,
        event_us=record.event_us,
        received_us=record.received_us,
        flags=record.flags,
        segment_id=record.segment_id.bytes,
    )


def hash_of_refused(record: RefusedRecord) -> bytes:
    """Give the hash of a row in quarantine as it follows from what is stored."""
    return refused_hash(
        tenant_id=record.tenant_id.bytes,
        producer_id=record.producer_id.bytes,
        batch_id=record.batch_id,
        seq=record.seq,
        at_us=record.at_us,
        reason=record.reason,
        field=record.field,
        content_hash=record.content_hash,
        record=record.record,
    )


def check_link(stream: int, position: int, *, stored: int, previous: bytes, body: BatchBody, hashed: bytes) -> str:
    """Say what is wrong with a link whose place should be `position`; empty where nothing is."""
    if stored != position or stream < 0:
        return f"stands where link {position} should be"
    found = link_hash(stream=stream, position=position, previous=previous, body_digest=body.digest())
    return "" if found == hashed else "its hash does not follow from it and the link before"


def check_batch(body: BatchBody, records: Sequence[AuditedRecord], *, now_us: int, away: int = 0) -> Iterator[Finding]:
    """Give what is wrong with a batch's records, in sequence order; `body` is what its link says.

    Where no single row can be named but the batch is not what was chained, the link's batch is. `away` records of it
    are in files of archived months: the others are checked one by one and counted.
    """
    wrong = False
    rows: list[bytes] = []
    hashes: dict[str, list[bytes]] = {}
    for record in records:
        content, row = hashes_of(record)
        rows.append(row)
        hashes.setdefault(record.tenant, []).append(content)
        if row_check(row) != record.row_check:
            wrong = True
            yield Finding("usage_record", record.name, "its fields are not those that were committed")
        elif record.kept is None:
            if now_us - body.committed_us < ID_KEPT_US:
                wrong = True
                yield Finding("usage_id", record.name, "is missing, though its record is there")
        elif record.kept != (record.batch_id, record.seq, content):
            wrong = True
            yield Finding("usage_id", record.name, "names another batch, number or content than its record")
    if wrong:
        return
    if away:
        if len(records) + away != body.stored:
            problem = f"holds {len(records)} records and {away} archived ones, not the {body.stored} that were chained"
            yield Finding("usage_record", f"batch {body.batch_id}", problem)
        return
    if rows_digest(rows) != body.rows_digest or merkle_root_by_tenant(hashes) != body.merkle_root:
        problem = f"holds {len(records)} records, not the {body.stored} that were chained, or others"
        yield Finding("usage_record", f"batch {body.batch_id}", problem)


def check_refused(body: BatchBody, refused: Sequence[RefusedRecord]) -> Iterator[Finding]:
    """Give what is wrong with what of a batch went to quarantine, in sequence order."""
    hashes = [hash_of_refused(one) for one in refused]
    wrong = [one for one, hashed in zip(refused, hashes, strict=True) if row_check(hashed) != one.row_check]
    for one in wrong:
        yield Finding("usage_quarantine", one.name, "its fields are not those that were committed")
    if not wrong and rows_digest(hashes) != body.refused_digest:
        told = (
            f"has {len(refused)} records in quarantine, not the {body.conflicts + body.quarantined} that were chained"
        )
        yield Finding("usage_quarantine", f"batch {body.batch_id}", f"{told}, or others")


def compare_rollups(
    kept: Rollups, derived: Rollups, *, tenants: Mapping[UUID, str], names: Mapping[int, str]
) -> Iterator[Finding]:
    """Give rows that differ from what the records come to, those that are missing as well."""
    pairs: tuple[tuple[str, Mapping[Any, Any], Mapping[Any, Any]], ...] = (
        ("usage_rollup_minute", kept.minutes, derived.minutes),
        ("usage_rollup_quarter", kept.quarters, derived.quarters),
        ("usage_rollup_state", kept.states, derived.states),
        ("usage_rollup_value", kept.values, derived.values),
    )
    for table, stored, wanted in pairs:
        for key in sorted(stored.keys() | wanted.keys()):
            if (key in stored) != (key in wanted) or stored.get(key) != wanted.get(key):
                problem = "says" if key in stored else "is missing; it should say"
                row = f"tenant {tenants.get(key.tenant_id)}, meter {names.get(key.meter_id)}, {key.dims}"
                at = from_us(key.start_us).isoformat()
                told = f"{stored.get(key)}, the records {wanted.get(key)}" if key in stored else wanted.get(key)
                yield Finding(table, f"{row}, {at}", f"{problem} {told}")
