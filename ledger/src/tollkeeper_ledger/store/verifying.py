"""Read again what an invoice rests on: links of the chain, raw records, lines, sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.domain.usage import FLAG_SYSTEM_ID
from tollkeeper_ledger.domain.usage_chain import BatchBody
from tollkeeper_ledger.domain.usage_hash import content_hash
from tollkeeper_ledger.store.damaged import attributes_of, quantities_of
from tollkeeper_ledger.store.queries import sql
from tollkeeper_ledger.store.usage_reports import meter_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection, Row

_LINKS_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class StoredLink:
    """One link of the chain as it is stored."""

    position: int
    body: BatchBody
    hash: bytes


@dataclass(frozen=True, slots=True)
class RecordSpan:
    """Name the raw records of an invoice: segments of a tenant, and between which event times they lie."""

    tenant_id: UUID
    segments: tuple[UUID, ...]
    first: datetime
    end: datetime


def link_of_row(row: Row) -> StoredLink:
    """Give a link as its row says it."""
    body = BatchBody(
        batch_id=row["batch_id"],
        producer_id=row["producer_id"],
        incarnation=row["incarnation"],
        first_seq=row["first_seq"],
        last_seq=row["last_seq"],
        h=row["h"],
        merkle_root=row["merkle_root"],
        rows_digest=row["rows_digest"],
        refused_digest=row["refused_digest"],
        stored=row["stored"],
        duplicates=row["duplicates"],
        conflicts=row["conflicts"],
        quarantined=row["quarantined"],
        holes=row["holes"],
        committed_us=to_us(row["committed_at"]),
    )
    return StoredLink(position=row["position"], body=body, hash=row["hash"])


async def read_links(conn: Connection, stream: int, *, last: int, after: int = 0) -> AsyncIterator[StoredLink]:
    """Give a stream's links after a position, up to `last`, in order."""
    position = after
    while position < last:
        rows = await conn.fetch(sql("verify.links"), stream, position, last, _LINKS_AT_ONCE)
        if not rows:
            return
        for row in rows:
            yield link_of_row(row)
        position = rows[-1]["position"]


async def read_record_sums(conn: Connection, span: RecordSpan) -> dict[tuple[str, str], int]:
    """Sum the raw records by (segment id, meter), as segments are billed."""
    rows = await conn.fetch(sql("verify.record_sums"), span.tenant_id, span.segments, span.first, span.end)
    return {(str(row["segment_id"]), row["meter"]): int(row["units"]) for row in rows}


async def read_batches(conn: Connection, span: RecordSpan) -> list[int]:
    """Give the batches that the records came in."""
    rows = await conn.fetch(sql("verify.segment_batches"), span.tenant_id, span.segments, span.first, span.end)
    return [row["batch_id"] for row in rows]


async def read_content_hashes(conn: Connection, batches: Sequence[int]) -> dict[int, dict[str, list[bytes]]]:
    """Hash every stored record of batches again: by batch and tenant, in order."""
    found: dict[int, dict[str, list[bytes]]] = {}
    rows = await conn.fetch(sql("verify.batch_records"), batches)
    quantities = [quantities_of(row) for row in rows]
    meters = await meter_names(conn, {meter for of_row in quantities for meter, _ in of_row})
    for row, of_row in zip(rows, quantities, strict=True):
        hashed = content_hash(
            tenant=row["wire_id"],
            quantities=[(meters.get(meter, f"#{meter}"), units) for meter, units in of_row],
            attributes=attributes_of(row["attributes"]).items(),
            event_time_us=None if row["flags"] & FLAG_SYSTEM_ID else to_us(row["event_time"]),
        )
        found.setdefault(row["batch_id"], {}).setdefault(row["wire_id"], []).append(hashed)
    return found


async def read_lines(conn: Connection, invoice_id: UUID) -> list[tuple[str, str, int, int]]:
    """Read an invoice's lines: description, meter, quantity, amount."""
    rows = await conn.fetch(sql("verify.stored_lines"), invoice_id)
    return [(row["description"], row["meter"], row["quantity"], row["amount_minor"]) for row in rows]


async def read_invoice(conn: Connection, invoice_id: UUID) -> Row:
    """Read an invoice's row beside its documents. Raises LookupError: it is gone."""
    return _need(await conn.fetchrow(sql("verify.stored_sums"), invoice_id), "the invoice's row")


@dataclass(frozen=True, slots=True)
class Books:
    """Everything that moved for an invoice, each as rows of its own query in `verify.sql`."""

    receivable: Row
    transfers: Sequence[Row]
    payments: Sequence[Row]
    refunds: Sequence[Row]
    disputes: Sequence[Row]
    credit_notes: Sequence[Row]


async def read_books(conn: Connection, invoice_id: UUID, *, payer_id: UUID) -> Books:
    """Read all that moved for an invoice. Raises LookupError: what became of it is gone."""
    return Books(
        receivable=_need(await conn.fetchrow(sql("verify.receivable"), invoice_id), "what became of the invoice"),
        transfers=await conn.fetch(sql("verify.transfers"), invoice_id),
        payments=await conn.fetch(sql("verify.payments"), invoice_id),
        refunds=await conn.fetch(sql("verify.refunds"), payer_id, invoice_id),
        disputes=await conn.fetch(sql("verify.disputes"), payer_id, invoice_id),
        credit_notes=await conn.fetch(sql("verify.credit_notes"), invoice_id),
    )


def _need(row: Row | None, what: str) -> Row:
    if row is None:
        raise LookupError(f"{what} is gone")
    return row


async def read_balances(conn: Connection, payer_id: UUID, currency: str, *, seller_id: str) -> Row:
    """Read what a payer has with a seller: `kept_minor` by its account, `moved_minor` by the journal."""
    return _need(await conn.fetchrow(sql("verify.balances"), payer_id, seller_id, currency), "the account")
