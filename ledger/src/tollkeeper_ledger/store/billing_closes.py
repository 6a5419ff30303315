"""Read what a close needs and keep what it found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.closing import ProducerState
from tollkeeper_ledger.domain.invoice import Parties, PlanReference
from tollkeeper_ledger.domain.periods import Period
from tollkeeper_ledger.domain.rating.charges import Total
from tollkeeper_ledger.store.logos import logo_digest
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection, Row


@dataclass(frozen=True, slots=True)
class CloseKey:
    """Name a period of a subscription."""

    tenant_id: UUID
    subscription_id: UUID
    period_start: datetime


@dataclass(frozen=True, slots=True)
class PeriodSegment:
    """A segment of a period; a late one stands for a period of its own."""

    segment_id: UUID
    late_for: UUID | None
    own: Period
    """Period that its usage happened in."""
    plan: PlanReference
    """Plan version that rates it."""
    is_parted: bool
    """Whether a progressive invoice has billed it within its period."""
    part: int
    """Counts what progressive invoices cut its stretch into."""


@dataclass(frozen=True, slots=True)
class PlanDefinition:
    """A plan version's bytes with its name."""

    plan: PlanReference
    definition: bytes


async def read_subscriptions_to_bill(conn: Connection, *, only: str | None) -> list[tuple[UUID, UUID, str]]:
    """Read (tenant id, subscription id, wire id) of every subscription, in order of wire id."""
    rows = await conn.fetch(sql("billing.subscriptions_to_bill"), only)
    return [(row["tenant_id"], row["subscription_id"], row["wire_id"]) for row in rows]


async def read_definitions(conn: Connection, plan_version_ids: Collection[UUID]) -> dict[UUID, PlanDefinition]:
    """Read plan versions by id."""
    rows = await conn.fetch(sql("billing.definitions_by_version"), list(plan_version_ids))
    return {
        row["plan_version_id"]: PlanDefinition(
            plan=PlanReference(name=row["name"], version=row["version"], digest=row["digest"].hex()),
            definition=row["definition"],
        )
        for row in rows
    }


async def read_definitions_by_digest(conn: Connection, digests: Collection[str]) -> dict[str, bytes]:
    """Read plan versions' bytes by digest in hex."""
    rows = await conn.fetch(sql("billing.definitions"), [bytes.fromhex(digest) for digest in digests])
    return {row["digest"].hex(): row["definition"] for row in rows}


async def read_producers(conn: Connection, tenant_id: UUID) -> list[ProducerState]:
    """Read the producers that served a tenant."""
    rows = await conn.fetch(sql("billing.producers"), tenant_id)
    return [
        ProducerState(
            producer=row["producer_id"].hex,
            state=row["state"],
            watermark=row["watermark"],
            silent_for=row["silent_for"],
        )
        for row in rows
    ]


async def close_segments(conn: Connection, key: CloseKey, *, period_end: datetime, at: datetime) -> None:
    """Close every segment of a period. The transaction holds the tenant's lock alone."""
    await conn.execute(
        sql("billing.close_segments"), key.tenant_id, key.subscription_id, key.period_start, period_end, at
    )


async def read_period_segments(conn: Connection, key: CloseKey, *, period_end: datetime) -> list[PeriodSegment]:
    """Read the segments of a period, late ones as well, in order of their own periods."""
    rows = await conn.fetch(
        sql("billing.period_segments"), key.tenant_id, key.subscription_id, key.period_start, period_end
    )
    return [
        PeriodSegment(
            segment_id=row["segment_id"],
            late_for=row["late_for"],
            own=Period(start=row["own_start"], end=row["own_end"]),
            plan=PlanReference(name=row["name"], version=row["version"], digest=row["digest"].hex()),
            is_parted=row["is_parted"],
            part=row["part"],
        )
        for row in rows
    ]


async def read_billed_before(
    conn: Connection, tenant_id: UUID, own_segments: Collection[UUID], *, before: datetime
) -> dict[UUID, list[tuple[UUID, datetime]]]:
    """Read, per closed segment, what earlier invoices billed for its period under its plan version.

    Each as (segment, start of the stretch that it is of).
    """
    rows = await conn.fetch(sql("billing.billed_before"), tenant_id, list(own_segments), before)
    found: dict[UUID, list[tuple[UUID, datetime]]] = {}
    for row in rows:
        found.setdefault(row["own"], []).append((row["segment_id"], row["base_start"]))
    return found


async def read_totals(conn: Connection, tenant_id: UUID, segments: Collection[UUID]) -> dict[UUID, tuple[Total, ...]]:
    """Read exact sums per segment, in meter order; segments without usage are left out."""
    rows = await conn.fetch(sql("billing.segment_totals"), tenant_id, list(segments))
    found: dict[UUID, list[Total]] = {}
    for row in rows:
        total = Total(meter=row["meter"], unit=row["unit"], scale=row["scale"], units=int(row["units"]))
        found.setdefault(row["segment_id"], []).append(total)
    return {segment_id: tuple(totals) for segment_id, totals in found.items()}


