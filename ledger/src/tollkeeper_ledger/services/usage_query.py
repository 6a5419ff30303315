"""Answer what was used: from rollups where they say it, else from the records themselves."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.domain.pseudonyms import version_of
from tollkeeper_ledger.domain.usage import FLAG_VOID, MINUTE_US, NAME_BYTES_MAX
from tollkeeper_ledger.domain.usage_aggregate import STATEFUL, Aggregation, Point, state_of
from tollkeeper_ledger.domain.usage_archive import need_records
from tollkeeper_ledger.domain.usage_buckets import BUCKETS_MAX, BucketSize, check_time_zone, edges, too_many
from tollkeeper_ledger.domain.usage_report import (
    PERCENTILES_DEFAULT,
    Figure,
    Steps,
    areas,
    group_of,
    last_units,
    matches,
)
from tollkeeper_ledger.domain.usage_rollup import QUARTER_US, sign_of, void_id_of
from tollkeeper_ledger.domain.usage_rules import text_problem
from tollkeeper_ledger.services.tenants import check_tenant, unknown_tenant
from tollkeeper_ledger.store import usage_reports as store
from tollkeeper_ledger.store.pool import connection, tenant_transaction
from tollkeeper_ledger.store.subscriptions import read_time_zone
from tollkeeper_ledger.store.usage_archive import archived_between, hold_months

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.usage_aggregate import State
    from tollkeeper_ledger.domain.usage_report import Group, Where
    from tollkeeper_ledger.store.pool import Connection, Pools
    from tollkeeper_ledger.store.usage_reports import MeterInfo, Span

METERS_MAX = 100
GROUP_BY_MAX = 4
PERCENTILES_MAX = 10
RAW_RECORDS_MAX = 1_000_000
"""Records that one question reads where rollups don't have the answer."""
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
END = datetime(2200, 1, 1, tzinfo=UTC)
Series: TypeAlias = "tuple[int, Group]"
"""A time-weighted series: meter id and the values of its dimensions."""
_BOUNDED = {
    BucketSize.WHOLE: timedelta.max,
    BucketSize.MINUTE: timedelta(hours=6),
    BucketSize.HOUR: timedelta(days=2),
    BucketSize.DAY: timedelta(days=100),
    BucketSize.WEEK: timedelta(days=400),
    BucketSize.MONTH: timedelta(days=800),
}
"""Spans whose buckets cost less to make than a look at where usage is."""
_PAGE = 5_000
_PERMILLE_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about one tenant's usage."""

    tenant: str
    size: BucketSize
    meters: Sequence[str] = ()
    """None = all."""
    start: datetime | None = None
    end: datetime | None = None
    """Exclusive."""
    time_zone: str = "UTC"
    group_by: Sequence[str] = ()
    permilles: Sequence[int] = PERCENTILES_DEFAULT
    where: Where = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bucketed:
    """Usage of a meter in one bucket and group."""

    meter: MeterInfo
    start: datetime
    group: Group
    figure: Figure


async def time_zone_of(pools: Pools, tenant: str, named: str) -> str:
    """Give the time zone named, else the tenant's own: its subscription's, its payer's, UTC where there is none.

    Raises InvalidFieldError for what is no zone, UnknownNameError for the tenant.
    """
    if named:
        return check_time_zone(named)
    check_tenant(tenant)
    async with connection(pools.billing) as conn:
        found = await read_time_zone(conn, tenant)
    if found is None:
        raise unknown_tenant(tenant)
    return found or "UTC"


async def query_usage(pools: Pools, asked: Question) -> list[Bucketed]:
    """Give a tenant's usage per meter, bucket and group, in this order; what has no usage is left out.

    Raises InvalidFieldError: a span that isn't whole minutes, an unknown zone, too many buckets, meters or records to
    read; UnknownNameError for the tenant or a meter.
    """
    zone = check_time_zone(asked.time_zone)
    _check(asked)
    tenant_id, meters = await _named(pools, asked)
    async with tenant_transaction(pools.reader, tenant_id, readonly=True) as conn:
        answer = _Answer(conn, tenant_id, asked, meters)
        found = await answer.give(zone)
    found.sort(key=lambda one: (one.meter.name, one.start, one.group))
    if len(found) > BUCKETS_MAX:
        raise too_many()
    return found


async def _named(pools: Pools, asked: Question) -> tuple[UUID, list[MeterInfo]]:
    """Give the tenant and the meters that the question is about; one statement finds both, as no report can do less."""
    check_tenant(asked.tenant)
    async with connection(pools.billing) as conn:
        found = await store.read_tenant_and_meters(conn, asked.tenant, asked.meters or None)
    if found is None:
        raise unknown_tenant(asked.tenant)
    tenant_id, meters = found
    for name in asked.meters:
        if all(name != meter.name for meter in meters):
            raise UnknownNameError("meter", name)
    return tenant_id, _declaring(meters, asked.where)


