"""Price models: laws that hold for any prices and any usage, and every worked case."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.money import EXACT
from tollkeeper_ledger.domain.proration import prorate
from tollkeeper_ledger.domain.rating.blocks import BlockTier, begun, graduated_blocks, package
from tollkeeper_ledger.domain.rating.bounds import Bounds, bounded
from tollkeeper_ledger.domain.rating.case_fields import CaseError
from tollkeeper_ledger.domain.rating.cases import MODELS, rate_case
from tollkeeper_ledger.domain.rating.parts import Part, part, share_of, since, total
from tollkeeper_ledger.domain.rating.percentage import Percentage, percentage_of_events
from tollkeeper_ledger.domain.rating.progressive import progressive_invoices
from tollkeeper_ledger.domain.rating.tiers import Tier, check_tiers, graduated, volume
from tollkeeper_ledger.domain.shares import cut
from tollkeeper_ledger.domain.taxes import Taxable, coupon_shares, tax_shares

DATA = Path(__file__).parent / "data"
# Beside worked cases of price lists their edges, worked out by hand: bounds, free units, digits, caps, nothing at all.
CASES: list[dict[str, Any]] = [
    case for name in ("pricing.json", "pricing_edges.json") for case in json.loads((DATA / name).read_text())["cases"]
]

quantities = st.decimals(min_value=0, max_value=10**9, places=3)
prices = st.decimals(min_value=0, max_value=1_000, places=6)
_PERS = (1, 8, 1_000, 1_000_000, 2**40)
amounts_minor = st.integers(min_value=0, max_value=10**12)


@st.composite
def tier_lists(draw: st.DrawFn) -> tuple[Tier, ...]:
    """Draw tiers whose bounds rise."""
    bounds = sorted(draw(st.sets(st.integers(min_value=1, max_value=10**6), max_size=4)))
    ends: list[Decimal | None] = [*(Decimal(bound) for bound in bounds), None]
    return tuple(Tier(up_to=end, unit=draw(prices), flat=draw(prices)) for end in ends)


def add(*amounts: Decimal) -> Decimal:
    """Add exactly."""
    result = Decimal(0)
    for amount in amounts:
        result = EXACT.add(result, amount)
    return result


@given(st.integers(0, 2**63 - 1), st.decimals(0, 10**6, places=9), st.integers(1, 10**16) | st.sampled_from(_PERS))
def test_a_unit_for_itself_costs_its_share_of_the_price_for_many(units: int, price: Decimal, per: int) -> None:
    """What one unit costs, times the units, is the amount that dividing each amount gives; or it is not known."""
    of_one = share_of(price, per)
    divided = part("", Decimal(units), price, per=per).amount
    assert of_one is None or EXACT.multiply(Decimal(units), of_one) == divided
    assert (of_one is None) == (len(_digits(price, per)) > 40)


def _digits(price: Decimal, per: int) -> str:
    """Give the digits of a quotient, 41 where there are more."""
    ratio = Fraction(price) / per
    factor = 0
    while ratio.denominator != 1 and factor < 200:
        ratio, factor = ratio * 10, factor + 1
    return str(ratio.numerator) if ratio.denominator == 1 else "9" * 41


@given(st.decimals(-10, 10**9, places=6), st.decimals("0.001", 10**6, places=3))
def test_begun_blocks_are_counted_as_fractions_count_them(quantity: Decimal, size: Decimal) -> None:
    """A block is begun by the smallest share of it, and not by an end that it only touches."""
    assert max(-(-Fraction(quantity) // Fraction(size)), 0) == begun(quantity, size)


@pytest.mark.parametrize("case", [case for case in CASES if case["group"] != "divergence"], ids=lambda case: case["id"])
def test_every_worked_case_agrees(case: dict[str, Any]) -> None:
    """Each key that a case expects comes out with that value."""
    assert rate_case(case).differences == ()


def test_a_conversion_rounds_the_period_not_each_run() -> None:
    """Where a peer rounds each run on its own, splitting usage here changes nothing: 2,700 units are 3, not 4."""
    case = next(case for case in CASES if case["group"] == "divergence")
    assert rate_case(case).answer == {"amount": "10"}


@pytest.mark.parametrize("model", sorted({case["model"] for case in CASES}))
def test_a_case_without_expectations_answers_every_key(model: str) -> None:
    """What a case of the model may expect is answered without being asked for."""
    for case in (case for case in CASES if case["model"] == model):
        answer = rate_case({name: value for name, value in case.items() if name != "expect"}).answer
        assert set(case["expect"]) <= set(answer)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"params": {"unit": "1", "minimun": "5"}}, "params.minimun"),
        ({"params": {}}, "params.unit"),
        ({"params": {"unit": 0.1}}, "params.unit"),
        ({"params": {"unit": "1e3"}}, "params.unit"),
        ({"input": {"quantity": True}}, "input.quantity"),
        ({"input": []}, "input"),
        ({"model": "free"}, "model"),
    ],
)
def test_a_wrong_case_is_refused_with_its_field(change: dict[str, Any], field: str) -> None:
    """Nothing is guessed: a misspelt, missing, inexact or unknown field is named with a remedy."""
    case = {"id": "a", "model": "per_unit", "params": {"unit": "1"}, "input": {"quantity": "1"}} | change
    with pytest.raises(CaseError) as caught:
        rate_case(case)
    assert caught.value.case == "a"
    assert caught.value.remedy
    # The model's own parameters are read before anything else is looked at.
    assert (caught.value.problem if field == "model" else caught.value.field).startswith(
        "'free'" if field == "model" else field.rpartition(".")[0]
    )


@pytest.mark.parametrize(
    ("model", "params", "field"),
    [
        ("graduated", {"tiers": [{"up_to": "5", "unti": "1"}, {"unit": "1"}]}, "params.tiers[0].unti"),
        ("volume", {"tiers": [{"up_to": "5", "unit": "1"}, {"rate": "1"}]}, "params.tiers[1].rate"),
        ("graduated_percentage", {"tiers": [{"rate": "1"}]}, "params.tiers[0].rate"),
        ("graduated_blocks", {"tiers": [{"block_size": "1", "block_price": "1", "max": "2"}]}, "params.tiers[0].max"),
        ("graduated_blocks", {"tiers": [{"block_price": "1"}]}, "params.tiers[0].block_size"),
        ("stair_step", {"tiers": [{"up_to": "5"}, {"price": "1"}]}, "params.tiers[0]."),
        ("stair_step", {"tiers": [{"price": "1", "flat": "2"}]}, "params.tiers[0].flat"),
        ("stair_step", {"tiers": [{"up_to": "5", "price": "1"}]}, "params"),
        ("per_unit", {"unit": "1", "convert": {"op": "divide", "factor": "3", "rond": "ceil"}}, "params.convert.rond"),
        ("graduated", {"tiers": []}, "params"),
        ("graduated_blocks", {}, "params"),
        ("graduated_blocks", {"tiers": [{"block_size": "0", "block_price": "1"}]}, "params"),
        ("package", {"package_size": "0", "package_amount": "1"}, "params"),
        ("flat", {"amont": "1"}, "params.amount"),
    ],
)
def test_what_is_wrong_within_a_price_is_named(model: str, params: dict[str, Any], field: str) -> None:
    """A misspelt, missing or impossible field of a tier or conversion is refused with its place, never rated at 0."""
    with pytest.raises(CaseError) as caught:
        rate_case({"id": "a", "model": model, "params": params, "input": {"quantity": "3"}})
    assert caught.value.field.startswith(field)
    assert caught.value.case == "a"


BOUNDED = {
    "per_unit": {"unit": "0.7"},
    "package": {"package_size": "10", "package_amount": "1.5", "free_units": "5"},
    "graduated": {"tiers": [{"up_to": "10", "unit": "1", "flat": "3"}, {"up_to": None, "unit": "0.2"}]},
    "stair_step": {"tiers": [{"up_to": "10", "flat": "50"}, {"up_to": "40", "flat": "20"}, {"flat": "90"}]},
}
"""Prices that rise with use, and one that falls on the way."""


@given(
    model=st.sampled_from(sorted(BOUNDED)),
    bounds=st.fixed_dictionaries(
        {},
        optional={
            "minimum": st.integers(0, 20).map(str),
            "maximum": st.integers(20, 60).map(str),
            "discount_percent": st.sampled_from(["0", "10", "33.3", "100"]),
        },
    ),
    runs=st.lists(st.integers(-30, 60), min_size=1, max_size=5),
    is_told=st.booleans(),
)
def test_cutting_a_bounded_price_into_runs_changes_nothing(
    model: str, bounds: dict[str, str], runs: list[int], *, is_told: bool
) -> None:
    """Whatever was at its maximum before, fell since, or was taken back: all runs together bill what one would.

    So they do where a run is told what those before it billed.
    """
    params = BOUNDED[model] | bounds
    used, billed = 0, Decimal(0)
    for place, wanted in enumerate(runs, start=1):
        # A fee that is due at no use at all is billed by whoever comes first: some use there is.
        quantity = max(wanted, 1 - used)
        given_ = {"previous_quantity": str(used), "quantity": str(quantity)}
        given_["position"] = "last_in_period" if place == len(runs) else "mid_period"
        if is_told:
            given_["previously_billed"] = f"{billed:f}"
        case = {"id": "run", "model": model, "params": params, "input": given_}
        billed += Decimal(rate_case(case).answer["amount"])
        used += quantity
    at_once = {"id": "once", "model": model, "params": params, "input": {"quantity": str(used)}}
    assert billed == Decimal(rate_case(at_once).answer["amount"])


def test_the_steps_of_an_amount_add_up_to_it() -> None:
    """Parts, discount, maximum and minimum are told one by one."""
    params = {"unit": "2", "discount_percent": "10", "maximum": "100"}
    case: dict[str, Any] = {"id": "a", "model": "per_unit", "params": params, "input": {"quantity": "60"}}
    assert rate_case(case).answer["steps"] == ["use: 60 x 2 = 120", "discount of 10 %: -12", "maximum 100: -8"]
    params = {"tiers": [{"up_to": "10", "unit": "1"}, {"up_to": None, "unit": "2"}], "minimum": "25"}
    case |= {"model": "graduated", "params": params, "input": {"quantity": "13"}}
    assert rate_case(case).answer["steps"] == ["tier 1: 10 x 1 = 10", "tier 2: 3 x 2 = 6", "minimum 25: 9"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"params": {"unit": "1", "discount_percent": "101"}}, "0 to 100"),
        ({"params": {"unit": "1", "discount_percent": "-1"}}, "0 to 100"),
        ({"params": {"unit": "1", "minimum": "3", "maximum": "2"}}, "must not be above"),
        (
            {"model": "coupon_then_tax", "params": {"coupon_cents": "0"}, "input": {"fees": [["10.9", "0"]]}},
            "whole minor units",
        ),
    ],
)
def test_terms_that_no_catalogue_may_have_are_refused(change: dict[str, Any], problem: str) -> None:
    """A worked case is held to what `apply` holds a plan to."""
    case = {"id": "a", "model": "per_unit", "params": {"unit": "1"}, "input": {"quantity": "1"}} | change
    with pytest.raises(CaseError, match=problem):
        rate_case(case)


@pytest.mark.parametrize(
    ("model", "params", "given_"),
    [
        ("weighted_sum", {"period_days": "0"}, {"levels": [["1", "1"]]}),
        ("prorated_flat", {"flat_cents": "100"}, {"days": "1", "period_days": "0"}),
    ],
)
def test_what_cannot_be_calculated_is_refused(model: str, params: dict[str, Any], given_: dict[str, Any]) -> None:
    """A division by zero is a refused case with its id: it never stops the cases after it."""
    with pytest.raises(CaseError) as caught:
        rate_case({"id": "a", "model": model, "params": params, "input": given_})
    assert caught.value.case == "a"


@given(tiers=tier_lists(), quantity=st.integers(min_value=0, max_value=200))
def test_tier_by_tier_is_unit_by_unit(tiers: tuple[Tier, ...], quantity: int) -> None:
    """Graduated parts cost what each single unit costs in its tier, plus the flat fees of the tiers entered."""
    small = tuple(
        Tier(up_to=None if tier.up_to is None else number * Decimal(37), unit=tier.unit, flat=tier.flat)
        for number, tier in enumerate(tiers, start=1)
    )
    expected = small[0].flat
    entered = 0
    for unit in range(1, quantity + 1):
        place = next(n for n, tier in enumerate(small) if tier.up_to is None or unit <= tier.up_to)
        if place > entered:
            entered = place
            expected = add(expected, small[place].flat)
        expected = add(expected, small[place].unit)
    assert expected == total(graduated(Decimal(quantity), small))


@given(tiers=tier_lists(), runs=st.lists(quantities, min_size=1, max_size=6))
def test_cutting_a_period_into_runs_never_changes_its_price(tiers: tuple[Tier, ...], runs: list[Decimal]) -> None:
    """The runs' parts add up to the whole period's, for tiers, packages and blocks, reversals included."""
    blocks = (BlockTier(Decimal(100), Decimal(10), Decimal(1)), BlockTier(Decimal(1_000), None, Decimal(3)))
    pricings = [
        lambda quantity: graduated(quantity, tiers),
        lambda quantity: volume(quantity, tiers),
        lambda quantity: package(quantity, size=Decimal(7), price=Decimal("0.3"), free_units=Decimal(5)),
        lambda quantity: graduated_blocks(quantity, blocks),
    ]
    for pricing in pricings:
        used, billed, before = Decimal(0), Decimal(0), ()
        for run in runs:
            used = add(used, run)
            now: tuple[Part, ...] = pricing(used)
            billed = add(billed, total(since(now, before)))
            before = now
        assert total(pricing(used)) == billed


@given(tiers=tier_lists(), quantity=quantities)
def test_volume_prices_all_units_alike(tiers: tuple[Tier, ...], quantity: Decimal) -> None:
    """One tier's price holds for the whole quantity: the first whose inclusive bound reaches it."""
    reached = next(tier for tier in tiers if tier.up_to is None or quantity <= tier.up_to)
    assert add(EXACT.multiply(quantity, reached.unit), reached.flat) == total(volume(quantity, tiers))