async def count_records(conn: Connection, tenant_id: UUID, segments: Sequence[PeriodSegment]) -> dict[UUID, int]:
    """Count the usage records of each segment."""
    if not segments:
        return {}
    first = min(segment.own.start for segment in segments)
    last = max(segment.own.end for segment in segments)
    ids = [segment.segment_id for segment in segments]
    rows = await conn.fetch(sql("billing.segment_records"), tenant_id, ids, first, last)
    return {row["segment_id"]: row["records"] for row in rows}


async def read_chain_heads(conn: Connection) -> tuple[dict[str, Any], ...]:
    """Read the last link of every stream of the usage chain."""
    rows = await conn.fetch(sql("billing.chain_heads"))
    return tuple({"stream": row["stream"], "position": row["position"], "hash": row["hash"].hex()} for row in rows)


async def read_parties(conn: Connection, tenant_id: UUID) -> Parties:
    """Read seller, tenant and payer as they are now."""
    row = await conn.fetchrow(sql("billing.parties"), tenant_id)
    if row is None:
        raise RuntimeError(f"tenant {tenant_id} has no seller")
    return Parties(
        seller={
            "id": row["seller_id"],
            "name": row["seller_name"],
            "address": list(row["seller_address"]),
            "tax_id": row["seller_tax_id"],
            "email": row["email"],
            "website": row["website"],
            "tax_note": row["tax_note"],
            "payment_note": row["payment_note"],
            "invoice_prefix": row["invoice_prefix"],
            **({"logo": logo_digest(row["logo"]).hex()} if row["logo"] else {}),
        },
        tenant={
            "id": row["wire_id"],
            "name": row["display_name"],
            "address": list(row["address"]),
            "tax_id": row["tax_id"],
        },
        billing_tenant={
            "id": row["payer_wire_id"],
            "tenant_id": str(row["payer_id"]),
            "name": row["payer_name"],
            "address": list(row["payer_address"]),
            "tax_id": row["payer_tax_id"],
        },
    )


async def add_close(
    conn: Connection,
    key: CloseKey,
    *,
    period_end: datetime,
    at: datetime,
    billable: bool,
    is_draft: bool,
    inputs: bytes,
    is_cut: bool = False,
) -> None:
    """Keep a close and move the subscription's billing on to the period's end; a cut moves nothing."""
    await conn.execute(
        sql("billing.add_close"),
        key.tenant_id,
        key.subscription_id,
        key.period_start,
        period_end,
        at,
        billable,
        is_draft,
        inputs,
        is_cut,
    )
    if not is_cut:
        await conn.execute(sql("billing.advance_billed_until"), key.tenant_id, key.subscription_id, period_end)


async def read_pending_closes(conn: Connection, *, only: str | None, count_max: int) -> list[CloseKey]:
    """Read closes whose invoices are missing, oldest first."""
    rows = await conn.fetch(sql("billing.pending_closes"), only, count_max)
    return [CloseKey(row["tenant_id"], row["subscription_id"], row["period_start"]) for row in rows]


async def read_close(conn: Connection, key: CloseKey) -> bytes:
    """Read the inputs of a close. Raises RuntimeError where there is none."""
    row = await conn.fetchrow(sql("billing.close"), key.tenant_id, key.subscription_id, key.period_start)
    if row is None:
        raise RuntimeError(f"period {key} is not closed")
    inputs: bytes = row["inputs"]
    return inputs


async def read_inputs_ending(conn: Connection, tenant_id: UUID, subscription_id: UUID, at: datetime) -> bytes | None:
    """Read the inputs of the close that ends at an instant; None where there is none."""
    inputs: bytes | None = await conn.fetchval(sql("billing.inputs_ending"), tenant_id, subscription_id, at)
    return inputs


async def read_drafts(conn: Connection, *, only: str | None, count_max: int) -> list[tuple[CloseKey, bytes]]:
    """Read drafts and their inputs, oldest first."""
    rows = await conn.fetch(sql("billing.drafts"), only, count_max)
    return [(CloseKey(row["tenant_id"], row["subscription_id"], row["period_start"]), row["inputs"]) for row in rows]


async def read_opened(conn: Connection, tenant_ids: Collection[UUID]) -> set[UUID]:
    """Read which subscriptions of these tenants have their first fees in advance billed."""
    return {row["subscription_id"] for row in await conn.fetch(sql("billing.opened"), list(tenant_ids))}


@dataclass(frozen=True, slots=True)
class StoredClose:
    """A close with its tenant's wire id."""

    key: CloseKey
    tenant: str
    inputs: bytes


async def read_closes_between(conn: Connection, first: datetime, last: datetime) -> list[StoredClose]:
    """Read the closes of periods that begin in a span, in order of wire id."""
    return [_close(row) for row in await conn.fetch(sql("billing.closes_between"), first, last)]


async def read_closes_after(conn: Connection, after: CloseKey | None, *, count_max: int) -> list[StoredClose]:
    """Read a page of all closes, in order of their keys."""
    place = (None, None, None) if after is None else (after.tenant_id, after.subscription_id, after.period_start)
    return [_close(row) for row in await conn.fetch(sql("billing.closes_after"), *place, count_max)]


def _close(row: Row) -> StoredClose:
    return StoredClose(
        key=CloseKey(row["tenant_id"], row["subscription_id"], row["period_start"]),
        tenant=row["wire_id"],
        inputs=row["inputs"],
    )
