"""Sum what a period's segments hold, as its prices need it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.invoice import LateInput, SegmentInput, merge_totals
from tollkeeper_ledger.domain.period_facts import instant_text
from tollkeeper_ledger.domain.rating.dimensions import demands_of, meters_priced
from tollkeeper_ledger.domain.usage_archive import need_records
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store.billing_closes import CloseKey, ClosingSpan, SegmentSpan
from tollkeeper_ledger.store.billing_usage import Wanted, read_demanded, read_unique_meters, read_uniques
from tollkeeper_ledger.store.usage_archive import archived_between

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.periods import Period
    from tollkeeper_ledger.domain.rating.charges import Total
    from tollkeeper_ledger.domain.rating.dimensions import Demand
    from tollkeeper_ledger.services.billing_facts import PeriodPlans
    from tollkeeper_ledger.store.billing_closes import PeriodSegment
    from tollkeeper_ledger.store.pool import Connection, Row


@dataclass(frozen=True, slots=True)
class Used:
    """Usage of a period as its inputs keep it."""

    segments: tuple[SegmentInput, ...]
    late: tuple[LateInput, ...]


@dataclass(frozen=True, slots=True)
class UsageAsked:
    """A period whose usage is wanted."""

    found: PeriodPlans
    period: Period
    is_meant: Callable[[PeriodSegment], bool] = lambda _: True
    """Says which of its segments."""


async def read_period_usage(
    conn: Connection,
    found: PeriodPlans,
    period: Period,
    *,
    also: Sequence[bytes] = (),
    is_meant: Callable[[PeriodSegment], bool] = lambda _: True,
) -> tuple[tuple[SegmentInput, ...], tuple[LateInput, ...]]:
    """Give a period's own segments and late ones with their sums, open or closed; `also` are plans that will rate it.

    Of all segments those that are meant. Raises ValueError for more records than a price per record takes, and
    RecordsAwayError where they are in files only.
    """
    used = (await read_usage_of(conn, [UsageAsked(found, period, is_meant)], also=also))[found.schedule.subscription_id]
    if isinstance(used, ValueError):
        raise used
    return used.segments, used.late


@dataclass(frozen=True, slots=True)
class _Asked:
    """A period with its segments."""

    found: PeriodPlans
    period: Period
    segments: Sequence[PeriodSegment]
    before: Mapping[UUID, Sequence[tuple[UUID, datetime]]]
    """What was billed for late segments' own periods: segments, and the starts of their stretches."""

    @property
    def late(self) -> list[PeriodSegment]:
        return [segment for segment in self.segments if segment.late_for is not None]

    @property
    def wanted(self) -> Wanted:
        before = [one for of in self.before.values() for one in of]
        return Wanted(
            tenant_id=self.found.schedule.tenant_id,
            segments={segment.segment_id for segment in self.segments} | {one for one, _ in before},
            first=min([self.period.start, *(start for _, start in before), *(one.own.start for one in self.segments)]),
            last=max([self.period.end, *(segment.own.end for segment in self.segments)]),
        )

    @property
    def digests(self) -> frozenset[str]:
        return frozenset({plan.plan.digest for plan in self.found.plans.values()} | {s.plan.digest for s in self.late})


async def read_usage_of(
    conn: Connection, periods: Sequence[UsageAsked], *, also: Sequence[bytes] = ()
) -> dict[UUID, Used | ValueError]:
    """Give the usage of periods, at most one of a subscription, by subscription; see `read_period_usage`.

    A few queries for all of them, and some for each one that has late usage or prices that need more than sums.
    """
    asked = await _with_segments(conn, periods)
    wanted = [one.wanted for one in asked]
    spans = [SegmentSpan(one.tenant_id, segment, one.first, one.last) for one in wanted for segment in one.segments]
    stored = _Stored(totals=await closes.read_totals(conn, spans), counts=await closes.count_records(conn, spans))
    definitions = {plan.plan.digest: plan.definition for one in asked for plan in one.found.plans.values()}
    # Late usage may be priced by a plan version that no phase has any more.
    missing = {digest for one in asked for digest in one.digests} - definitions.keys()
    if missing:
        definitions |= await closes.read_definitions_by_digest(conn, missing)
    demands: dict[frozenset[str], _Demands] = {}
    for one in asked:
        if one.digests not in demands:
            demands[one.digests] = await _demands(conn, [*(definitions[digest] for digest in one.digests), *also])
    used: dict[UUID, Used | ValueError] = {}
    for one, span in zip(asked, wanted, strict=True):
        try:
            used[one.found.schedule.subscription_id] = await _used(conn, one, span, demands[one.digests], stored)
        except ValueError as error:
            used[one.found.schedule.subscription_id] = error
    return used


@dataclass(frozen=True, slots=True)
class _Demands:
    """What plan versions need beyond sums."""

    by_meter: Mapping[str, Demand]
    uniques: Sequence[Row]


@dataclass(frozen=True, slots=True)
class _Stored:
    """Sums and counts of records by segment."""

    totals: Mapping[UUID, Sequence[Total]]
    counts: Mapping[UUID, int]


async def _demands(conn: Connection, definitions: Sequence[bytes]) -> _Demands:
    return _Demands(
        by_meter=demands_of(definitions), uniques=await read_unique_meters(conn, meters_priced(definitions))
    )


async def _with_segments(conn: Connection, periods: Sequence[UsageAsked]) -> list[_Asked]:
    spans = [
        ClosingSpan(
            CloseKey(one.found.schedule.tenant_id, one.found.schedule.subscription_id, one.period.start),
            period_end=one.period.end,
        )
        for one in periods
    ]
    segments = await closes.read_period_segments(conn, spans)
    asked = []
    for one, span in zip(periods, spans, strict=True):
        of_it = list(filter(one.is_meant, segments.get(span.key, ())))
        late_for = {segment.late_for for segment in of_it if segment.late_for}
        before = {}
        if late_for:
            before = await closes.read_billed_before(conn, span.key.tenant_id, late_for, before=one.period.start)
        asked.append(_Asked(found=one.found, period=one.period, segments=of_it, before=before))
    return asked


async def _used(conn: Connection, asked: _Asked, wanted: Wanted, demands: _Demands, stored: _Stored) -> Used:
    found, tenant_id = asked.found, wanted.tenant_id
    sums: Mapping[UUID, Sequence[Total]] = stored.totals
    if any(demand.events for demand in demands.by_meter.values()):
        need_records(await archived_between(conn, wanted.first, wanted.last))
    if demands.by_meter or demands.uniques:
        own = await read_demanded(conn, wanted, demands.by_meter, stored.totals)
        groups = _groups(found, asked.segments, asked.before)
        for segment_id, counted in (await read_uniques(conn, tenant_id, demands.uniques, groups)).items():
            own.setdefault(segment_id, []).extend(counted)
        sums = own

    def summed(segment: PeriodSegment) -> SegmentInput:
        return SegmentInput(
            segment_id=str(segment.segment_id),
            record_count=stored.counts.get(segment.segment_id, 0),
            totals=tuple(sums.get(segment.segment_id, ())),
            plan="" if found.is_trial(segment.own.start) else segment.plan.digest,
            part_of=instant_text(segment.own.start) if segment.is_parted or segment.part else "",
        )

    return Used(
        segments=tuple(summed(segment) for segment in asked.segments if segment.late_for is None),
        late=_late_inputs(found, asked.late, asked.before, sums, summed) if asked.late else (),
    )


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
