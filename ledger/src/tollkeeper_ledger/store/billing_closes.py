"""Read what a close needs and keep what it found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.closing import ProducerState
from tollkeeper_ledger.domain.invoice import Parties, PlanReference
from tollkeeper_ledger.domain.periods import Period
from tollkeeper_ledger.domain.rating.charges import Total
from tollkeeper_ledger.domain.seller_taxes import TaxPlace, seller_taxes_from
from tollkeeper_ledger.store.logos import logo_digest
from tollkeeper_ledger.store.queries import sql
from tollkeeper_ledger.store.usage_topics import read_topics

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.seller_taxes import SellerTaxes
    from tollkeeper_ledger.store.pool import Connection, Row


Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CloseKey:
    """Name a period of a subscription."""

    tenant_id: UUID
    subscription_id: UUID
    period_start: datetime


@dataclass(frozen=True, slots=True)
class ClosingSpan:
    """A period of a subscription with its end."""

    key: CloseKey
    period_end: datetime


@dataclass(frozen=True, slots=True)
class SegmentSpan:
    """A segment, and a span that holds all that is stored of it."""

    tenant_id: UUID
    segment_id: UUID
    first: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class NewClose:
    """A close to keep."""

    span: ClosingSpan
    billable: bool
    is_draft: bool
    is_cut: bool
    inputs: bytes


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


async def read_list_version(conn: Connection, digest: bytes, name: str) -> bytes:
    """Read the version of a plan that was the newest when another plan version, named by its digest, was made."""
    definition: bytes = await conn.fetchval(sql("billing.list_version"), digest, name)
    return definition


async def read_producers(conn: Connection, tenant_ids: Collection[UUID]) -> dict[UUID, list[ProducerState]]:
    """Read the producers that served tenants; tenants that none served are left out."""
    found: dict[UUID, list[ProducerState]] = {}
    for row in await conn.fetch(sql("billing.producers"), list(tenant_ids)):
        state = ProducerState(
            producer=row["producer_id"].hex,
            state=row["state"],
            watermark=row["watermark"],
            silent_for=row["silent_for"],
        )
        found.setdefault(row["tenant_id"], []).append(state)
    return found


async def read_topic_states(conn: Connection) -> list[ProducerState]:
    """Read how far topics are read. Any tenant's records may be in one."""
    return [
        ProducerState(producer=one.name, state=one.state, watermark=one.watermark, silent_for=one.quiet)
        for one in await read_topics(conn)
    ]


def columns_of(spans: Collection[ClosingSpan]) -> tuple[list[UUID], list[UUID], list[datetime], list[datetime]]:
    """Give tenants, subscriptions, starts and ends."""
    return (
        [span.key.tenant_id for span in spans],
        [span.key.subscription_id for span in spans],
        [span.key.period_start for span in spans],
        [span.period_end for span in spans],
    )


async def close_segments(conn: Connection, spans: Collection[ClosingSpan], *, at: datetime) -> None:
    """Close every segment of these periods. The transaction holds the tenants' locks alone."""
    await conn.execute(sql("billing.close_segments"), *columns_of(spans), at)


async def read_period_segments(conn: Connection, spans: Collection[ClosingSpan]) -> dict[CloseKey, list[PeriodSegment]]:
    """Read the segments of periods, late ones as well, in order of their own periods; none = not in the answer."""
    found: dict[CloseKey, list[PeriodSegment]] = {}
    for row in await conn.fetch(sql("billing.period_segments"), *columns_of(spans)):
        segment = PeriodSegment(
            segment_id=row["segment_id"],
            late_for=row["late_for"],
            own=Period(start=row["own_start"], end=row["own_end"]),
            plan=PlanReference(name=row["name"], version=row["version"], digest=row["digest"].hex()),
            is_parted=row["is_parted"],
            part=row["part"],
        )
        found.setdefault(CloseKey(row["tenant_id"], row["subscription_id"], row["start"]), []).append(segment)
    return found


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


def _span_columns(spans: Collection[SegmentSpan]) -> tuple[list[UUID], list[UUID], list[datetime], list[datetime]]:
    return (
        [span.tenant_id for span in spans],
        [span.segment_id for span in spans],
        [span.first for span in spans],
        [span.end for span in spans],
    )


async def read_totals(conn: Connection, spans: Collection[SegmentSpan]) -> dict[UUID, list[Total]]:
    """Read exact sums per segment, in meter order; segments without usage are left out."""
    found: dict[UUID, list[Total]] = {}
    for segment_id, meter, unit, scale, units in await conn.fetch(sql("billing.segment_totals"), *_span_columns(spans)):
        total = Total(meter=meter, unit=unit, scale=scale, units=int(units))
        found.setdefault(segment_id, []).append(total)
    return found


async def count_records(conn: Connection, spans: Collection[SegmentSpan]) -> dict[UUID, int]:
    """Count the usage records of each segment."""
    rows = await conn.fetch(sql("billing.segment_records"), *_span_columns(spans))
    return {row["segment_id"]: row["records"] for row in rows}


async def read_chain_heads(conn: Connection) -> tuple[Json, ...]:
    """Read the last link of every stream of the usage chain."""
    rows = await conn.fetch(sql("billing.chain_heads"))
    return tuple({"stream": row["stream"], "position": row["position"], "hash": row["hash"].hex()} for row in rows)


