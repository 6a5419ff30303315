"""Check an invoice against everything that it rests on: chain, usage, charges, totals, journal."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tollkeeper_ledger.domain.catalogue.canonical import canonical_json
from tollkeeper_ledger.domain.errors import PreconditionError, UnknownNameError
from tollkeeper_ledger.domain.invoice import (
    Finalised,
    digests_named,
    document_to_bytes,
    invoice_number,
    make_document,
)
from tollkeeper_ledger.domain.period_facts import instant_of
from tollkeeper_ledger.domain.telling import telling
from tollkeeper_ledger.domain.usage_archive import RecordsAwayError, away_text, need_records
from tollkeeper_ledger.domain.usage_chain import CHAIN_START, link_hash
from tollkeeper_ledger.domain.usage_hash import merkle_root_by_tenant
from tollkeeper_ledger.services.closed_usage import Check, check_usage, read_away, span_of, used_again
from tollkeeper_ledger.services.invoice_books import wrong_in_books
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store import verifying
from tollkeeper_ledger.store.billing_invoices import read_stored_inputs
from tollkeeper_ledger.store.damaged import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from tollkeeper_ledger.store.billing_invoices import StoredInputs
    from tollkeeper_ledger.store.pool import Connection


async def verify_invoice(conn: Connection, invoice_id: UUID) -> list[Check]:
    """Recompute everything from the stored rows. `conn` is in a REPEATABLE READ transaction of billing.

    Raises UnknownNameError: no such invoice.
    """
    stored = await read_stored_inputs(conn, invoice_id)
    if stored is None:
        raise UnknownNameError("invoice", str(invoice_id))
    checks = {"chain": _chain, "usage": _usage, "charges": _charges, "total": _total, "journal": _journal}
    return [await _checked(conn, name, check(conn, stored, invoice_id)) for name, check in checks.items()]


async def _checked(conn: Connection, name: str, check: Awaitable[Check]) -> Check:
    """Give a check; where somebody left what it can't read, that."""
    try:
        async with conn.transaction():
            return await check
    except UNREADABLE as error:
        return Check(name, ok=False, detail=f"what it rests on can't be read: {error!r}")


async def _usage(conn: Connection, stored: StoredInputs, _: UUID) -> Check:
    """Sum the raw records again and compare them with the inputs."""
    inputs = json.loads(stored.inputs)
    away = await read_away(conn, inputs, stored.tenant_id)
    return await check_usage(conn, inputs, stored.tenant_id, away=away)


async def _chain(conn: Connection, stored: StoredInputs, _: UUID) -> Check:
    """Recompute every link up to the heads at the cut, and the roots of the batches that the usage came in."""
    inputs = json.loads(stored.inputs)
    away = await read_away(conn, inputs, stored.tenant_id)
    batches = set() if away else set(await verifying.read_batches(conn, span_of(inputs, stored.tenant_id)))
    hashes = await verifying.read_content_hashes(conn, sorted(batches))
    links, roots = 0, 0
    for head in inputs["chain_heads"]:
        stream, previous, position = head["stream"], CHAIN_START, 0
        async for link in verifying.read_links(conn, stream, last=head["position"]):
            position += 1
            made = link_hash(stream=stream, position=position, previous=previous, body_digest=link.body.digest())
            if link.position != position or made != link.hash:
                return Check("chain", ok=False, detail=f"link {position} of stream {stream} does not follow")
            if link.body.batch_id in batches:
                roots += 1
                if merkle_root_by_tenant(hashes[link.body.batch_id]) != link.body.merkle_root:
                    wrong = f"records of batch {link.body.batch_id} (link {position} of stream {stream}) were changed"
                    return Check("chain", ok=False, detail=wrong)
            previous = link.hash
        if (position, previous.hex()) != (head["position"], head["hash"]):
            return Check("chain", ok=False, detail=f"stream {stream} ends at link {position}, not as at the cut")
        links += position
    if roots < len(batches):
        return Check(
            "chain", ok=False, detail=f"{len(batches) - roots} batches of usage stand in no link before the cut"
        )
    return Check("chain", ok=True, detail=f"{links} links, {away_text(away) if away else f'{roots} batches of usage'}")


async def _made_again(conn: Connection, stored: StoredInputs, invoice_id: UUID) -> tuple[bytes, str]:
    """Make the document's bytes again; say what is wrong with the prices where they can't be made."""
    finalised = Finalised(invoice_id=str(invoice_id), number=stored.number, at=stored.finalised_at)
    try:
        async with conn.transaction():
            definitions: Mapping[str, bytes] = await closes.read_definitions_by_digest(
                conn, digests_named(stored.inputs)
            )
        return document_to_bytes(make_document(stored.inputs, definitions, finalised)), ""
    except UNREADABLE as error:
        return b"", f"the inputs can't be rated: {error!r}"


async def _charges(conn: Connection, stored: StoredInputs, invoice_id: UUID) -> Check:
    """Rate the inputs again and compare every line with the document's and with the stored rows."""
    again, problem = await _made_again(conn, stored, invoice_id)
    if problem:
        return Check("charges", ok=False, detail=problem)
    made, document = json.loads(again), json.loads(stored.document)
    rows = await verifying.read_lines(conn, invoice_id)
    for number in range(max(len(made["lines"]), len(document["lines"]), len(rows))):
        lines = [source["lines"][number] if number < len(source["lines"]) else None for source in (made, document)]
        if lines[0] != lines[1]:
            return Check("charges", ok=False, detail=f"line {number + 1} is not what its inputs are rated at")
        said = lines[1] and tuple(lines[1][name] for name in ("description", "meter", "quantity", "amount_minor"))
        if said != (rows[number] if number < len(rows) else None):
            return Check("charges", ok=False, detail=f"row {number + 1} of invoice_line is not the invoice's line")
    return Check("charges", ok=True, detail=f"{len(rows)} lines")


