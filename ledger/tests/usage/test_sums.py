"""Sums per minute and buckets of a query: exact, complete, and cut where the calendar cuts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.usage import FLAG_DECREASE, FLAG_VOID, MINUTE_US
from tollkeeper_ledger.domain.usage_aggregate import Aggregation
from tollkeeper_ledger.domain.usage_batch import Records
from tollkeeper_ledger.domain.usage_buckets import BUCKETS_MAX, BucketSize, check_time_zone, edges
from tollkeeper_ledger.domain.usage_rollup import MeterFacts, Part, label_batch
from tollkeeper_ledger.services.usage_store import _parts, _Stamps
from tollkeeper_ledger.store.usage_batches import RecordTexts, _joined
from tollkeeper_ledger.store.usage_rollups import record_sums

PARTS = [
    Part(UUID(int=2), UUID(int=9), 0),
    Part(UUID(int=1), UUID(int=9), FLAG_DECREASE),
    Part(UUID(int=2), UUID(int=9), FLAG_VOID),
    Part(UUID(int=2), UUID(int=9), FLAG_VOID | FLAG_DECREASE),
]
SIGNS = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
METERS = {
    5: MeterFacts(5, Aggregation.SUM),
    3: MeterFacts(3, Aggregation.COUNT, dimensions=("zone",)),
}
SHAPES = [(5,), (5, 3), ()]
ATTRIBUTES = ["{}", '{"zone":"a"}', '{"user":"u","zone":"a"}']
RECORDS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(ATTRIBUTES)), max_size=40)


@given(RECORDS)
def test_records_are_labelled_with_every_sum_they_add_to(records: list[tuple[int, str]]) -> None:
    """Each quantity points to its meter and the values of its dimensions; series ascend, each is there once."""
    found = label_batch(
        shape=[shape for shape, _ in records],
        shape_meters=[[METERS[meter] for meter in shape] for shape in SHAPES],
        attributes=[attributes for _, attributes in records],
    )
    for (shape, attributes), label in zip(records, found.label, strict=True):
        dims = {3: '{"zone":"a"}' if "zone" in attributes else "{}", 5: "{}"}
        assert [(meter, dims[meter]) for meter in SHAPES[shape]] == [found.series[at] for at in found.lines[label]]
    assert sorted(set(found.series)) == list(found.series)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from([0, 0, FLAG_VOID])), max_size=20),
    st.sampled_from(["a segment per tenant", "no flags", "anything"]),
)
def test_parts_say_of_each_record_what_it_has(given_: list[tuple[int, int, int]], kind: str) -> None:
    """Tenant, segment and flags of each record are those of its part, whichever of its batch's tenants have records."""
    tenants = [UUID(int=10 + at) for at in range(4)]
    found = [
        (tenant, UUID(int=20 + (segment if kind == "anything" else tenant)), 0 if kind == "no flags" else flags)
        for tenant, segment, flags in given_
    ]
    columns = dict.fromkeys(Records.__slots__, ())
    tenant, flags = [tenant for tenant, _, _ in found], [flags for _, _, flags in found]
    records = Records(**{**columns, "tenant": tenant, "flags": flags})
    whole = {at: UUID(int=20 + at) for at in sorted(set(tenant))} if kind != "anything" else {}
    stamps = _Stamps(whole, [segment for _, segment, _ in found] if kind == "anything" else None)
    parts, part = _parts(records, tenants, stamps)
    assert [(tenants[tenant], segment, flags) for tenant, segment, flags in found] == [tuple(parts[at]) for at in part]
    assert len(set(parts)) == len(parts) == len(set(part))


@given(st.permutations(PARTS))
def test_pairs_ascend_and_parts_count_as_their_flags_say(parts: list[Part]) -> None:
    """Sums are locked in key order, so tenants and segments stand in it; a void or a decrease counts below 0."""
    tenants, segments = [str(part.tenant_id) for part in parts], [str(part.segment_id) for part in parts]
    texts = RecordTexts(tenants, segments, part="{}", units="", arguments=())
    found = record_sums(parts, label_batch(shape=[], shape_meters=[], attributes=[]), texts, [MINUTE_US - 1, 0])
    columns = ([UUID(one) for one in text[1:-1].split(",")] for text in found.arguments[:2])
    pairs = list(zip(*columns, strict=True))
    assert [(UUID(int=1), UUID(int=9)), (UUID(int=2), UUID(int=9))] == pairs
    place, units, records = ([int(one) for one in text[1:-1].split(",")] for text in found.arguments[2:5])
    assert [(part.tenant_id, part.segment_id) for part in parts] == [pairs[at - 1] for at in place]
    assert [SIGNS[PARTS.index(part)] for part in parts] == list(zip(units, records, strict=True))
    assert (found.first_us, found.last_us) == (0, MINUTE_US - 1)


