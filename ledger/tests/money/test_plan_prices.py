"""Prices as a catalogue declares them: from YAML over the plan's bytes to the lines of an invoice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.catalogue.canonical import canonical_json, plan_to_json
from tollkeeper_ledger.domain.rating.charges import Charge, LateUsage, SubscriptionFacts, Total, Usage
from tollkeeper_ledger.domain.rating.engine import is_free, rate
from tollkeeper_ledger.services.catalogue import read_catalogue

if TYPE_CHECKING:
    import random

START = datetime(2026, 10, 1, tzinfo=UTC)
FACTS = SubscriptionFacts(period_start=START, period_end=START + timedelta(days=31))


def definition(price: str) -> bytes:
    """Give the bytes of a plan with one price of messages."""
    catalogue = read_catalogue(
        f"""
version: 1
seller: {{id: s, name: Seller, currency: USD, time_zone: UTC}}
meters: [{{name: messages, unit: messages, attributes: [channel], dimensions: [channel]}}]
plans:
  - name: p
    billing_interval: month
    prices: [{{meter: messages, {price}}}]
""",
        source_name="test",
    )
    return canonical_json(plan_to_json(catalogue.plans[0]))


def lines_of(price: str, units: int) -> tuple[Charge, ...]:
    """Rate one month of messages."""
    totals = (Total(meter="messages", unit="messages", scale=0, units=units),) if units else ()
    return rate(definition(price), Usage(totals=totals), FACTS, engine_version=1).lines


TIERS = "tiers: [{up_to: 1000, unit_price: '0.01', flat: 2}, {up_to: 5000, unit_price: '0.008'}, {unit_price: '0.005'}]"

STAIRS = "tiers: [{up_to: 500, price: 5}, {up_to: 2000, price: 15}, {price: 40}]"

# A percent of the first 1,000.00 and half a percent beyond.
SHARES = "tiers: [{up_to: 1000, rate_percent: 1}, {rate_percent: '0.5'}]"

BLOCKS = "tiers: [{block_size: 100, max_blocks: 10, block_price: 1}, {block_size: 1000, block_price: 1}]"


@pytest.mark.parametrize(
    ("price", "units", "expected_minor"),
    [
        ("model: percentage, rate_percent: '2.9', convert: {divide_by: 100}", 10_000, 290),
        ("model: dynamic, convert: {divide_by: 100}", 1_234, 1_234),
        ("model: dynamic, multiplier: '1.5', convert: {divide_by: 100}", 1_000, 1_500),
        ("model: flat, amount: '5.00'", 7, 500),
        ("model: flat, amount: '5.00', included: 7", 7, 0),
        (f"model: stair_step, {STAIRS}", 500, 500),
        (f"model: stair_step, {STAIRS}", 501, 1_500),
        (f"model: stair_step, {STAIRS}", 2_001, 4_000),
        (f"model: graduated_percentage, {SHARES}, convert: {{divide_by: 100}}", 150_000, 1_250),
        ("unit_price: '0.01'", 12_345, 12_345),
        ("unit_price: '0.01', included: 10000", 12_345, 2_345),
        ("unit_price: '0.50', per: 1000, included: 100000", 100_001, 0),
        (f"model: graduated, {TIERS}", 6_000, 200 + 1_000 + 3_200 + 500),
        (f"model: graduated, {TIERS}", 1_000, 1_200),
        (f"model: volume, {TIERS}", 6_000, 3_000),
        (f"model: volume, {TIERS}", 1_000, 1_200),
        (f"model: graduated, {TIERS}, included: 1000", 2_000, 1_200),
        (f"model: graduated, {TIERS}, maximum: '30.00'", 6_000, 3_000),
        (f"model: graduated, {TIERS}, discount_percent: 10", 6_000, 4_410),
        ("model: package, size: 1000, price: '0.50', included: 100000", 100_001, 50),
        ("model: package, size: 1000, price: '0.50', included: 100000", 150_000, 2_500),
        ("unit_price: '0.50', convert: {divide_by: 1000, round: ceil}", 1_001, 100),
        ("unit_price: '0.50', convert: {divide_by: 1000}", 1_001, 50),
        (f"model: graduated_blocks, {BLOCKS}", 5_325, 1_500),
        ("model: graduated, per: 3, tiers: [{up_to: 1, unit_price: '0.01'}, {unit_price: '0.005'}]", 2, 1),
    ],
)  # fmt: skip
def test_a_declared_price_costs_what_its_model_says(price: str, units: int, expected_minor: int) -> None:
    """Each served model, with included units, conversion, discount and maximum, is rated to the cent."""
    assert expected_minor == sum(line.amount_minor for line in lines_of(price, units))


def test_a_line_of_tiers_carries_them() -> None:
    """The line's parts add up to its amount and its explanation names each."""
    (line,) = lines_of(f"model: graduated, {TIERS}", 6_000)
    assert [
        ("tier 1", Decimal(1000)),
        ("tier 1 flat", Decimal(1)),
        ("tier 2", Decimal(4000)),
        ("tier 3", Decimal(1000)),
    ] == [(part.name, part.quantity) for part in line.parts]
    assert Decimal(line.amount_minor) == sum((part.amount for part in line.parts), Decimal(0)) * 100
    assert "tier 2: 4,000 x 0.008 USD = 32 USD" in line.explanation
    assert (line.unit_price, line.explanation[-1]) == ("", "rounded half up: 49.00 USD")


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        (f"model: graduated, {TIERS}", [200]),
        (f"model: volume, {TIERS}", [200]),
        (f"model: stair_step, {STAIRS}", [500]),
        ("model: flat, amount: 5", []),
        ("model: percentage, rate_percent: 1", []),
        ("unit_price: 1, minimum: 5", [500]),
        ("unit_price: 1", []),
        ("model: package, size: 10, price: 1", []),
    ],
)
def test_without_usage_only_flat_fees_and_minimums_make_a_line(price: str, expected: list[int]) -> None:
    """A first tier's flat fee and a minimum are owed at zero use; units and packages make no line."""
    assert expected == [line.amount_minor for line in lines_of(price, 0)]


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        ("unit_price: 0", True),
        ("unit_price: '0.000001'", False),
        ("unit_price: 0, minimum: 1", False),
        ("model: graduated, tiers: [{up_to: 5}, {}]", True),
        ("model: graduated, tiers: [{up_to: 5}, {flat: 1}]", False),
        ("model: package, size: 1, price: 1", False),
        ("model: percentage, rate_percent: 0", True),
        ("model: percentage, rate_percent: 0, fixed_per_event: 1", False),
        ("model: dynamic", False),
        ("model: flat, amount: 1", False),
        (f"model: stair_step, {STAIRS}", False),
    ],
)
def test_a_plan_is_free_where_nothing_can_be_charged(price: str, expected: bool) -> None:  # noqa: FBT001
    """A plan is free only if no amount in it is above zero."""
    assert expected is is_free(definition(price))