async def _total(conn: Connection, stored: StoredInputs, invoice_id: UUID) -> Check:
    """Compare digest, sums of lines, and the columns; then the bytes as a whole."""
    if hashlib.sha256(stored.document).digest() != stored.digest:
        return Check("total", ok=False, detail="the document does not have its digest")
    document = json.loads(stored.document)
    lines = sum(line["amount_minor"] - line["discount_minor"] for line in document["lines"])
    contained = document["tax_minor"] if document["billing"]["tax_mode"] == "inclusive" else 0
    if lines - contained != document["subtotal_minor"]:
        return Check(
            "total", ok=False, detail=f"the lines sum to {lines - contained}, not {document['subtotal_minor']}"
        )
    if document["subtotal_minor"] + document["tax_minor"] != document["total_minor"]:
        return Check("total", ok=False, detail="subtotal and tax do not make the total")
    if wrong := await _wrong_row(conn, document, invoice_id):
        return Check("total", ok=False, detail=wrong)
    made, problem = await _made_again(conn, stored, invoice_id)
    if problem or made != stored.document:
        return Check("total", ok=False, detail=problem or "made again, the document has other bytes")
    return Check("total", ok=True, detail=f"{document['total_minor']} {document['currency']}")


async def _wrong_row(conn: Connection, document: Mapping[str, Any], invoice_id: UUID) -> str:
    """Say which column of an invoice's row is not what its document says; empty where all are."""
    row = await verifying.read_invoice(conn, invoice_id)
    for name, said in _row_of(document).items():
        if row[name] != said:
            return f"{name} of the row is {row[name]}, not {said}"
    if row["number"] != invoice_number(document["seller"]["invoice_prefix"], row["serial"]):
        return f"serial of the row is {row['serial']}, its number {row['number']}"
    return "" if row["follows"] else "the row is not that of the issue after the one that it replaces"


def _row_of(document: Mapping[str, Any]) -> dict[str, object]:
    """Give what the columns of an invoice's row must be; by its `period_start` its inputs were found."""
    names = ("number", "currency", "subtotal_minor", "tax_minor", "total_minor", "record_count")
    return {
        **{name: document[name] for name in names},
        "replaces": document.get("replaces"),
        "tenant": document["tenant"]["id"],
        "seller_id": document["seller"]["id"],
        "subscription_id": UUID(document["subscription_id"]),
        "billing_tenant_id": UUID(document["billing_tenant"]["tenant_id"]),
        "period_end": instant_of(document["period"]["end"]),
        "finalised_at": instant_of(document["finalised_at"]),
    }


async def _journal(conn: Connection, stored: StoredInputs, invoice_id: UUID) -> Check:
    """Compare the invoice's transfers with what it owes, and with its payments, refunds, disputes and credit notes."""
    invoice = await verifying.read_invoice(conn, invoice_id)
    due_after = timedelta(days=json.loads(stored.document)["billing"]["due_days"])
    wrong, receivable = await wrong_in_books(
        conn, invoice_id, invoice=invoice, document=stored.document, due_after=due_after
    )
    if wrong:
        return Check("journal", ok=False, detail=wrong)
    return Check("journal", ok=True, detail=f"{stored.number} is {receivable.state}, due {receivable.due_minor}")


@dataclass(frozen=True, slots=True)
class Reproduced:
    """An invoice made again."""

    document: bytes
    stored: bytes


async def reproduce_invoice(conn: Connection, invoice_id: UUID, *, from_records: bool) -> Reproduced:
    """Make an invoice's bytes again from its stored inputs, or from the usage as it is stored.

    `from_records`: raw records are held against every sum first. Raises UnknownNameError: no such invoice;
    PreconditionError: the inputs can't be rated, the records sum to something else, or are archived.
    """
    stored = await read_stored_inputs(conn, invoice_id)
    if stored is None:
        raise UnknownNameError("invoice", str(invoice_id))
    if from_records:
        try:
            async with conn.transaction():
                inputs = json.loads(stored.inputs)
                need_records(await read_away(conn, inputs, stored.tenant_id))
                usage = await check_usage(conn, inputs, stored.tenant_id, away=())
                again = canonical_json(inputs | await used_again(conn, inputs, stored.tenant_id))
        except RecordsAwayError:
            raise
        except UNREADABLE as error:
            told = f"what it rests on can't be read: {error!r}"
            raise PreconditionError(told, reason="INVOICE_STATE", metadata={"invoice": stored.number}) from error
        if not usage.ok:
            raise PreconditionError(telling(usage.detail), reason="INVOICE_STATE", metadata={"invoice": stored.number})
        stored = replace(stored, inputs=again)
    made, problem = await _made_again(conn, stored, invoice_id)
    if problem:
        raise PreconditionError(problem, reason="INVOICE_STATE", metadata={"invoice": stored.number})
    return Reproduced(document=made, stored=stored.document)