@given(
    gross=st.lists(st.decimals(min_value=0, max_value=10**6, places=2), min_size=1, max_size=5),
    minimum=st.decimals(min_value=0, max_value=10**6, places=2),
    room=st.decimals(min_value=0, max_value=10**6, places=2),
)
def test_bounds_hold_over_any_runs(gross: list[Decimal], minimum: Decimal, room: Decimal) -> None:
    """However a period is cut, it costs at least the minimum in the end and never more than the maximum."""
    bounds = Bounds(minimum=minimum, maximum=add(minimum, room))
    billed = Decimal(0)
    for number, amount in enumerate(gross, start=1):
        result = bounded(amount, bounds, billed_before=billed, is_period_end=number == len(gross))
        assert result.discount >= 0
        billed = add(billed, result.amount)
        assert billed <= add(minimum, room)
    assert min(max(add(*gross), minimum), add(minimum, room)) == billed


@given(values=st.lists(st.decimals(min_value=0, max_value=10**4, places=2), max_size=8), free=st.integers(0, 4))
def test_free_events_come_first_and_bounds_hold_per_event(values: list[Decimal], free: int) -> None:
    """Each event after the free ones costs rate and fixed part within its bounds, whatever the others cost."""
    price = Percentage(
        rate_percent=Decimal("2.9"),
        fixed_per_event=Decimal("0.3"),
        free_events=free,
        per_event_min=Decimal(1),
        per_event_max=Decimal(12),
    )
    expected = [
        min(max(add(EXACT.multiply(value, Decimal("0.029")), Decimal("0.3")), Decimal(1)), Decimal(12))
        for value in values[free:]
    ]
    assert expected == [part.amount for part in percentage_of_events(price, values)]


