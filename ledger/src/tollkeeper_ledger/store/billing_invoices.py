"""Number, add and read invoices."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.store.billing_closes import CloseKey
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class Standing:
    """What became of an invoice, in minor units."""

    state: str
    due_at: datetime
    due_minor: int
    balance_minor: int
    paid_minor: int
    credited_minor: int
    refunded_minor: int
    replaces: str
    """Number of the void invoice that it replaces; empty where it replaces none."""


@dataclass(frozen=True, slots=True)
class StoredInvoice:
    """A finalised invoice."""

    invoice_id: UUID
    finalised_at: datetime
    document: bytes
    """Canonical JSON."""
    digest: bytes
    standing: Standing

    def read(self) -> dict[str, Any]:
        """Give the document as JSON."""
        document: dict[str, Any] = json.loads(self.document)
        return document


@dataclass(frozen=True, slots=True)
class StoredInputs:
    """What an invoice was made of, beside what it became."""

    inputs: bytes
    tenant_id: UUID
    number: str
    finalised_at: datetime
    document: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class NewInvoice:
    """A finalised invoice to add."""

    key: CloseKey
    invoice_id: UUID
    serial: int
    finalised_at: datetime
    document: dict[str, Any]
    document_bytes: bytes
    issue: int = 1
    replaces: UUID | None = None
    """The void invoice that this one replaces; its inputs are then its own."""
    inputs: bytes | None = None


def _stored(row: Any) -> StoredInvoice:
    return StoredInvoice(
        invoice_id=row["invoice_id"],
        finalised_at=row["finalised_at"],
        document=row["document"],
        digest=row["digest"],
        standing=Standing(
            state=row["state"],
            due_at=row["due_at"],
            due_minor=row["due_minor"] if row["state"] != "void" else 0,
            balance_minor=row["balance_minor"],
            paid_minor=row["paid_minor"],
            credited_minor=row["credited_minor"],
            refunded_minor=row["refunded_minor"],
            replaces=row["replaces"] or "",
        ),
    )


async def lock_numbers(conn: Connection, seller_id: str) -> int:
    """Lock a seller's numbers until the transaction ends and give the next one, which is not taken yet."""
    await conn.execute(sql("billing.begin_numbers"), seller_id)
    following: int = await conn.fetchval(sql("billing.lock_numbers"), seller_id)
    return following


async def has_invoice(conn: Connection, key: CloseKey) -> bool:
    """Say whether a period has its invoice."""
    found: bool = await conn.fetchval(sql("billing.has_invoice"), key.tenant_id, key.subscription_id, key.period_start)
    return found


async def add_invoice(conn: Connection, invoice: NewInvoice) -> None:
    """Take the number that `lock_numbers` gave and add the invoice with its lines."""
    document = invoice.document
    taken = await conn.fetchval(sql("billing.take_number"), document["seller"]["id"])
    if taken != invoice.serial:
        raise RuntimeError(f"number {invoice.serial} was expected, {taken} taken: the numbers were not locked")
    await conn.execute(
        sql("billing.add_invoice"),
        invoice.key.tenant_id,
        invoice.invoice_id,
        invoice.key.subscription_id,
        UUID(document["billing_tenant"]["tenant_id"]),
        document["seller"]["id"],
        document["number"],
        invoice.serial,
        invoice.key.period_start,
        _instant(document["period"]["end"]),
        document["currency"],
        document["subtotal_minor"],
        document["tax_minor"],
        document["total_minor"],
        invoice.finalised_at,
        document["record_count"],
        invoice.document_bytes,
        invoice.issue,
        invoice.replaces,
        invoice.inputs,
    )
    await _add_lines(conn, invoice, document["lines"])


async def _add_lines(conn: Connection, invoice: NewInvoice, lines: Sequence[dict[str, Any]]) -> None:
    await conn.execute(
        sql("billing.add_lines"),
        invoice.key.tenant_id,
        invoice.invoice_id,
        list(range(1, len(lines) + 1)),
        [line["description"] for line in lines],
        [line["meter"] for line in lines],
        [line["quantity"] for line in lines],
        [line["amount_minor"] for line in lines],
        [_instant(line["period"]["start"]) for line in lines],
        [_instant(line["period"]["end"]) for line in lines],
    )


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def list_invoices(
    conn: Connection, *, before: tuple[datetime, UUID] | None, count_max: int, only: str | None
) -> list[StoredInvoice]:
    """Read invoices, newest first."""
    at, invoice_id = before or (None, None)
    rows = await conn.fetch(sql("billing.invoices"), at, invoice_id, count_max, only)
    return [_stored(row) for row in rows]


async def find_invoice(conn: Connection, name: str) -> StoredInvoice | None:
    """Find an invoice by its number or id."""
    try:
        invoice_id = UUID(name)
    except ValueError:
        invoice_id = None
    row = await conn.fetchrow(sql("billing.find_invoice"), name, invoice_id)
    return None if row is None else _stored(row)


async def read_stored_inputs(conn: Connection, invoice_id: UUID) -> StoredInputs | None:
    """Read what an invoice was made of."""
    row = await conn.fetchrow(sql("billing.stored_inputs"), invoice_id)
    if row is None:
        return None
    return StoredInputs(
        inputs=row["inputs"],
        tenant_id=row["tenant_id"],
        number=row["number"],
        finalised_at=row["finalised_at"],
        document=row["document"],
        digest=row["digest"],
    )
