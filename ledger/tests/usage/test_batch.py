"""Reading batches: what was encoded is decoded, what is no batch is refused, one bad record spoils no other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain import usage_rules
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.usage import DAY_US, MINUTE_US, UNITS_MAX, Hole, Problem, TimeSpan
from tollkeeper_ledger.domain.usage_aggregate import Aggregation
from tollkeeper_ledger.domain.usage_batch import read_batch
from tollkeeper_ledger.domain.usage_judgement import describe_records, judge
from tollkeeper_ledger.domain.usage_rollup import MeterFacts
from tollkeeper_ledger.domain.usage_rules import find_problems, time_problem, times_fit
from usage_support import Log, Use, encode

PRODUCER = UUID(int=7)
REQUESTS = MeterFacts(meter_id=1, aggregation=Aggregation.SUM)
SPANS = st.builds(
    TimeSpan, st.integers(0, 35).map(lambda at: at * MINUTE_US), st.integers(0, 5).map(lambda at: at * MINUTE_US)
)
INT64 = st.integers(-(2**62), 2**62)
TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
UNITS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, UNITS_MAX)

USES = st.builds(
    Use,
    id=TEXT,
    tenant=TEXT | st.sampled_from(["acme", "globex"]),
    event_us=INT64,
    received_us=INT64,
    quantities=st.lists(st.tuples(TEXT, UNITS), max_size=18).map(tuple),
    attributes=st.lists(st.tuples(TEXT, TEXT), max_size=18).map(tuple),
    flags=st.integers(0, 20),
)
ENTRIES = st.lists(USES | st.integers(1, 5), max_size=12)


@st.composite
def alike(draw: st.DrawFn) -> list[Use | int]:
    """Draw records of the same meters in the same order, and as many attributes each: they are hashed by columns."""
    meters = draw(st.lists(TEXT, max_size=4))
    count = draw(st.integers(0, 3))
    pairs = st.lists(st.tuples(TEXT, TEXT), min_size=count, max_size=count).map(tuple)
    units = st.lists(UNITS, min_size=len(meters), max_size=len(meters))
    quantities = units.map(lambda amounts: tuple(zip(meters, amounts, strict=True)))
    return [
        replace(use, quantities=draw(quantities), attributes=draw(pairs))
        for use in draw(st.lists(USES, min_size=1, max_size=5))
    ]


def log_of(entries: list[Use | int]) -> Log:
    """Give the log of records and of holes of so many numbers."""
    log = Log(producer_id=PRODUCER)
    for entry in entries:
        if isinstance(entry, Use):
            log.record(entry)
        else:
            log.lose(entry)
    return log


@given(ENTRIES | alike())
def test_what_was_encoded_is_read_back_with_the_obvious_hashes(entries: list[Use | int]) -> None:
    """Every field, sequence number, content hash and h comes out as the obvious model has it, whatever strings hold."""
    log = log_of(entries)
    uses = [entry for entry in log.entries if isinstance(entry, Use)]
    batch = read_batch(log.cut())
    records = batch.records
    ends = dict(zip(map(id, log.entries), log.ends, strict=True))
    assert [ends[id(use)] for use in uses] == list(records.seqs)
    assert [use.id for use in uses] == list(records.ids)
    assert [use.tenant for use in uses] == [batch.tenants[at] for at in records.tenant]
    assert [use.event_us for use in uses] == list(records.event_us)
    assert [use.received_us for use in uses] == list(records.received_us)
    assert [sorted(use.quantities, key=lambda one: one[0].encode()) for use in uses] == [
        [(batch.meters[meter], amount) for meter, amount in zip(batch.shapes[shape], units, strict=True)]
        for shape, units in zip(records.shape, records.units, strict=True)
    ]
    assert [use.hash() for use in uses] == list(records.hashes)
    assert (log.ends, log.chain) == (list(batch.entry_ends), list(batch.entry_h))
    assert log.last_seq == batch.last_seq
    for number in range(log.last_seq + 2):
        entry = log.ends.index(number) + 1 if number in log.ends else None
        expected = log.h(0) if number == 0 else None if entry is None else log.h(entry)
        assert expected == batch.h_at(number)


@given(st.lists(USES, min_size=1, max_size=8))
def test_the_quick_look_misses_nothing(uses: list[Use]) -> None:
    """A batch that the quick look passes has no record that the full look refuses."""
    columns = encode(uses)
    quick = find_problems(columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(usage_rules, "_suspicious", lambda _: True)
        assert find_problems(columns) == quick


GOOD = Use(id="good", quantities=(("a", 1), ("b", 2)), attributes=(("x", "1"), ("y", "")))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"id": ""}, Problem("FIELD_REQUIRED", "id")),
        ({"id": "i" * 129}, Problem("FIELD_TOO_LONG", "id")),
        ({"id": "ü" * 65}, Problem("FIELD_TOO_LONG", "id")),
        ({"id": "a\0b"}, Problem("FIELD_INVALID", "id")),
        ({"tenant": "a b"}, Problem("FIELD_INVALID", "tenant")),
        ({"tenant": "acme\n"}, Problem("FIELD_INVALID", "tenant")),
        ({"flags": 32}, Problem("ENUM_UNKNOWN", "flags")),
        ({"quantities": ()}, Problem("FIELD_REQUIRED", "quantities")),
        ({"quantities": tuple((f"m{n}", 1) for n in range(17))}, Problem("FIELD_TOO_LONG", "quantities")),
        ({"quantities": (("a", 1), ("a", 2))}, Problem("FIELD_REPEATED", "quantities.meter")),
        ({"quantities": (("a", -1),)}, Problem("FIELD_OUT_OF_RANGE", "quantities.units")),
        ({"quantities": (("a", UNITS_MAX + 1),)}, Problem("FIELD_OUT_OF_RANGE", "quantities.units")),
        ({"attributes": tuple((f"n{n}", "") for n in range(17))}, Problem("FIELD_TOO_LONG", "attributes")),
        ({"attributes": (("x", "1"), ("x", "1"))}, Problem("FIELD_REPEATED", "attributes.name")),
        ({"attributes": (("", "1"),)}, Problem("FIELD_INVALID", "attributes.name")),
        ({"attributes": (("x\0", "1"),)}, Problem("FIELD_INVALID", "attributes.name")),
        ({"attributes": (("x", "v" * 129),)}, Problem("FIELD_INVALID", "attributes.value")),
    ],
)
def test_a_record_that_breaks_a_rule_is_named_alone(change: dict[str, Any], problem: Problem) -> None:
    """The record is named with field and reason, its neighbours are not, and it keeps its place in the chain."""
    log = log_of([GOOD, replace(GOOD, **change), GOOD])
    batch = read_batch(log.cut())
    assert {1: problem} == batch.problems
    assert log.chain == list(batch.entry_h)


def test_the_largest_allowed_record_has_no_problem() -> None:
    """Every bound is inclusive."""
    use = Use(
        id="i" * 128,
        tenant="t" * 128,
        quantities=tuple((f"m{n:02}", UNITS_MAX) for n in range(16)),
        attributes=tuple((f"{n:0128}", "v" * 128) for n in range(16)),
        flags=15,
    )
    assert read_batch(log_of([use]).cut()).problems == {}


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": [0]},
        {"tenant": [0, 5]},
        {"tenant": [0, -1]},
        {"meter": [0, 1, 0, 9]},
        {"attribute_name": [0, 1, 0, 9]},
        {"attribute_value": [0, 1, 0, 9]},
        {"units": [1, 2, 3]},
        {"units": [1, 2, 3, 2**63]},
        {"quantity_count": [2, 1]},
        {"quantity_count": [2, 2, 0]},
        {"attribute_count": [4, 4]},
        {"event_time_us": [0]},
        {"event_time_us": [2**62, 2**62]},
        {"received_us": [2**62, 2**62]},
        {"flags": []},
        {"ids": ["only one"]},
    ],
    ids=str,
)
def test_columns_that_are_no_records_are_malformed(change: dict[str, Any]) -> None:
    """A batch that can't be read as entries is refused as a whole with BATCH_MALFORMED."""
    append = log_of([GOOD, GOOD]).cut()
    broken = replace(append, columns=replace(append.columns, **change))
    with pytest.raises(InvalidFieldError) as caught:
        read_batch(broken)
    assert caught.value.reason == "BATCH_MALFORMED"