def test_the_event_that_exceeds_the_free_total_is_charged_beyond_it() -> None:
    """Of 50 free, 10 go to the first event and 40 to the second, which is charged for its other 40."""
    price = Percentage(rate_percent=Decimal(10), free_total=Decimal(50))
    parts = percentage_of_events(price, [Decimal(10), Decimal(80), Decimal(5)])
    assert [("event 2", Decimal(4)), ("event 3", Decimal("0.5"))] == [(part.name, part.amount) for part in parts]


@given(amount=amounts_minor, weights=st.lists(st.integers(0, 10**9), min_size=1, max_size=12))
def test_shares_add_up_and_are_off_by_less_than_one(amount: int, weights: list[int]) -> None:
    """No minor unit appears or vanishes, and no share differs from its exact quota by a whole one."""
    shares = cut(amount, weights)
    assert amount == sum(shares)
    whole = sum(weights)
    if whole:
        assert all(abs(share * whole - amount * weight) < whole for share, weight in zip(shares, weights, strict=True))


@given(
    lines=st.lists(st.tuples(st.integers(0, 10**7), st.sampled_from(["0", "7.7", "19", "20"])), min_size=1, max_size=9)
)
def test_taxes_of_a_rate_add_up_to_the_tax_on_their_sum(lines: list[tuple[int, str]]) -> None:
    """Per rate, the lines' taxes are the tax on the lines' sum, rounded once."""
    taxable = [Taxable(amount_minor=amount, tax_percent=Decimal(rate)) for amount, rate in lines]
    taxes = tax_shares(taxable)
    for rate in {line.tax_percent for line in taxable}:
        sum_minor = sum(line.amount_minor for line in taxable if line.tax_percent == rate)
        exact_tax = EXACT.multiply(Decimal(sum_minor), EXACT.divide(rate, Decimal(100)))
        charged = sum(tax for tax, line in zip(taxes, taxable, strict=True) if line.tax_percent == rate)
        assert abs(exact_tax - charged) <= Decimal("0.5")


