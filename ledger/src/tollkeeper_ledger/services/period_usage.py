"""Sum what a period's segments hold, as its prices need it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.invoice import LateInput, SegmentInput, merge_totals
from tollkeeper_ledger.domain.period_facts import instant_text
from tollkeeper_ledger.domain.rating.dimensions import demands_of, meters_priced
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store.billing_usage import Wanted, read_demanded, read_uniques

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.periods import Period
    from tollkeeper_ledger.domain.rating.charges import Total
    from tollkeeper_ledger.services.billing_facts import PeriodPlans
    from tollkeeper_ledger.store.billing_closes import PeriodSegment
    from tollkeeper_ledger.store.pool import Connection


async def read_period_usage(
    conn: Connection,
    found: PeriodPlans,
    period: Period,
    *,
    also: Sequence[bytes] = (),
    is_meant: Callable[[PeriodSegment], bool] = lambda _: True,
) -> tuple[tuple[SegmentInput, ...], tuple[LateInput, ...]]:
    """Give a period's own segments and late ones with their sums, open or closed; `also` are plans that will rate it.

    Of all segments those that are meant. Raises ValueError for more records than a price per record takes.
    """
    schedule = found.schedule
    tenant_id = schedule.tenant_id
    key = closes.CloseKey(tenant_id, schedule.subscription_id, period.start)
    segments = list(filter(is_meant, await closes.read_period_segments(conn, key, period_end=period.end)))
    late = [segment for segment in segments if segment.late_for is not None]
    before = await closes.read_billed_before(
        conn, tenant_id, {segment.late_for for segment in late if segment.late_for}, before=period.start
    )
    digests = {plan.plan.digest for plan in found.plans.values()} | {segment.plan.digest for segment in late}
    definitions = [*(await closes.read_definitions_by_digest(conn, digests)).values(), *also]
    wanted = Wanted(
        tenant_id=tenant_id,
        segments={segment.segment_id for segment in segments} | {one for of in before.values() for one, _ in of},
        first=min([period.start, *(start for of in before.values() for _, start in of)]),
        last=max([period.end, *(segment.own.end for segment in segments)]),
    )
    totals = await read_demanded(conn, wanted, demands_of(definitions))
    groups = _groups(found, segments, before)
    for segment_id, counted in (await read_uniques(conn, tenant_id, meters_priced(definitions), groups)).items():
        totals.setdefault(segment_id, []).extend(counted)
    counts = await closes.count_records(conn, tenant_id, segments)

    def summed(segment: PeriodSegment) -> SegmentInput:
        return SegmentInput(
            segment_id=str(segment.segment_id),
            record_count=counts.get(segment.segment_id, 0),
            totals=tuple(totals.get(segment.segment_id, ())),
            plan="" if found.is_trial(segment.own.start) else segment.plan.digest,
            part_of=instant_text(segment.own.start) if segment.is_parted or segment.part else "",
        )

    own = tuple(summed(segment) for segment in segments if segment.late_for is None)
    return own, _late_inputs(found, late, before, totals, summed)


def _groups(
    found: PeriodPlans, segments: Sequence[PeriodSegment], before: Mapping[UUID, Sequence[tuple[UUID, datetime]]]
) -> list[list[UUID]]:
    """Put segments together whose usage is rated together: of one period under one plan, in order of billing."""
    groups: dict[object, list[UUID]] = {}
    for segment in segments:
        if found.is_trial(segment.own.start):
            continue
        if segment.late_for is None:
            groups.setdefault(segment.plan.digest, []).append(segment.segment_id)
            continue
        billed = [one for one, start in before.get(segment.late_for, ()) if not found.is_trial(start)]
        groups.setdefault((segment.plan.digest, frozenset(billed)), billed).append(segment.segment_id)
    return list(groups.values())


def _late_inputs(
    found: PeriodPlans,
    late: Sequence[PeriodSegment],
    before: Mapping[UUID, Sequence[tuple[UUID, datetime]]],
    totals: Mapping[UUID, Sequence[Total]],
    summed: Callable[[PeriodSegment], SegmentInput],
) -> tuple[LateInput, ...]:
    """Put late usage beside what its period had been billed for, late usage before it on this invoice included."""
    inputs: list[LateInput] = []
    added: dict[tuple[frozenset[UUID], str], list[Sequence[Total]]] = {}
    for segment in late:
        if segment.late_for is None:
            continue
        billed = [one for one, start in before.get(segment.late_for, ()) if not found.is_trial(start)]
        # Stretches of one period under one plan are rated together, so they have had the same billed for them.
        earlier = added.setdefault((frozenset(billed), segment.plan.digest), [])
        one = summed(segment)
        merged = merge_totals([*(totals.get(billed_id, ()) for billed_id in billed), *earlier])
        inputs.append(
            LateInput(segment=one, late_for=str(segment.late_for), period=segment.own, plan=segment.plan, before=merged)
        )
        earlier.append(one.totals)
    return tuple(inputs)