@pytest.mark.parametrize(
    "holes",
    [
        [(0, 1)],
        [(2, 1)],
        [(2, 3), (3, 4)],
        [(4, 5), (2, 2)],
        [(5, 6)],
        [(2, 2**63)],
        [(2, 2**64 - 1)],
        [(2, 2**63 - 2)],
    ],
    ids=str,
)
def test_holes_that_fit_no_run_are_malformed(holes: list[tuple[int, int]]) -> None:
    """Holes must ascend, touch the records around them, and leave numbers for those."""
    append = replace(log_of([GOOD, GOOD, GOOD]).cut(), holes=[Hole(first, last, "CRC") for first, last in holes])
    with pytest.raises(InvalidFieldError) as caught:
        read_batch(append)
    assert caught.value.reason == "BATCH_MALFORMED"


@pytest.mark.parametrize(
    "change",
    [
        {"meters": ["m" * 100_000], "quantity_count": [3_000, 2], "meter": [0] * 3_002, "units": [1] * 3_002},
        {"attribute_values": ["v" * 1_000_000], "attribute_count": [300, 2], "attribute_name": [0] * 302}
        | {"attribute_value": [0] * 302},
        {"tenants": ["t" * 200_000_000], "tenant": [0, 0]},
        {"tenants": ["\ud800"], "tenant": [0, 0]},
    ],
    ids=["meters", "attributes", "tenant", "no UTF-8"],
)
def test_a_short_message_can_not_ask_for_any_amount_of_memory(change: dict[str, Any]) -> None:
    """Records that point into dictionaries again and again are refused before all of that is put together."""
    append = log_of([GOOD, GOOD]).cut()
    with pytest.raises(InvalidFieldError, match="can't be hashed") as caught:
        read_batch(replace(append, columns=replace(append.columns, **change)))
    assert caught.value.reason == "BATCH_MALFORMED"