def test_a_coupon_is_never_worth_more_than_what_it_is_spread_over() -> None:
    """A coupon above the sum of the lines takes each line to zero."""
    lines = [Taxable(amount_minor=amount, tax_percent=Decimal(20)) for amount in (300, 0, 200)]
    assert coupon_shares(10_000, lines) == (300, 0, 200)


@given(amount=amounts_minor, whole=st.integers(1, 366), part=st.integers(0, 366))
def test_a_prorated_side_is_rounded_half_up(amount: int, whole: int, part: int) -> None:
    """The share differs from the exact one by at most half a minor unit."""
    assert abs(2 * (prorate(amount, part=part, whole=whole) * whole - amount * part)) <= whole


@given(steps=st.lists(st.integers(0, 10**6), max_size=10), threshold=st.integers(0, 5_000))
def test_progressive_invoices_reach_the_threshold_and_never_exceed_usage(steps: list[int], threshold: int) -> None:
    """Each invoice within the period is at least the threshold, and what is left is below it."""
    bill = progressive_invoices(
        unit_minor=Decimal("0.02"), threshold_minor=threshold, steps=[Decimal(step) for step in steps]
    )
    assert all(invoice >= threshold > 0 for invoice in bill.invoices_minor)
    assert bill.usage_minor - bill.invoiced_minor >= 0
    assert threshold == 0 or bill.usage_minor - bill.invoiced_minor < threshold


@pytest.mark.parametrize(
    "tiers",
    [
        (),
        (Tier(Decimal(5), Decimal(1), Decimal(0)),),
        (Tier(None, Decimal(1), Decimal(0)), Tier(None, Decimal(1), Decimal(0))),
        (
            Tier(Decimal(5), Decimal(1), Decimal(0)),
            Tier(Decimal(5), Decimal(1), Decimal(0)),
            Tier(None, Decimal(1), Decimal(0)),
        ),
    ],
)
def test_tiers_that_overlap_or_end_are_refused(tiers: tuple[Tier, ...]) -> None:
    """Every quantity has exactly one tier, or the tiers are no price."""
    with pytest.raises(ValueError, match="tier"):
        check_tiers(tiers)


def test_every_model_has_a_worked_case_or_follows_from_one() -> None:
    """No model is there that nobody has worked out: each, or the price behind its re-rating, has a case."""
    worked = {case["model"] for case in CASES}
    assert {name for name in MODELS if name.removeprefix("rerate_") not in worked and name not in worked} == set()