async def read_parties(conn: Connection, tenant_ids: Collection[UUID]) -> dict[UUID, Parties]:
    """Read tenants' sellers, themselves and their payers as they are now."""
    rows = await conn.fetch(sql("billing.parties"), list(tenant_ids))
    sellers = await conn.fetch(sql("billing.seller_taxes"))
    taxes = {row["seller_id"]: seller_taxes_from(row["taxes"]) for row in sellers}
    return {row["tenant_id"]: _parties(row, taxes[row["seller_id"]]) for row in rows}


def _parties(row: Row, taxes: SellerTaxes) -> Parties:
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
        taxes=taxes,
        place=TaxPlace(country=row["payer_country"], region=row["payer_region"], tax_id=row["payer_tax_id"]),
    )


async def add_closes(conn: Connection, added: Sequence[NewClose], *, at: datetime) -> None:
    """Keep closes and move their subscriptions' billing on to the periods' ends; a cut moves nothing."""
    await conn.execute(
        sql("billing.add_closes"),
        *columns_of([one.span for one in added]),
        at,
        [one.billable for one in added],
        [one.is_draft for one in added],
        [one.inputs for one in added],
        [one.is_cut for one in added],
    )
    tenants, subscriptions, _, ends = columns_of([one.span for one in added if not one.is_cut])
    await conn.execute(sql("billing.advance_billed_until"), tenants, subscriptions, ends)


async def read_pending_closes(conn: Connection, *, only: str | None, count_max: int) -> list[tuple[CloseKey, str]]:
    """Read closes whose invoices are missing, each with its tenant's wire id, oldest first."""
    rows = await conn.fetch(sql("billing.pending_closes"), only, count_max)
    return [(CloseKey(row["tenant_id"], row["subscription_id"], row["period_start"]), row["wire_id"]) for row in rows]


async def read_closes(conn: Connection, keys: Collection[CloseKey]) -> dict[CloseKey, bytes]:
    """Read the inputs of closes. Raises RuntimeError where one is missing."""
    rows = await conn.fetch(sql("billing.closes"), *_key_columns(keys))
    found = {CloseKey(row["tenant_id"], row["subscription_id"], row["period_start"]): row["inputs"] for row in rows}
    missing = next((key for key in keys if key not in found), None)
    if missing is not None:
        raise RuntimeError(f"period {missing} is not closed")
    return found


async def read_with_invoice(conn: Connection, keys: Collection[CloseKey]) -> set[CloseKey]:
    """Read which of these periods have their invoices."""
    rows = await conn.fetch(sql("billing.invoiced"), *_key_columns(keys))
    return {CloseKey(row["tenant_id"], row["subscription_id"], row["period_start"]) for row in rows}


def _key_columns(keys: Collection[CloseKey]) -> tuple[list[UUID], list[UUID], list[datetime]]:
    return (
        [key.tenant_id for key in keys],
        [key.subscription_id for key in keys],
        [key.period_start for key in keys],
    )


@dataclass(frozen=True, slots=True)
class Before:
    """A close of an earlier period."""

    inputs: bytes
    """Those of its newest invoice; of the close itself where there is none yet."""
    is_void: bool
    """Whether its invoice is void and nothing replaces it."""


async def read_inputs_ending(conn: Connection, keys: Collection[CloseKey]) -> dict[UUID, Before]:
    """Read the closes that end where these periods begin, by subscription; none = not in the answer."""
    rows = await conn.fetch(sql("billing.inputs_ending"), *_key_columns(keys))
    return {row["subscription_id"]: Before(row["inputs"], row["is_void"]) for row in rows}


async def read_inputs_around(
    conn: Connection, tenant_id: UUID, subscription_id: UUID, instant: datetime
) -> Before | None:
    """Read the close of the period that has an instant; None where it is not closed."""
    row = await conn.fetchrow(sql("billing.inputs_around"), tenant_id, subscription_id, instant)
    return None if row is None else Before(row["inputs"], row["is_void"])


async def read_inputs_from(conn: Connection, key: CloseKey) -> bytes | None:
    """Read the inputs of the close that begins at an instant; None where there is none or its invoice is void."""
    found: bytes | None = await conn.fetchval(
        sql("billing.inputs_from"), key.tenant_id, key.subscription_id, key.period_start
    )
    return found


async def read_inputs_late_for(conn: Connection, key: CloseKey) -> list[bytes]:
    """Read the inputs of later closes that bill usage of a closed period, but of those whose invoices are void."""
    rows = await conn.fetch(sql("billing.inputs_late_for"), key.tenant_id, key.subscription_id, key.period_start)
    return [row["inputs"] for row in rows]


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


async def read_closes_beyond(conn: Connection, *, count_max: int) -> list[tuple[str, str]]:
    """Give (tenant, start) of closes that begin when no calendar has a day: `read_closes_after` leaves them out."""
    rows = await conn.fetch(sql("billing.closes_beyond"), count_max)
    return [(row["wire_id"], row["period_start"]) for row in rows]


def _close(row: Row) -> StoredClose:
    return StoredClose(
        key=CloseKey(row["tenant_id"], row["subscription_id"], row["period_start"]),
        tenant=row["wire_id"],
        inputs=row["inputs"],
    )
