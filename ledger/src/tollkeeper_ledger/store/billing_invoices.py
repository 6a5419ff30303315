"""Number, add and read invoices."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tollkeeper_ledger.store.literals import number_literal
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
    made: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    """The document as JSON, where the invoice was just made of it; read only."""

    def read(self) -> dict[str, Any]:
        """Give the document as JSON."""
        document: dict[str, Any] = json.loads(self.document) if self.made is None else self.made
        return document


@dataclass(frozen=True, slots=True)
class ToldInvoice:
    """What is told of an invoice that another process finalised."""

    digest: bytes
    standing: Standing
    shown: dict[str, Any]
    """The document as JSON, without lines and manifest where nobody asked for lines."""

    def read(self) -> dict[str, Any]:
        """Give the document as JSON."""
        return self.shown


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
    document: dict[str, Any]
    document_bytes: bytes
    digest: bytes
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


async def add_invoices(conn: Connection, added: Sequence[NewInvoice], *, at: datetime) -> None:
    """Take the numbers that `lock_numbers` gave and add the invoices, finalised at a time; see `add_lines`."""
    serials: dict[str, list[int]] = {}
    for one in added:
        serials.setdefault(one.document["seller"]["id"], []).append(one.serial)
    for seller_id, wanted in serials.items():
        first = await conn.fetchval(sql("billing.take_numbers"), seller_id, len(wanted))
        if wanted != list(range(first, first + len(wanted))):
            raise RuntimeError(f"numbers {wanted} were expected, {first} is next: the numbers were not locked")
    documents = [one.document for one in added]
    await conn.execute(
        sql("billing.add_invoices"),
        at,
        [one.key.tenant_id for one in added],
        [one.invoice_id for one in added],
        [one.key.subscription_id for one in added],
        [document["billing_tenant"]["tenant_id"] for document in documents],
        [document["seller"]["id"] for document in documents],
        [document["number"] for document in documents],
        number_literal([one.serial for one in added]),
        [one.key.period_start for one in added],
        [datetime.fromisoformat(document["period"]["end"]) for document in documents],
        [document["currency"] for document in documents],
        *(
            number_literal([document[name] for document in documents])
            for name in ("subtotal_minor", "tax_minor", "total_minor", "record_count")
        ),
        [one.document_bytes for one in added],
        [one.digest for one in added],
        number_literal([one.issue for one in added]),
        [one.replaces for one in added],
        [one.inputs for one in added],
    )


async def add_lines(conn: Connection, added: Sequence[tuple[CloseKey, UUID, Sequence[Any]]]) -> None:
    """Add lines of invoices that follow before the commit: close, invoice id and the document's lines of each."""
    lines = [line for _, _, of_one in added for line in of_one]
    # Most lines of a run are of one span, which is sent once, as the ids of a line's invoice are.
    spans: dict[tuple[str, str], int] = {}
    span_of = [spans.setdefault((line["period"]["start"], line["period"]["end"]), len(spans) + 1) for line in lines]
    await conn.execute(
        sql("billing.add_lines"),
        [key.tenant_id for key, _, _ in added],
        [invoice_id for _, invoice_id, _ in added],
        [datetime.fromisoformat(start) for start, _ in spans],
        [datetime.fromisoformat(end) for _, end in spans],
        number_literal([place for place, (_, _, of_one) in enumerate(added, start=1) for _ in of_one]),
        number_literal([number for _, _, of_one in added for number, _ in enumerate(of_one, start=1)]),
        [line["description"] for line in lines],
        [line["meter"] for line in lines],
        number_literal([line["quantity"] for line in lines]),
        number_literal([line["amount_minor"] for line in lines]),
        number_literal(span_of),
    )


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