@pytest.mark.parametrize(
    ("zone", "first", "hours"),
    [
        ("UTC", datetime(2026, 3, 28, 5, tzinfo=UTC), [24, 24, 24]),
        ("Europe/Berlin", datetime(2026, 3, 28, 5, tzinfo=UTC), [24, 23, 24]),
        ("Europe/Berlin", datetime(2026, 10, 24, 5, tzinfo=UTC), [24, 25, 24]),
        ("Asia/Kathmandu", datetime(2026, 3, 28, 5, tzinfo=UTC), [24, 24, 24]),
    ],
)
def test_days_are_as_long_as_the_zone_makes_them(zone: str, first: datetime, hours: list[int]) -> None:
    """A day has 23 or 25 hours where the clocks change."""
    found = edges(first, first + timedelta(days=3), size=BucketSize.DAY, time_zone=zone)
    lengths = [(late - early) / timedelta(hours=1) for early, late in pairwise(found)]
    assert hours == lengths


@given(
    st.datetimes(datetime(1980, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - hypothesis' bounds
    st.integers(0, 400),
    st.sampled_from([BucketSize.DAY, BucketSize.WEEK, BucketSize.MONTH]),
    st.sampled_from(["UTC", "America/Sao_Paulo", "Pacific/Apia", "Asia/Kolkata"]),
)
def test_edges_cover_the_span_and_nothing_else(first: datetime, days: int, size: BucketSize, zone: str) -> None:
    """The first bucket begins at or before the span, the last one in it, and they ascend."""
    last = first + timedelta(days=days)
    found = edges(first, last, size=size, time_zone=zone)
    assert found == sorted(set(found))
    assert found[0] <= first
    assert all(first < edge <= last for edge in found[1:])


@pytest.mark.parametrize(("zone", "minute"), [("UTC", 0), ("Asia/Kathmandu", 15), ("America/St_Johns", 30)])
def test_hours_are_those_of_the_zone(zone: str, minute: int) -> None:
    """An hour begins where the wall clock of the zone says so, and every one is an hour long."""
    first = datetime(2026, 3, 27, 5, 7, tzinfo=UTC)
    found = edges(first, first + timedelta(days=3), size=BucketSize.HOUR, time_zone=zone)
    assert {minute} == {edge.minute for edge in found}
    assert {timedelta(hours=1)} == {late - early for early, late in pairwise(found)}
    assert found[0] <= first < found[1]
    assert len(found) in (72, 73)


def test_too_many_buckets_are_refused() -> None:
    """A question with an endless answer is refused, not cut."""
    first = datetime(1970, 1, 1, tzinfo=UTC)
    with pytest.raises(InvalidFieldError) as caught:
        edges(first, first + timedelta(days=BUCKETS_MAX), size=BucketSize.DAY, time_zone="UTC")
    assert caught.value.reason == "FIELD_OUT_OF_RANGE"


@pytest.mark.parametrize(
    "zone", ["Mars/Olympus", "../etc/passwd", "/etc/localtime", "a\0b", "Europe", "x" * 65, "ü", ""]
)
def test_what_is_no_zone_is_refused(zone: str) -> None:
    """Only IANA names are taken, an empty one not either; no name reaches a file outside the zone data."""
    with pytest.raises(InvalidFieldError) as caught:
        check_time_zone(zone)
    assert caught.value.metadata["field"] == "time_zone"


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5), min_size=1))
def test_joined_texts_come_apart_again(texts: list[str]) -> None:
    """The separator is in none of the texts, whatever they hold."""
    joined, separator = _joined(texts)
    assert texts == joined.split(separator)


def test_texts_full_of_line_breaks_and_controls_come_apart_again() -> None:
    """Texts that hold every usual separator still have one of their own."""
    texts = ["".join(map(chr, range(1, 300))), "\n", "\x1f\n"]
    joined, separator = _joined(texts)
    assert texts == joined.split(separator)