def test_a_batch_has_bounds() -> None:
    """More records, holes or words about a hole than one transaction takes are refused."""
    append = log_of([GOOD]).cut()
    for broken in (
        replace(append, columns=encode([Use(id=str(n)) for n in range(10_001)])),
        replace(append, holes=[Hole(n, n, "CRC") for n in range(2, 1003)]),
        replace(append, holes=[Hole(2, 2, "x" * 129)]),
    ):
        with pytest.raises(InvalidFieldError) as caught:
            read_batch(broken)
        assert caught.value.reason == "BATCH_MALFORMED"
    with pytest.raises(InvalidFieldError) as caught:
        read_batch(replace(append, tenants_served=["t"] * 20_001))
    assert caught.value.reason == "FIELD_TOO_LONG"


NOW = 1_800_000_000_000_000


@pytest.mark.parametrize(
    ("event", "received", "reason"),
    [
        (NOW, NOW, None),
        (NOW - 35 * DAY_US, NOW, None),
        (NOW - 35 * DAY_US - 1, NOW, "TOO_LATE"),
        (NOW + 5 * MINUTE_US, NOW, None),
        (NOW + 5 * MINUTE_US + 1, NOW, "TOO_EARLY"),
        (NOW - 49 * DAY_US, NOW - 14 * DAY_US, None),
        (NOW - 14 * DAY_US - 1, NOW - 14 * DAY_US - 1, "DEDUP_EXPIRED"),
        (NOW + DAY_US, NOW + DAY_US, None),
        (NOW + DAY_US + 1, NOW + DAY_US + 1, "FIELD_OUT_OF_RANGE"),
    ],
)
def test_lateness_is_judged_at_receive_time(event: int, received: int, reason: str | None) -> None:
    """An outage of up to 14 days makes nothing late; bounds are inclusive; the quick look agrees."""
    problem = time_problem(event, received, NOW)
    assert reason == (problem.reason if problem else None)
    assert (reason is None) == times_fit([event], [received], NOW)