def test_equal_meaning_gives_equal_bytes() -> None:
    """How an amount is written does not make another plan version."""
    assert definition("unit_price: 2.5") == definition("unit_price: '2.50', per: 1, included: 0, model: per_unit")
    assert definition(f"model: graduated, {TIERS}") == definition(f"{TIERS}, model: graduated, per: 1")


PER_RECORD = (
    "model: percentage, rate_percent: '2.9', convert: {divide_by: 100}, fixed_per_event: '0.30', per_event_max: '5.00'"
)


def total(units: int, channel: str = "", events: tuple[tuple[int, int], ...] = ()) -> Total:
    """Give a sum of messages, of one channel where that is named."""
    attributes = (("channel", channel),) if channel else ()
    return Total(meter="messages", unit="messages", scale=0, units=units, attributes=attributes, events=events)


def test_a_price_per_record_takes_every_record() -> None:
    """2.9 % and 0.30 of 100.00 are 3.20 twice; of 500.00 they are 14.80, at most 5.00: 11.40 in all."""
    usage = Usage(totals=(total(70_000, events=((10_000, 2), (50_000, 1))),))
    (line,) = rate(definition(PER_RECORD), usage, FACTS, engine_version=1).lines
    assert line.amount_minor == 1_140
    assert "3 of 3 records" in " ".join(line.explanation)