def _declaring(meters: Sequence[MeterInfo], where: Where) -> list[MeterInfo]:
    """Keep the meters whose records may have the attributes.

    Raises InvalidFieldError: no meter has one; a value is plain, and one of these meters has pseudonyms of it.
    """
    for name in where:
        if all(name not in meter.attributes for meter in meters):
            known = sorted({attribute for meter in meters for attribute in meter.attributes})
            raise InvalidFieldError(
                "where", "names an attribute that no meter asked for declares", value=name,
                bound=", ".join(known) or "none", remedy="name one of them, or other meters",
            )  # fmt: skip
    asked = [meter for meter in meters if all(name in meter.attributes for name in where)]
    for name, values in where.items():
        hiding = [meter.name for meter in asked if name in meter.facts.hidden]
        if hiding and any(version_of(value) is None for value in values):
            # Nothing of the value: it may say who somebody is.
            raise InvalidFieldError(
                "where", f"asks for a plain value of {name!r}, which meter {hiding[0]!r} hides",
                bound="pseudonyms, as a report grouped by it shows them", remedy="name pseudonyms, or other meters",
            )  # fmt: skip
    return asked


def _check(asked: Question) -> None:
    for named, edge in (("from", asked.start), ("to", asked.end)):
        if edge is not None and (edge.second or edge.microsecond):
            raise InvalidFieldError(named, "must be a whole minute", value=edge.isoformat(), bound="whole minutes")
    for named, values, most in (
        ("meters", asked.meters, METERS_MAX),
        ("group_by", asked.group_by, GROUP_BY_MAX),
        ("percentiles_permille", asked.permilles, PERCENTILES_MAX),
    ):
        if len(values) > most:
            raise InvalidFieldError(
                named, "has too many entries", reason="FIELD_TOO_LONG", value=len(values), bound=str(most)
            )
    for name in (*asked.group_by, *asked.meters):
        if text_problem(name, "") is not None:
            named = "meters" if name in asked.meters else "group_by"
            raise InvalidFieldError(named, "holds what is no name", bound=f"1 to {NAME_BYTES_MAX} bytes")
    for permille in asked.permilles:
        if not 1 <= permille <= _PERMILLE_MAX:
            raise InvalidFieldError(
                "percentiles_permille",
                "is out of range",
                reason="FIELD_OUT_OF_RANGE",
                value=permille,
                bound="1 to 1000",
            )