def test_one_tenants_poison_is_no_others_problem() -> None:
    """Unknown tenants, unknown meters and late records are named; every other record of the batch is not."""
    uses = [
        Use(id="fine", event_us=NOW, received_us=NOW),
        Use(id="stranger", tenant="nobody", event_us=NOW, received_us=NOW),
        Use(id="odd", quantities=(("requests", 1), ("unheard", 1)), event_us=NOW, received_us=NOW),
        Use(id="late", event_us=0, received_us=NOW),
        Use(id="negative", quantities=(("requests", -1),), event_us=NOW, received_us=NOW),
        Use(id="also-fine", event_us=NOW, received_us=NOW),
    ]
    batch = read_batch(log_of([*uses]).cut())
    known: dict[str, Any] = {"tenant_ids": {"acme": UUID(int=1)}, "meters": {"requests": REQUESTS}, "now_us": NOW}
    expected = {1: "TENANT_UNKNOWN", 2: "METER_UNKNOWN", 3: "TOO_LATE", 4: "FIELD_OUT_OF_RANGE"}
    for skip in range(len(uses)):
        found = {at: problem.reason for at, problem in judge(batch, skip=skip, **known).items()}
        assert {at: reason for at, reason in expected.items() if at >= skip} == found


@given(st.data())
def test_of_several_meters_the_strictest_says_how_late_and_early(data: st.DataObject) -> None:
    """A record is refused exactly where its event lies outside of what one of its meters allows."""
    spans = data.draw(st.fixed_dictionaries(dict.fromkeys("abc", SPANS)))
    names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)
    drawn = data.draw(st.lists(st.tuples(names, st.integers(-40, 10)), min_size=1, max_size=8))
    uses = [
        Use(
            id=f"u{place}",
            event_us=NOW + offset * MINUTE_US,
            received_us=NOW,
            quantities=tuple((name, 1) for name in meters),
        )
        for place, (meters, offset) in enumerate(drawn)
    ]
    log = Log(producer_id=PRODUCER)
    log.record(*uses)
    facts = {name: replace(REQUESTS, span=span) for name, span in spans.items()}
    found = judge(read_batch(log.cut()), skip=0, tenant_ids={"acme": UUID(int=1)}, meters=facts, now_us=NOW)
    expected = {}
    for place, (meters, offset) in enumerate(drawn):
        if any(-offset * MINUTE_US > spans[name].late_us for name in meters):
            expected[place] = "TOO_LATE"
        elif any(offset * MINUTE_US > spans[name].early_us for name in meters):
            expected[place] = "TOO_EARLY"
    assert expected == {place: problem.reason for place, problem in found.items()}


def test_a_refused_record_is_described_as_it_came() -> None:
    """Quarantine keeps what was sent, even twice the same name and bytes that text columns can't hold."""
    use = Use(id="a\0b", quantities=(("m", 1), ("m", 2)), attributes=(("x", "1"), ("x", "2")), event_us=5)
    described = describe_records(read_batch(log_of([GOOD, use]).cut()), [1])
    expected = (
        '{"attributes":[["x","1"],["x","2"]],"event_time_us":5,"flags":0,"id":"a\\u0000b",'
        '"quantities":[["m",1],["m",2]],"received_us":0,"tenant":"acme"}'
    )
    assert {1: expected.encode()} == described