def test_records_that_are_taken_back_late_cost_nothing_in_the_end() -> None:
    """A late record is priced as one more, a late void takes its own price back."""
    bytes_ = definition(PER_RECORD)
    spans = {"period_start": FACTS.period_start, "period_end": FACTS.period_end}
    before = (total(10_000, events=((10_000, 1),)),)
    for added, expected in (
        (total(50_000, events=((50_000, 1),)), 500),
        (total(-10_000, events=((10_000, -1),)), -320),
    ):
        late = LateUsage(definition=bytes_, before=before, added=(added,), **spans)
        charges = rate(bytes_, Usage(totals=(), late=(late,)), FACTS, engine_version=1)
        assert expected == charges.subtotal_minor


def test_prices_by_attribute_value_go_to_the_first_that_matches() -> None:
    """Texts have their price; of the rest each channel is a line of its own, with its own tiers, in order of name."""
    bytes_ = definition(
        "match: [{attribute: channel, exact: sms}], unit_price: '0.05'}, "
        "{meter: messages, group_by: [channel], model: graduated, tiers: [{up_to: 10, unit_price: '0.10'}, {}]"
    )
    totals = (total(7, "sms"), total(20, "push"), total(4, "mail"))
    lines = rate(bytes_, Usage(totals=totals), FACTS, engine_version=1).lines
    assert [(line.description, line.amount_minor) for line in lines] == [
        ("messages, channel sms", 35),
        ("messages, channel mail", 40),
        ("messages, channel push", 100),
    ]
    assert list(lines[0].dimensions) == [("channel", "sms")]


MODELS = (
    "unit_price: '0.013'",
    f"model: graduated, {TIERS}",
    f"model: volume, {TIERS}",
    f"model: stair_step, {STAIRS}",
    "model: package, size: 7, price: '0.33', included: 10",
    f"model: graduated_blocks, {BLOCKS}",
    "model: percentage, rate_percent: '2.9', convert: {divide_by: 100}",
    f"model: graduated_percentage, {SHARES}",
    "model: dynamic, multiplier: '0.07'",
    "model: flat, amount: 3, maximum: 2",
    PER_RECORD,
    "unit_price: '0.01', group_by: [channel]",
)
records = st.lists(st.tuples(st.integers(0, 5_000), st.sampled_from(["sms", "push"])), max_size=12)


def summed(price: str, used: list[tuple[int, str]]) -> tuple[Total, ...]:
    """Sum records as the price needs them: with single records, by channel, or neither."""
    if price == PER_RECORD:
        return (total(sum(units for units, _ in used), events=tuple((units, 1) for units, _ in used)),)
    channels = ("sms", "push") if "group_by" in price else ("",)
    return tuple(
        total(sum(units for units, channel in used if not wanted or channel == wanted), wanted) for wanted in channels
    )


@given(st.sampled_from(MODELS), records, st.integers(0, 12))
def test_usage_that_comes_late_costs_what_it_would_have(price: str, used: list[tuple[int, str]], on_time: int) -> None:
    """Whatever the model, what is billed in time and late together is what all of it costs at once."""
    bytes_ = definition(price)
    first, second = summed(price, used[:on_time]), summed(price, used[on_time:])
    late = LateUsage(
        definition=bytes_,
        period_start=FACTS.period_start,
        period_end=FACTS.period_end,
        before=first,
        added=tuple(one for one in second if one.units),
    )
    at_once = rate(bytes_, Usage(totals=summed(price, used)), FACTS, engine_version=1).subtotal_minor
    in_time = rate(bytes_, Usage(totals=first), FACTS, engine_version=1).subtotal_minor
    after = rate(bytes_, Usage(totals=(), late=(late,)), FACTS, engine_version=1)
    assert at_once - in_time == sum(line.amount_minor for line in after.lines if line.late)


ANY_ORDER = tuple(model for model in MODELS if model != PER_RECORD)


@given(st.sampled_from(ANY_ORDER), records.filter(bool), st.randoms(use_true_random=False))
def test_the_order_of_sums_never_matters(price: str, used: list[tuple[int, str]], random: random.Random) -> None:
    """Each record as a sum of its own, in any order, costs line by line what their sum costs."""
    apart = [total(units, channel if "group_by" in price else "") for units, channel in used]
    expected = rate(definition(price), Usage(totals=summed(price, used)), FACTS, engine_version=1)
    random.shuffle(apart)
    assert expected == rate(definition(price), Usage(totals=tuple(apart)), FACTS, engine_version=1)