class _Answer:
    """Gather figures per (meter, bucket, group)."""

    def __init__(self, conn: Connection, tenant_id: UUID, asked: Question, meters: Sequence[MeterInfo]) -> None:
        self._conn = conn
        self._asked = asked
        self._meters = {meter.facts.meter_id: meter for meter in meters}
        self._now = END
        self._span = store.Span(tenant_id, list(self._meters), asked.start or BEGINNING, asked.end or END)
        self._edges: list[datetime] = []
        self._figures: dict[tuple[int, int, Group], Figure] = {}

    async def give(self, zone: str) -> list[Bucketed]:
        """Read and add up everything."""
        found = await self._extent()
        if found is None or found[1] < found[0]:
            return []
        first, last = found
        self._edges = edges(first, last, size=self._asked.size, time_zone=zone)
        await self._gather()
        whole = self._asked.size is BucketSize.WHOLE
        return [
            Bucketed(
                meter=self._meters[meter_id],
                start=self._span.start if whole else self._edges[place],
                group=group,
                figure=figure,
            )
            for (meter_id, place, group), figure in self._figures.items()
            if figure.records or figure.units or figure.area
        ]

    def _is_bounded(self) -> bool:
        """Say whether the span alone makes few buckets of sums: nobody looks first from where to where usage is."""
        asked = self._asked
        if asked.start is None or asked.end is None or self._of(Aggregation.TIME_WEIGHTED):
            return False
        if any(self._needs_records(meter, aligned=False) for meter in self._meters.values()):
            return False
        return BEGINNING <= asked.start < asked.end <= END and asked.end - asked.start <= _BOUNDED[asked.size]

    async def _extent(self) -> tuple[datetime, datetime] | None:
        """Give the first and the last minute that the answer is about, None where none is; learn what time it is."""
        first = self._span.start
        if self._is_bounded():
            return first, self._span.end - timedelta(minutes=1)
        quarter = from_us(to_us(first) - to_us(first) % QUARTER_US)
        extent = await store.usage_extent(self._conn, replace(self._span, start=quarter))
        self._now = extent.now
        gauges = self._of(Aggregation.TIME_WEIGHTED)
        if extent.first is None and not (gauges and self._asked.start):
            return None
        last = self._now if extent.last is None else from_us(to_us(extent.last) + QUARTER_US - MINUTE_US)
        if extent.first is not None and not (gauges and self._asked.start):
            first = max(first, extent.first)
        if gauges:
            last = max(last, from_us(to_us(self._now) - to_us(self._now) % MINUTE_US))
        return first, min(last, from_us(to_us(self._span.end) - MINUTE_US))

    async def _gather(self) -> None:
        instants = [*self._edges[1:], self._span.start, self._span.end]
        aligned = all(to_us(instant) % QUARTER_US == 0 for instant in instants)
        if self._asked.size is not BucketSize.WHOLE:
            aligned = aligned and to_us(self._edges[0]) % QUARTER_US == 0
        raw = {meter_id for meter_id, meter in self._meters.items() if self._needs_records(meter, aligned=aligned)}
        rolled = [meter_id for meter_id in self._meters if meter_id not in raw]
        await self._add_sums(rolled, by_minute=not aligned)
        unique = self._of(Aggregation.UNIQUE) - raw
        if unique:
            await self._add_values(unique)
        stateful = {meter_id for meter_id in rolled if self._meters[meter_id].facts.aggregation in STATEFUL}
        if stateful:
            await self._add_states(stateful)
        if raw:
            await self._add_records(raw)

    def _of(self, aggregation: Aggregation) -> set[int]:
        return {meter_id for meter_id, meter in self._meters.items() if meter.facts.aggregation is aggregation}

    def _needs_records(self, meter: MeterInfo, *, aligned: bool) -> bool:
        named = {**dict.fromkeys(self._asked.group_by, "group_by"), **dict.fromkeys(self._asked.where, "where")}
        beyond = named.keys() & set(meter.attributes) - set(meter.facts.dimensions)
        if beyond and meter.facts.aggregation is Aggregation.TIME_WEIGHTED:
            raise InvalidFieldError(
                named[min(beyond)], "names an attribute that is no dimension of a time-weighted meter",
                value=min(beyond), bound="its dimensions: " + ", ".join(meter.facts.dimensions),
                remedy="name the other meters",
            )  # fmt: skip
        return bool(beyond) or (meter.facts.is_tracked and not aligned)

    def _figure(self, meter_id: int, place: int, group: Group) -> Figure:
        return self._figures.setdefault((meter_id, place, group), Figure())

    async def _add_sums(self, meter_ids: Sequence[int], *, by_minute: bool) -> None:
        span, most = replace(self._span, meter_ids=meter_ids), 4 * BUCKETS_MAX + 1
        if self._asked.group_by or self._asked.where:
            rows = await store.read_sums(
                self._conn, span, edges=self._edges, by_minute=by_minute, count_max=most, where=self._asked.where
            )
        else:
            rows = await store.read_totals(self._conn, span, edges=self._edges, by_minute=by_minute, count_max=most)
        if len(rows) > 4 * BUCKETS_MAX:
            raise too_many()
        for row in rows:
            figure = self._figure(row.meter_id, row.place, group_of(row.dims, self._asked.group_by))
            figure.units += row.units
            figure.records += row.records

    async def _add_values(self, meter_ids: Iterable[int]) -> None:
        span = replace(self._span, meter_ids=list(meter_ids))
        names = sorted(set(self._asked.group_by))
        rows = await store.count_values(self._conn, span, edges=self._edges, group_by=names, where=self._asked.where)
        for row in rows:
            self._figure(row.meter_id, row.place, group_of(row.dims, self._asked.group_by)).distinct += row.records

    async def _add_states(self, meter_ids: Iterable[int]) -> None:
        span = replace(self._span, meter_ids=list(meter_ids))
        starts = [to_us(edge) for edge in self._edges]
        series: dict[Series, list[State]] = {}
        for row in await store.read_states(self._conn, span):
            if not matches(row.dims, self._asked.where):
                continue
            aggregation = self._meters[row.meter_id].facts.aggregation
            if aggregation is Aggregation.TIME_WEIGHTED:
                series.setdefault((row.meter_id, tuple(sorted(row.dims.items()))), []).append(row.state)
                continue
            place = bisect_right(starts, to_us(row.quarter)) - 1
            figure = self._figure(row.meter_id, place, group_of(row.dims, self._asked.group_by))
            figure.add_state(aggregation, row.state)
        await self._add_areas(span, series, before={})

    async def _add_areas(self, span: Span, series: dict[Series, list[State]], *, before: dict[Series, int]) -> None:
        """Add what time-weighted series amount to; where `before` doesn't say what held at first, earlier states do."""
        gauges = [one for one in span.meter_ids if self._meters[one].facts.aggregation is Aggregation.TIME_WEIGHTED]
        if not gauges:
            return
        quarter = to_us(span.start) - to_us(span.start) % QUARTER_US
        held = dict(before)
        for row in await store.states_before(self._conn, replace(span, meter_ids=gauges, start=from_us(quarter))):
            if matches(row.dims, self._asked.where):
                held.setdefault((row.meter_id, tuple(sorted(row.dims.items()))), last_units(row.state))
        starts = [to_us(edge) for edge in self._edges]
        starts[0] = max(starts[0], to_us(self._span.start))
        end_us = max(min(to_us(self._now), to_us(span.end)), starts[0])
        for key in held.keys() | series.keys():
            meter_id, dims = key
            steps = Steps(before=held.get(key), states=series.get(key, []))
            for place, area in areas(steps, starts, end_us=end_us).items():
                figure = self._figure(meter_id, place, group_of(dict(dims), self._asked.group_by))
                figure.area = area + (figure.area or 0)

    async def _add_records(self, meter_ids: set[int]) -> None:
        """Read the records of the span and add them up one by one."""
        reader = _Records(self._meters, meter_ids, self._asked, [to_us(edge) for edge in self._edges])
        gauges = meter_ids & self._of(Aggregation.TIME_WEIGHTED)
        start_us = to_us(max(self._span.start, BEGINNING))
        span = replace(self._span, meter_ids=sorted(meter_ids), start=from_us(start_us - start_us % QUARTER_US))
        await hold_months(self._conn)
        need_records(await archived_between(self._conn, span.start, span.end))
        voids = await store.void_ids(self._conn, span)
        place, count = (span.start, ""), 0
        while True:
            rows = await store.records_after(self._conn, span.tenant_id, end=span.end, after=place, count_max=_PAGE)
            count += len(rows)
            if count > RAW_RECORDS_MAX:
                raise InvalidFieldError(
                    "from", "spans too many records to read", reason="FIELD_OUT_OF_RANGE",
                    bound=f"{RAW_RECORDS_MAX} records",
                    remedy="ask for a shorter span, whole quarters of an hour, or group by dimensions",
                )  # fmt: skip
            for row in rows:
                if not row.flags & FLAG_VOID and void_id_of(row.id) not in voids:
                    reader.add(row, counted=to_us(row.event_time) >= start_us, figures=self._figures)
            if len(rows) < _PAGE:
                break
            place = (rows[-1].event_time, rows[-1].id)
        if gauges:
            span = replace(span, meter_ids=sorted(gauges))
            await self._add_areas(span, reader.series, before=reader.before)


