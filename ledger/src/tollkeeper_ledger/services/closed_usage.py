"""Hold the stored inputs of a closed period against the raw records that they were summed from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tollkeeper_ledger.domain.invoice import usage_to_json
from tollkeeper_ledger.domain.period_facts import period_from_json
from tollkeeper_ledger.domain.usage_archive import away_text
from tollkeeper_ledger.services.billing_facts import read_plans_of
from tollkeeper_ledger.services.period_usage import read_period_usage
from tollkeeper_ledger.store import verifying
from tollkeeper_ledger.store.billing_segments import read_schedules
from tollkeeper_ledger.store.billing_usage import read_unique_meters
from tollkeeper_ledger.store.usage_archive import archived_between

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class Check:
    """One check: whether it holds, and what was compared or the first row that is wrong."""

    name: str
    ok: bool
    detail: str


def span_of(inputs: dict[str, Any], tenant_id: UUID) -> verifying.RecordSpan:
    """Name the raw records that inputs were summed from."""
    segments = [*inputs["segments"], *(late["segment"] for late in inputs["late"])]
    # A cut has what was used ahead of it as well: events may be a few minutes early.
    own = inputs["facts"]["whole"] if inputs["facts"].get("is_cut") else inputs["period"]
    periods = [own, *(late["period"] for late in inputs["late"])]
    return verifying.RecordSpan(
        tenant_id=tenant_id,
        segments=tuple(UUID(segment["segment_id"]) for segment in segments),
        first=min(datetime.fromisoformat(period["start"]) for period in periods),
        end=max(datetime.fromisoformat(period["end"]) for period in periods),
    )


async def read_away(conn: Connection, inputs: dict[str, Any], tenant_id: UUID) -> list[date]:
    """Read which months of the raw records that inputs were summed from are archived."""
    span = span_of(inputs, tenant_id)
    return await archived_between(conn, span.first, span.end)


async def check_usage(conn: Connection, inputs: dict[str, Any], tenant_id: UUID, *, away: Sequence[date]) -> Check:
    """Sum the raw records again, count distinct values again, and compare them with the inputs.

    `away` is what `read_away` gave: archived records are not summed.
    """
    span = span_of(inputs, tenant_id)
    if away:
        return Check("usage", ok=True, detail=f"{away_text(away)}, so they were not summed again")
    summed = await verifying.read_record_sums(conn, span)
    again = await used_again(conn, inputs, tenant_id)
    segments = [*again["segments"], *(late["segment"] for late in again["late"])]
    metered = {total["meter"] for one in segments for total in one["totals"]}
    uniques = {meter["name"] for meter in await read_unique_meters(conn, metered)}
    for segment in segments:
        for total in segment["totals"]:
            if total["meter"] in uniques:
                summed[segment["segment_id"], total["meter"]] = total["units"]
    billed: dict[tuple[str, str], int] = {}
    for segment in [*inputs["segments"], *(late["segment"] for late in inputs["late"])]:
        for total in segment["totals"]:
            key = (segment["segment_id"], total["meter"])
            billed[key] = billed.get(key, 0) + total["units"]
    for key in sorted(billed.keys() | summed.keys()):
        if billed.get(key, 0) != summed.get(key, 0):
            segment_id, meter = key
            figures = f"billed {billed.get(key, 0)}, the records sum to {summed.get(key, 0)}"
            detail = f"segment {segment_id}, {meter}: {figures}"
            return Check("usage", ok=False, detail=detail)
    return Check("usage", ok=True, detail=f"{inputs['record_count']} records, {len(billed)} sums")


async def used_again(conn: Connection, inputs: dict[str, Any], tenant_id: UUID) -> dict[str, Any]:
    """Read the usage of an invoice's period again as its close did."""
    schedules = await read_schedules(conn, [tenant_id])
    schedule = next((one for one in schedules if str(one.subscription_id) == inputs["subscription_id"]), None)
    # The opening of a subscription bills ahead: it has no usage.
    if schedule is None or not inputs["facts"]["stretches"]:
        return usage_to_json((), ())
    found = (await read_plans_of(conn, [schedule]))[schedule.subscription_id]
    period = period_from_json(inputs["period"])
    if not inputs["facts"].get("is_cut"):
        return usage_to_json(*await read_period_usage(conn, found, period))
    parts = {segment["segment_id"] for segment in inputs["segments"]}
    return usage_to_json(
        *await read_period_usage(conn, found, period, is_meant=lambda segment: str(segment.segment_id) in parts)
    )
