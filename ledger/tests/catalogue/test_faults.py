"""Every fault of a catalogue is named by line, field, bound and remedy; all of them at once; nothing half read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.catalogue.faults import FAULTS_MAX, Faults
from tollkeeper_ledger.services.catalogue import CatalogueInvalidError, read_catalogue

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.catalogue.faults import Fault

HEAD = "version: 1\nseller: {id: s, name: Seller, currency: USD}\nmeters:\n- {name: tokens, unit: tokens}\n"


def faults_of(yaml: str) -> tuple[Fault, ...]:
    """Give the faults of a catalogue that must have some."""
    with pytest.raises(CatalogueInvalidError) as caught:
        read_catalogue(yaml, source_name="test.yaml")
    return caught.value.faults


def tiers(text: str) -> str:
    """Give a catalogue whose plan has one graduated price with these tiers."""
    return plan(f"prices: [{{meter: tokens, model: graduated, tiers: [{text}]}}]")


def limit(fields: str) -> str:
    """Give a catalogue whose only limit has these fields, on line 8."""
    return HEAD + "plans:\n- name: p\n  billing_interval: month\n  limits: [{" + fields + "}]\n"


def plan(fields: str) -> str:
    """Give a catalogue whose only plan has these fields, on line 6."""
    return HEAD + "plans:\n- {name: p, billing_interval: month, " + fields + "}\n"


def window(fields: str) -> str:
    """Give a catalogue whose only limit, on line 6, has this window."""
    return plan(f"limits: [{{name: l, meter: tokens, kind: window, amount: 1, window: {{{fields}}}}}]")


def tenant(fields: str) -> str:
    """Give a catalogue whose only tenant has these fields, on line 6."""
    return HEAD + "tenants:\n- {id: t, " + fields + "}\n"


WINDOW = "name: l, meter: tokens, kind: window, window: day"
BUCKET = "name: l, meter: tokens, kind: rate, refill: minute"

TABLE = [
    ("", 1, "yaml", "is empty"),
    ("version: [", 1, "yaml", "is not YAML"),
    ("a: &x 1\nb: *x", 1, "yaml", "uses anchors"),
    ("a: !!python/name:os.system x", 1, "yaml", "uses tags"),
    ("version: 1\n---\nversion: 1", 2, "yaml", "has several documents"),
    ("\x00", 1, "yaml", "is not YAML"),
    ("[" * 2000, 1, "yaml", "is nested too deep"),
    ("? [1]\n: 2", 1, "yaml", "has a field name that is not a single value"),
    ("x: '" + "a" * 600_000 + "'", 1, "yaml", "is too long"),
    ("- 1", 1, "", "is not a table"),
    ("plans: []", 1, "version", "is missing"),
    ("version: 2", 1, "version", "is out of range"),
    ("version: 1\nversion: 1", 2, "version", "stands twice"),
    ("version: 1\nmetres: []", 2, "metres", "is not a field here"),
    ("version: 1\nmeters: {}", 2, "meters", "is not a list"),
    ("version: 1\ntenants: []\ncustomers: []", 3, "tenants", "stands twice"),
    ("version: 1\nmeters: [3]", 2, "meters[0]", "is not a table"),
    ("version: 1\nmeters: [{name: a b, unit: x}]", 2, "meters[0].name", "is not a name"),
    ("version: 1\nmeters: [{unit: x}]", 2, "meters[0].name", "is missing"),
    ("version: 1\nmeters: [{name: a, unit: ''}]", 2, "meters[0].unit", "is empty"),
    ("version: 1\nmeters: [{name: a, unit: x, scale: 1.5}]", 2, "meters[0].scale", "is not a whole number"),
    ("version: 1\nmeters: [{name: a, unit: x, scale: 10}]", 2, "meters[0].scale", "is out of range"),
    ("version: 1\nmeters: [{name: a, unit: x, dimensions: [u]}]", 2, "meters[0].dimensions", "not declared"),
    (
        "version: 1\nmeters: [{name: a, unit: x, attributes: [q, r, s, t, u], dimensions: [q, r, s, t, u]}]",
        2,
        "meters[0].dimensions",
        "has too many entries",
    ),
    ("version: 1\nmeters: [{name: a, unit: x, aggregation: summ}]", 2, "meters[0].aggregation", "is not known"),
    ("version: 1\nmeters: [{name: a, unit: x, aggregation: unique}]", 2, "meters[0].value_attribute", "is missing"),
    (
        "version: 1\nmeters: [{name: a, unit: x, aggregation: unique, value_attribute: u}]",
        2,
        "meters[0].value_attribute",
        "not declared",
    ),
    (
        "version: 1\nmeters:\n- {name: a, unit: x, aggregation: max, cost_price: {amount: '1', currency: USD}}",
        3,
        "meters[0].cost_price",
        "does not add up",
    ),
    (
        "version: 1\nmeters:\n- {name: a, unit: x, cost_price: {amount: '1'}}",
        3,
        "meters[0].cost_price.currency",
        "is missing",
    ),
    (
        "version: 1\nmeters:\n- {name: a, unit: x, cost_price: {amount: '-1', currency: USD}}",
        3,
        "meters[0].cost_price.amount",
        "is negative",
    ),
    (
        "version: 1\nmeters:\n- {name: a, unit: x, cost_price: {amount: '1', currency: USD, per: 0}}",
        3,
        "meters[0].cost_price.per",
        "out of range",
    ),
    ("version: 1\nmeters: [{name: a, unit: x, late_max_s: 3024001}]", 2, "meters[0].late_max_s", "out of range"),
    ("version: 1\nmeters: [{name: a, unit: x, early_max_s: -1}]", 2, "meters[0].early_max_s", "out of range"),
    ("version: 1\nmeters: [{name: a, unit: x, value_attribute: u}]", 2, "meters[0].value_attribute", "unique only"),
    ("version: 1\nmeters: [{name: a, unit: x, pseudonymise: [u]}]", 2, "meters[0].pseudonymise", "not declared"),
    (
        (
            "version: 1\nmeters:\n- {name: a, unit: x, attributes: [u], dimensions: [u]}\n"
            "- {name: b, unit: x, attributes: [u], pseudonymise: [u]}"
        ),
        3,
        "meters[0].dimensions",
        "another meter hides",
    ),
    (
        (
            "version: 1\nmeters:\n- {name: a, unit: x, aggregation: unique, value_attribute: u, attributes: [u]}\n"
            "- {name: b, unit: x, attributes: [u], pseudonymise: [u]}"
        ),
        3,
        "meters[0].value_attribute",
        "another meter hides",
    ),
    ("version: 1\nmeters: [{name: a, unit: x, attributes: [u, u]}]", 2, "meters[0].attributes", "same twice"),
    ("version: 1\nmeters:\n- {name: a, unit: x}\n- {name: a, unit: x}", 4, "meters[1].name", "stands twice"),
    ('version: 1\nseller: {id: s, name: "a\\u202eb", currency: USD}', 2, "seller.name", "control or direction"),
    ("version: 1\nseller: {id: s, name: S, currency: usd}", 2, "seller.currency", "is not a currency"),
    ("version: 1\nseller: {id: s, name: S, currency: USD, time_zone: Mars}", 2, "seller.time_zone", "not a time zone"),
    (
        "version: 1\nseller: {id: s, name: S, currency: USD, time_zone: ../UTC}",
        2,
        "seller.time_zone",
        "not a time zone",
    ),
    (
        "version: 1\nseller: {id: s, name: S, currency: USD, invoice_prefix: a/b}",
        2,
        "seller.invoice_prefix",
        "malformed",
    ),
    (window("unit: week, anchor: someday"), 6, "plans[0].limits[0].window.anchor", "is not a day"),
    (window("unit: week, anchor: 1969-12-31"), 6, "plans[0].limits[0].window.anchor", "is out of range"),
    (
        window("unit: week, anchor: 2026-01-04, alignment: rolling"),
        6,
        "plans[0].limits[0].window.anchor",
        "belongs to calendar windows only",
    ),
    (window("unit: billing_period, anchor: 2026-01-04"), 6, "plans[0].limits[0].window.unit", "always one period"),
    (plan("prices: [{meter: tokens, unit_price: 1e3}]"), 6, "plans[0].prices[0].unit_price", "is not a decimal"),
    (plan("prices: [{meter: tokens, unit_price: -1}]"), 6, "plans[0].prices[0].unit_price", "is negative"),
    (plan("prices: [{meter: tokens, unit_price: .nan}]"), 6, "plans[0].prices[0].unit_price", "is not a decimal"),
    (plan("prices: [{meter: tokens}]"), 6, "plans[0].prices[0].unit_price", "is missing"),
    (plan("prices: [{meter: tokens, unit_price: 1, per: 0}]"), 6, "plans[0].prices[0].per", "is out of range"),
    (plan("prices: [{meter: tokens, model: auction}]"), 6, "plans[0].prices[0].model", "is not known"),
    (plan("prices: [{meter: tokens, model: percentage}]"), 6, "plans[0].prices[0].rate_percent", "is missing"),
    (
        plan("prices: [{meter: tokens, model: percentage, rate_percent: 1, per_event_min: 2, per_event_max: 1}]"),
        6,
        "plans[0].prices[0].per_event_min",
        "is above per_event_max",
    ),
    (
        plan("prices: [{meter: tokens, model: percentage, rate_percent: 1, fixed_per_event: 2, included: 1}]"),
        6,
        "plans[0].prices[0].included",
        "does not go with",
    ),
    (
        plan("prices: [{meter: tokens, model: stair_step, tiers: [{up_to: 5, price: 1}, {up_to: 5, price: 2}, {}]}]"),
        6,
        "plans[0].prices[0].tiers[1].up_to",
        "overlaps the tier before",
    ),
    (plan("prices: [{meter: tokens, unit_price: {EUR: 1}}]"), 6, "plans[0].prices[0].unit_price", "no amount in USD"),
    (
        plan("prices: [{meter: tokens, unit_price: 1, match: [{attribute: m, exact: a}, {attribute: m, exact: b}]}]"),
        6,
        "plans[0].prices[0].match[1].attribute",
        "stands twice",
    ),
    (plan("trial_days: 1001"), 6, "plans[0].trial_days", "is out of range"),
    (plan("trial_days: 7, trial: {days: 7}"), 6, "plans[0].trial_days", "stands beside trial"),
    (plan("trial: {payment_method: at_end}"), 6, "plans[0].trial.days", "is missing"),
    (plan("trial: {days: 7, otherwise: pause}"), 6, "plans[0].trial.otherwise", "needs a payment_method"),
    (plan("trial: {days: 7, payment_method: at_end, otherwise: fallback}"), 6, "plans[0].trial.fallback_plan", "goes"),
    (plan("trial: {days: 7, payment_method: at_end, fallback_plan: p}"), 6, "plans[0].trial.fallback_plan", "goes"),
    (plan("trial: {days: 7, notice_days: 31}"), 6, "plans[0].trial.notice_days", "is out of range"),
    (plan("trial: {days: 7, payment_method: card}"), 6, "plans[0].trial.payment_method", "is not"),
    (plan("currencies: [USD, EUX]"), 6, "plans[0].currencies", "is not a currency"),
    (plan("prices: [{meter: tokens, unit_price: 1, size: 2}]"), 6, "plans[0].prices[0].size", "does not belong"),
    (plan("prices: [{meter: tokens, model: package, price: 1}]"), 6, "plans[0].prices[0].size", "is missing"),
    (tiers("{up_to: 5, flat: 1}"), 6, "plans[0].prices[0].tiers", "end at an upper bound"),
    (tiers("{up_to: 5}, {up_to: 5}, {}"), 6, "plans[0].prices[0].tiers[1].up_to", "overlaps"),
    (tiers("{unit_price: 1}, {up_to: 5}"), 6, "plans[0].prices[0].tiers[1]", "without an upper bound"),
    (tiers("{up_to: 5, unit: 1}, {}"), 6, "plans[0].prices[0].tiers[0].unit", "is not a field"),
    (
        plan("prices: [{meter: tokens, unit_price: 1, minimum: 2, maximum: 1}]"),
        6,
        "plans[0].prices[0].minimum",
        "above the maximum",
    ),
    (
        plan("prices: [{meter: tokens, unit_price: 1, discount_percent: 101}]"),
        6,
        "plans[0].prices[0].discount_percent",
        "is out of range",
    ),
    (
        plan("prices: [{meter: tokens, unit_price: 1, convert: {round: ceil}}]"),
        6,
        "plans[0].prices[0].convert",
        "needs one of",
    ),
    (
        plan("prices: [{meter: tokens, unit_price: 1}, {meter: tokens, unit_price: 2}]"),
        6,
        "plans[0].prices[1].meter",
        "stands twice",
    ),
    (plan("fees: [{name: f, amount: 1, timing: later}]"), 6, "plans[0].fees[0].timing", "is not known"),
    (plan("grace: {unit: day, count: 32}"), 6, "plans[0].grace.count", "is out of range"),
    (HEAD + "plans: [{name: p}]", 5, "plans[0].billing_interval", "is missing"),
    (HEAD + "plans: [{name: p, billing_interval: fortnight}]", 5, "plans[0].billing_interval", "is not known"),
    (limit(WINDOW + ", amount: 1, alerts: [0%]"), 8, "plans[0].limits[0].alerts", "has an entry that is no"),
    (limit(WINDOW + ", amount: 1, alerts: [10001%]"), 8, "plans[0].limits[0].alerts", "has an entry that is no"),
    (limit(WINDOW + ", amount: 1, alerts: ['-5']"), 8, "plans[0].limits[0].alerts", "has an entry that is no"),
    (limit(BUCKET + ", amount: 1, alerts: [50%]"), 8, "plans[0].limits[0].alerts", "belongs to kind window only"),
    (plan("alerts: [{at: [50%]}]"), 6, "plans[0].alerts[0].spend", "needs exactly one of spend, meter"),
    (plan("alerts: [{spend: '5', meter: tokens, amount: 1}]"), 6, "plans[0].alerts[0].spend", "needs exactly one"),
    (plan("alerts: [{spend: '0'}]"), 6, "plans[0].alerts[0].spend", "is nothing"),
    (plan("alerts: [{spend: '5', amount: 1}]"), 6, "plans[0].alerts[0].amount", "belongs to rules on meters only"),
    (plan("alerts: [{meter: tokens}]"), 6, "plans[0].alerts[0].amount", "is missing"),
    (plan("alerts: [{spend: '5'}, {spend: '6'}]"), 6, "plans[0].alerts[1].spend", "stands twice in this list"),
    (plan("alerts: [{spend: '5', at: [x]}]"), 6, "plans[0].alerts[0].at", "has an entry that is no threshold"),
    (tenant("alerts: [{spend: '5'}]"), 6, "tenants[0].alerts", "needs a plan"),
    (limit(WINDOW + ", amount: 1, decision_log: some"), 8, "plans[0].limits[0].decision_log", "is not known"),
    (limit(WINDOW + ", amount: 1, decision_log: sampled"), 8, "plans[0].limits[0].decision_log_one_in", "is missing"),
    (
        limit(WINDOW + ", amount: 1, decision_log: sampled, decision_log_one_in: 0"),
        8,
        "plans[0].limits[0].decision_log_one_in",
        "is out of range",
    ),
    (
        limit(WINDOW + ", amount: 1, decision_log: all, decision_log_one_in: 5"),
        8,
        "plans[0].limits[0].decision_log_one_in",
        "belongs to decision_log sampled only",
    ),
    (limit(WINDOW + ", amount: 1, after_restore: thaw"), 8, "plans[0].limits[0].after_restore", "is not known"),
    (limit(BUCKET + ", amount: 1, after_restore: learn"), 8, "plans[0].limits[0].after_restore", "is learn, which"),
    (
        limit("name: l, meter: tokens, kind: level, amount: 1, after_restore: learn"),
        8,
        "plans[0].limits[0].after_restore",
        "is learn, which",
    ),
    (
        limit("name: l, meter: tokens, kind: concurrency, amount: 1, after_restore: learn"),
        8,
        "plans[0].limits[0].after_restore",
        "is learn, which",
    ),
    (limit("name: l, meter: tokens, amount: 1, window: day"), 8, "plans[0].limits[0].kind", "is missing"),
    (
        limit("name: l, meter: tokens, kind: level, amount: 1, burst: 2"),
        8,
        "plans[0].limits[0].burst",
        "belongs to kind token_bucket only",
    ),
    (limit(WINDOW), 8, "plans[0].limits[0].amount", "is missing"),
    (limit(WINDOW + ", amount: -2"), 8, "plans[0].limits[0].amount", "is out of range"),
    (limit(WINDOW + ", amount: 9007199254740992"), 8, "plans[0].limits[0].amount", "is out of range"),
    (limit(WINDOW + ", amount: 1, limit_value: 1"), 8, "plans[0].limits[0].amount", "stands twice"),
    (limit(WINDOW + ", amount: 1, burst: 1"), 8, "plans[0].limits[0].burst", "token_bucket only"),
    (limit(WINDOW + ", amount: 1, enforcement: firm"), 8, "plans[0].limits[0].enforcement", "is not known"),
    (limit("name: l, meter: tokens, kind: window, amount: 1"), 8, "plans[0].limits[0].window", "is missing"),
    (limit(BUCKET + ", amount: 1, window: day"), 8, "plans[0].limits[0].window", "kind window only"),
    (limit("name: l, meter: tokens, kind: rate, amount: 1, refill: week"), 8, "plans[0].limits[0].refill", "not known"),
    (limit(WINDOW + ", amount: 1, match: [{attribute: a}]"), 8, "plans[0].limits[0].match[0].attribute", "exactly one"),
    (
        limit(WINDOW + ", amount: 1, match: [{attribute: a, exact: b, prefix: c}]"),
        8,
        "plans[0].limits[0].match[0].attribute",
        "exactly one",
    ),
    (
        limit(WINDOW + ", amount: 1, valid_from: '2025-01-02T00:00:00Z', valid_to: '2025-01-01T00:00:00Z'"),
        8,
        "plans[0].limits[0].valid_to",
        "is not after",
    ),
    (limit(WINDOW + ", amount: 1, valid_from: '2025-01-02'"), 8, "plans[0].limits[0].valid_from", "no UTC offset"),
    (
        limit("name: l, meter: tokens, kind: window, amount: 1, window: {unit: billing_period, count: 2}"),
        8,
        "plans[0].limits[0].window.unit",
        "always one period",
    ),
    (
        tenant("plan: p, fees: [{name: a, amount: {EUR: '1'}}]"),
        6,
        "tenants[0].fees[0].amount",
        "nothing says which one is paid",
    ),
    (
        tenant("plan: p, subscription: {currency: USD}, fees: [{name: a, amount: {EUR: '1'}}]"),
        6,
        "tenants[0].fees[0].amount",
        "has no amount in USD",
    ),
    (plan("fees: [{name: f, amount: '1.999'}]"), 6, "plans[0].fees[0].amount", "can't be paid"),
    (plan("currency: JPY, commitment: '80.5'"), 6, "plans[0].commitment", "can't be paid"),
    (plan("currency: JPY, progressive_threshold: '80.5'"), 6, "plans[0].progressive_threshold", "can't be paid"),
    (HEAD.replace("currency: USD", "currency: USD, email: a b"), 2, "seller.email", "is no address"),
    (tenant("parent: t"), 6, "tenants[0].parent", "is the tenant itself"),
    (tenant("plan_version: newest"), 6, "tenants[0].plan_version", "is not known"),
    (tenant("subscription: {start: '2025-01-01T00:00:00Z'}"), 6, "tenants[0].subscription", "needs a plan"),
    (tenant("plan: p, subscription: {start: yesterday}"), 6, "tenants[0].subscription.start", "is not a time"),
    (tenant("plan: p, subscription: {start: '1999-01-01T00:00:00Z'}"), 6, "tenants[0].subscription.start", "range"),
    (tenant("plan: p, subscription: {anchor: noon}"), 6, "tenants[0].subscription.anchor", "is not known"),
]


@pytest.mark.parametrize(("yaml", "line", "field", "problem"), TABLE, ids=[f"{row[2]} {row[3]}" for row in TABLE])
def test_a_fault_is_named(yaml: str, line: int, field: str, problem: str) -> None:
    """Each kind of fault is found on its line, by its field, with what is wrong."""
    found = faults_of(yaml)
    assert (line, field) in [(fault.line, fault.field) for fault in found if problem in fault.problem], found


def test_all_faults_are_named_at_once() -> None:
    """One attempt shows everything that is wrong, in line order, in message and metadata."""
    with pytest.raises(CatalogueInvalidError) as caught:
        read_catalogue("version: 3\nplanz: 1\nmeters:\n- {name: a b}\n- {name: c}\n", source_name="x.yaml")
    error = caught.value
    assert [fault.line for fault in error.faults] == [1, 2, 4, 4, 5]
    assert error.reason == "CATALOGUE_INVALID"
    assert error.message.startswith("x.yaml: 5 problems, nothing was stored: line 1: version")
    assert tuple(error.metadata[name] for name in ("file", "line", "field", "value", "bound")) == (
        "x.yaml",
        "1",
        "version",
        "3",
        "1",
    )
    assert len(error.metadata["problems"].splitlines()) == 5
    assert "did you mean 'plans'?" in error.metadata["problems"]


def test_less_than_a_minor_unit_is_due_for_a_seat() -> None:
    """A fee per seat may have more digits than its currency: what is paid is rounded for all seats."""
    read_catalogue(plan("currency: KWD, fees: [{name: f, amount: '1.9995', per_seat: true}]"), source_name="x")
    read_catalogue(plan("currency: KWD, fees: [{name: f, amount: '1.9990'}]"), source_name="x")


def test_values_are_told_as_they_are_written() -> None:
    """Quotes around a value are not escaped, whatever else the message says; what is not ASCII is."""
    with pytest.raises(CatalogueInvalidError) as caught:
        read_catalogue(plan("fees: [{name: f, amount: '1e3€'}]"), source_name="x")
    assert r"(is '1e3\u20ac')" in caught.value.message


def test_an_error_fits_into_trailers() -> None:
    """However much is wrong and however it is written, the answer fits what clients take; the rest is counted."""
    yaml = "version: 1\nmeters:\n" + "".join(f"- {{name: 'ä {n}\u202e', unt: '{'ü' * 300}'}}\n" for n in range(500))
    with pytest.raises(CatalogueInvalidError) as caught:
        read_catalogue(yaml, source_name="ö" * 4000)
    error = caught.value
    assert len(error.faults) == FAULTS_MAX
    size = 2 * len(error.message) + sum(len(text.encode()) for text in error.metadata.values())
    assert size < 6_000
    assert error.message.isascii()
    assert "and " in error.message
    assert error.message.endswith("more")


words = st.sampled_from([
    "version: 1", "meters", "plans", "tenants", "limits", ":", "-", "[", "]", "{", "}", "\n", "  ", "name", "amount",
    "a", "'", '"', "1", "-1", "null", "&a", "*a", "!x", "|", ">", "%", "@", "`", "\t", "\x85", "é", "kind: window", ",",
])  # fmt: skip


@given(st.lists(words, max_size=60).map("".join))
def test_any_text_is_read_or_refused(yaml: str) -> None:
    """No text makes the reader do anything but read or refuse with faults."""
    try:
        read_catalogue(yaml, source_name="fuzz")
    except CatalogueInvalidError as error:
        found = error.faults
    else:
        return
    assert found


def test_faults_beyond_the_bound_are_counted() -> None:
    """A file full of faults doesn't fill the memory."""
    faults = Faults()
    for line in range(FAULTS_MAX + 7):
        faults.add(line, "x", "is wrong")
    assert (len(faults.found), faults.more) == (FAULTS_MAX, 7)