class _Records:
    """Add records to figures one by one."""

    def __init__(
        self, meters: dict[int, MeterInfo], meter_ids: set[int], asked: Question, starts: Sequence[int]
    ) -> None:
        self._meters = {meter_id: meters[meter_id] for meter_id in meter_ids}
        self._group_by, self._where = asked.group_by, asked.where
        self._starts = starts
        self._values: set[tuple[int, int, Group, str]] = set()
        self.series: dict[Series, list[State]] = {}
        self.before: dict[Series, int] = {}
        """What held when the span began, of series that had a record in its first quarter of an hour before it."""

    def add(self, row: store.RecordRow, *, counted: bool, figures: dict[tuple[int, int, Group], Figure]) -> None:
        """Add a record; one of before the span counts for nothing but for what it leaves behind."""
        if not matches(row.attributes, self._where):
            return
        at_us = to_us(row.event_time)
        place = bisect_right(self._starts, at_us) - 1
        sign, _ = sign_of(row.flags)
        for meter_id, units in zip(row.meter_ids, row.units, strict=True):
            meter = self._meters.get(meter_id)
            if meter is None:
                continue
            aggregation = meter.facts.aggregation
            point = Point(at_us, row.id, sign * units)
            if aggregation is Aggregation.TIME_WEIGHTED:
                series = (meter_id, group_of(row.attributes, meter.facts.dimensions))
                if counted:
                    self.series.setdefault(series, []).append(state_of(aggregation, [point]))
                else:
                    self.before[series] = point.units
            if not counted:
                continue
            group = group_of(row.attributes, [name for name in self._group_by if name in meter.attributes])
            figure = figures.setdefault((meter_id, place, group), Figure())
            figure.units += point.units
            figure.records += 1
            if aggregation in STATEFUL and aggregation is not Aggregation.TIME_WEIGHTED:
                figure.add_state(aggregation, state_of(aggregation, [point]))
            value = row.attributes.get(meter.facts.value_attribute)
            if value is not None and (name := (meter_id, place, group, value)) not in self._values:
                self._values.add(name)
                figure.distinct += 1
