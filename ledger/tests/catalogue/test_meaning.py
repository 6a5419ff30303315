"""What a right catalogue means: aliases, defaults, canonical bytes, and the changes that it asks for."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
from tollkeeper_ledger.domain.catalogue.canonical import canonical_json, digest_of, plan_to_json
from tollkeeper_ledger.domain.catalogue.compare import compare
from tollkeeper_ledger.domain.catalogue.faults import Faults
from tollkeeper_ledger.domain.catalogue.known import (
    AddPlanVersion,
    AddSubscription,
    ChangeSubscription,
    Known,
    KnownPlan,
    KnownSubscription,
    KnownTenant,
)
from tollkeeper_ledger.domain.limits import merge, rule_from_json
from tollkeeper_ledger.domain.periods import Interval, IntervalUnit
from tollkeeper_ledger.services.catalogue import CatalogueInvalidError, read_catalogue

NOW = datetime(2025, 5, 17, 12, 30, tzinfo=UTC)

PLAIN = """
version: 1
seller: {id: s, name: Seller, currency: USD, time_zone: Europe/Berlin}
meters: [{name: tokens, unit: tokens, attributes: [user]}]
features: [{name: f}]
plans:
  - name: p
    billing_interval: {unit: month, count: 1}
    features: [f]
    fees: [{name: base, amount: "20.00"}]
    prices: [{meter: tokens, per: 1_000_000, unit_price: "2.50", included: 1000000}]
    limits:
      - {name: rate, meter: tokens, kind: token_bucket, amount: 60, refill: {unit: minute, count: 1}}
      - {name: day, meter: tokens, kind: window, amount: -1, window: {unit: day},
         match: [{attribute: m, set: [b, a, b]}]}
tenants: [{id: t, plan: p}]
"""

ALIASED = """
version: 1
seller: {id: s, name: Seller, currency: USD, time_zone: Europe/Berlin}
meters: [{name: tokens, unit: tokens, attributes: [user]}]
features: [{name: f}]
tiers:
  - name: p
    currency: USD
    billing_interval: month
    features: f
    fees: [{name: base, amount: 20, timing: arrears}]
    prices: [{meter: tokens, per: 1000000, unit_price: 2.500, included: 1000000}]
    quotas:
      - {name: day, usage_type: tokens, kind: window, limit_value: -1, enforcement_mode: hard, reset_period: daily,
         match: [{attribute: m, set: [a, b]}]}
      - {name: rate, service: tokens, kind: rate, amount: 60, refill: minute, burst: 60}
customers: [{id: t, tier: p}]
"""


def changes_of(yaml: str, known: Known) -> list[tuple[str, str, str]]:
    """Give (action, kind, name) of what a catalogue without faults asks for."""
    faults = Faults()
    found = compare(read_catalogue(yaml, source_name="x"), known, now=NOW, faults=faults)
    assert faults.found == []
    return [(change.action, change.kind, change.name) for change in found]


def faults_of(yaml: str, known: Known) -> list[tuple[str, str]]:
    """Give (field, problem) of what is wrong with a catalogue beside what is known."""
    faults = Faults()
    compare(read_catalogue(yaml, source_name="x"), known, now=NOW, faults=faults)
    return [(fault.field, fault.problem) for fault in faults.in_order()]


def known_after(yaml: str) -> Known:
    """Give what is stored after a catalogue was applied to nothing."""
    catalogue = read_catalogue(yaml, source_name="x")
    assert catalogue.seller is not None
    plans = {
        plan.name: KnownPlan(
            plan_id=uuid.uuid4(),
            seller_id=catalogue.seller.seller_id,
            version=1,
            plan_version_id=uuid.uuid4(),
            digest=digest_of(canonical_json(plan_to_json(plan))),
            definition=canonical_json(plan_to_json(plan)),
        )
        for plan in catalogue.plans
    }
    tenants = {
        tenant.tenant: KnownTenant(
            tenant_id=uuid.uuid4(),
            display_name=tenant.display_name,
            parent=tenant.parent,
            billing_tenant=tenant.billing_tenant,
            address=tenant.address,
            tax_id=tenant.tax_id,
            subscription=KnownSubscription(
                subscription_id=uuid.uuid4(),
                plan=tenant.plan,
                version=1,
                plan_version_id=plans[tenant.plan].plan_version_id,
                currency="USD",
                started_at=NOW,
                anchor=datetime(2025, 5, 17, 14, 30),  # noqa: DTZ001 - wall clock in Berlin
                time_zone="Europe/Berlin",
                interval=Interval(unit=IntervalUnit.MONTH, count=1),
                limits=[],
            )
            if tenant.plan
            else None,
            declared={"plan": tenant.plan, "start": "", "anchor": "", "time_zone": ""},
        )
        for tenant in catalogue.tenants
    }
    return Known(
        sellers={catalogue.seller.seller_id: catalogue.seller},
        meters={meter.name: meter for meter in catalogue.meters},
        features=frozenset(catalogue.features),
        plans=plans,
        tenants=tenants,
    )


def test_aliases_and_defaults_mean_the_same() -> None:
    """Words that users bring along, left out defaults and other spellings give the same bytes."""
    plain, aliased = (read_catalogue(yaml, source_name="x") for yaml in (PLAIN, ALIASED))
    first, second = (canonical_json(plan_to_json(one.plans[0])) for one in (plain, aliased))
    assert first.decode() == second.decode()
    assert [tenant.plan for tenant in plain.tenants] == [tenant.plan for tenant in aliased.tenants]


@pytest.mark.parametrize(
    ("said", "learns"), [("", False), (", after_restore: freeze", False), (", after_restore: learn", True)]
)
def test_what_happens_after_a_restore_is_kept(said: str, learns: bool) -> None:  # noqa: FBT001 - a table's column
    """A limit learns only where it says so, and the default leaves no trace in what is stored."""
    yaml = PLAIN.replace("kind: window,", f"kind: window{said},")
    (plan,) = read_catalogue(yaml, source_name="x").plans
    stored = [limit for limit in plan_to_json(plan)["limits"] if limit["kind"] == "window"]
    assert {learns} == {rule_from_json(limit).learns for limit in stored}
    assert {learns} == {"after_restore" in limit for limit in stored}


@pytest.mark.parametrize(
    ("said", "means", "stored"),
    [
        ("", ("denied", 0), {}),
        (", decision_log: denied", ("denied", 0), {}),
        (", decision_log: off", ("off", 0), {"decision_log": "off"}),
        (", decision_log: all", ("all", 0), {"decision_log": "all"}),
        (
            ", decision_log: sampled, decision_log_one_in: 50",
            ("sampled", 50),
            {"decision_log": "sampled", "decision_log_one_in": 50},
        ),
    ],
)
def test_which_decisions_are_kept(said: str, means: tuple[str, int], stored: dict[str, object]) -> None:
    """Denials where nothing is said, which leaves no trace in what is stored."""
    yaml = PLAIN.replace("kind: window,", f"kind: window{said},")
    (plan,) = read_catalogue(yaml, source_name="x").plans
    (limit,) = [limit for limit in plan_to_json(plan)["limits"] if limit["kind"] == "window"]
    assert stored == {name: value for name, value in limit.items() if name.startswith("decision_log")}
    rule = rule_from_json(limit)
    assert means == (rule.decision_log.value, rule.decision_log_one_in)


def test_an_override_that_samples_no_longer_forgets_how_often() -> None:
    """Fields of an override stand over the plan's: one that only says `all` leaves no number behind."""
    (plan,) = read_catalogue(PLAIN, source_name="x").plans
    day = plan_to_json(plan)["limits"][0] | {"decision_log": "sampled", "decision_log_one_in": 50}
    over = {"name": day["name"], "decision_log": "all"}
    rules = [rule_from_json(rule) for rule, _ in merge([day], [], [over]) if rule["name"] == day["name"]]
    assert [(rule.decision_log.value, rule.decision_log_one_in) for rule in rules] == [("all", 0)]


def test_stored_limits_are_what_resolution_reads() -> None:
    """The JSON of a plan's limits is read by the resolution of effective limits, with the same meaning."""
    (plan,) = read_catalogue(PLAIN, source_name="x").plans
    day, rate = (rule_from_json(rule) for rule in json.loads(canonical_json(plan_to_json(plan)))["limits"])
    assert (
        day.name,
        day.amount,
        day.window.time_zone if day.window else "",
        day.match[0].values,
    ) == ("day", -1, "Europe/Berlin", ("a", "b"))
    assert (rate.name, rate.amount, rate.burst, rate.refill_interval_us) == ("rate", 60, 60, 60_000_000)


def test_a_windows_anchor_is_kept() -> None:
    """What windows are counted from is stored and read again, and leaves no trace where it isn't said."""
    anchored = PLAIN.replace("window: {unit: day}", "window: {unit: week, count: 2, anchor: 2026-01-08}")
    for yaml, anchor in ((PLAIN, None), (anchored, date(2026, 1, 8))):
        (plan,) = read_catalogue(yaml, source_name="x").plans
        (stored,) = [limit for limit in plan_to_json(plan)["limits"] if limit["kind"] == "window"]
        window = rule_from_json(stored).window
        assert window is not None
        assert (anchor, anchor is not None) == (window.anchor, "anchor" in stored["window"])


def test_canonical_json_refuses_floats() -> None:
    """No float can get into bytes that a digest is made of."""
    for value in (1.0, {"a": [1.5]}, {"a": {"b": 0.0}}):
        with pytest.raises(TypeError, match="no canonical form: float"):
            canonical_json(value)


def test_a_first_catalogue_creates_everything_in_order() -> None:
    """On an empty ledger all is created, in catalogue order; the subscription starts now, in the seller's zone."""
    assert changes_of(PLAIN, Known()) == [
        ("create", "seller", "s"),
        ("create", "meter", "tokens"),
        ("create", "feature", "f"),
        ("create", "plan", "p"),
        ("create", "tenant", "t"),
        ("create", "subscription", "t"),
    ]
    found = compare(read_catalogue(PLAIN, source_name="x"), Known(), now=NOW, faults=Faults())
    write = found[-1].write
    assert isinstance(write, AddSubscription)
    assert (
        write.started_at,
        write.anchor.isoformat(),
        write.time_zone,
    ) == (NOW, "2025-05-17T14:30:00", "Europe/Berlin")


def test_the_same_again_changes_nothing() -> None:
    """A repeat asks for nothing."""
    assert {"unchanged"} == {action for action, _, _ in changes_of(PLAIN, known_after(PLAIN))}
    assert {"unchanged"} == {action for action, _, _ in changes_of(ALIASED, known_after(PLAIN))}


def test_a_changed_plan_is_a_new_version_and_moves_nobody() -> None:
    """Versions in use stay; subscribers stay on theirs unless they ask for the latest."""
    raised = PLAIN.replace('"2.50"', '"3.00"')
    known = known_after(PLAIN)
    found = compare(read_catalogue(raised, source_name="x"), known, now=NOW, faults=Faults())
    by_kind = {change.kind: change for change in found}
    assert by_kind["plan"].action == "version"
    assert isinstance(by_kind["plan"].write, AddPlanVersion)
    assert by_kind["plan"].write.version == 2
    assert (
        by_kind["subscription"].action,
        by_kind["subscription"].detail,
    ) == ("unchanged", "stays on v1; `plan_version: latest` moves it to v2")
    moved = raised.replace("plan: p}", "plan: p, plan_version: latest}")
    change = compare(read_catalogue(moved, source_name="x"), known, now=NOW, faults=Faults())[-1]
    assert isinstance(change.write, ChangeSubscription)
    assert change.write.plan == "p"


@pytest.mark.parametrize(
    ("old", "new", "field", "problem"),
    [
        ("unit: tokens", "unit: words", "meters.tokens.unit", "never changes"),
        ("meter: tokens, kind: window", "meter: tokes, kind: window", "plans[0].limits[1].meter", "does not exist"),
        ("features: [f]", "features: [g]", "plans[0].features", "does not exist"),
        ("{id: t, plan: p}", "{id: t, plan: q}", "tenants[0].plan", "does not exist"),
        ("{id: t, plan: p}", "{id: t, plan: p, parent: u}", "tenants[0].parent", "does not exist"),
        ("{id: t, plan: p}", "{id: t, plan: p, billing_tenant: u}", "tenants[0].billing_tenant", "does not exist"),
        (
            "{id: t, plan: p}",
            "{id: t, plan: p, subscription: {start: '2025-01-01T00:00:00Z'}}",
            "tenants[0].subscription",
            "can't change start",
        ),
        (
            "{id: t, plan: p}",
            "{id: t, plan: p, subscription: {time_zone: UTC}}",
            "tenants[0].subscription",
            "can't change time_zone",
        ),
        (
            "{id: t, plan: p}",
            "{id: t, plan: p, subscription: {anchor: calendar}}",
            "tenants[0].subscription",
            "can't change anchor",
        ),
        ("{id: t, plan: p}", "{id: t, parent: u}, {id: u, parent: t}", "tenants[0].parent", "makes a circle"),
        (
            "{id: t, plan: p}",
            "{id: a}, {id: b, parent: a}, {id: c, parent: b}, {id: d, parent: c}, {id: e, parent: d}",
            "tenants[4].parent",
            "too long a chain",
        ),
    ],
)
def test_what_does_not_fit_is_refused(old: str, new: str, field: str, problem: str) -> None:
    """References must exist, chains of parents end, and what was promised to a subscription stays."""
    assert PLAIN.replace(old, new) != PLAIN
    found = faults_of(PLAIN.replace(old, new), known_after(PLAIN))
    assert any(name == field and problem in text for name, text in found), found


def test_another_plan_needs_to_be_asked_for() -> None:
    """A catalogue doesn't move a subscription by naming another plan, and never over intervals or currencies."""
    known = known_after(PLAIN)
    other = known.plans["p"]
    named = {**json.loads(other.definition), "name": "q"}
    plans = {
        "q": replace(other, version=7, definition=canonical_json(named)),
        "eur": replace(other, definition=canonical_json({**named, "name": "eur", "currency": "EUR"})),
    }
    known = replace(known, plans={**known.plans, **plans})
    assert faults_of(PLAIN.replace("{id: t, plan: p}", "{id: t, plan: q}"), known) == [
        ("tenants[0].plan", "differs from the running subscription's plan 'p'")
    ]
    assert faults_of(PLAIN.replace("{id: t, plan: p}", "{id: t, plan: q, plan_version: latest}"), known) == []
    assert faults_of(PLAIN.replace("{id: t, plan: p}", "{id: t, plan: eur, plan_version: latest}"), known) == [
        ("tenants[0].plan", "has another billing interval or currency than the running subscription")
    ]


def test_what_counts_distinct_values_has_window_limits_and_whole_prices() -> None:
    """A meter of distinct values takes window limits and prices; another limit or a split price is refused by field."""
    meter = "{name: seen, unit: users, aggregation: unique, value_attribute: user, attributes: [user]}"
    catalogue = (
        f"version: 1\nmeters: [{meter}]\nplans:\n- name: q\n  currency: USD\n  billing_interval: month\n"
        "  limits: [{name: l, meter: seen, kind: window, amount: 5, window: day}]\n"
    )
    assert faults_of(catalogue, known_after(PLAIN)) == []
    assert faults_of(catalogue + "  prices: [{meter: seen, unit_price: 1}]\n", known_after(PLAIN)) == []
    split = catalogue.replace("attributes: [user]", "attributes: [user], dimensions: [user]")
    assert faults_of(split + "  prices: [{meter: seen, unit_price: 1, group_by: [user]}]\n", known_after(PLAIN)) == [
        ("plans[0].prices[0].group_by", "splits distinct values, which prices do not serve")
    ]
    level = catalogue.replace("kind: window, amount: 5, window: day", "kind: level, amount: 5")
    assert faults_of(level, known_after(PLAIN)) == [
        ("plans[0].limits[0].kind", "is not served for a meter that counts distinct values")
    ]


@pytest.mark.parametrize("aggregation", ["min", "max", "avg", "latest", "time_weighted", "percentile", "count"])
def test_what_is_no_running_sum_has_no_limit_and_no_price(aggregation: str) -> None:
    """Meters for reports are declared, but a limit names sums only, and a price what adds up over segments."""
    meter = f"{{name: seen, unit: ms, aggregation: {aggregation}, attributes: [zone], dimensions: [zone]}}"
    plan = f"version: 1\nmeters: [{meter}]\nplans:\n- name: q\n  currency: USD\n  billing_interval: month\n"
    problem = f"names a meter of aggregation {aggregation}, which"
    assert faults_of(plan, known_after(PLAIN)) == []
    limited = plan + "  limits: [{name: l, meter: seen, kind: window, amount: 5, window: day}]\n"
    assert faults_of(limited, known_after(PLAIN)) == [("plans[0].limits[0].meter", f"{problem} limits do not serve")]
    priced = faults_of(plan + '  prices: [{meter: seen, unit_price: "1"}]\n', known_after(PLAIN))
    assert priced == (
        [] if aggregation == "count" else [("plans[0].prices[0].meter", f"{problem} prices do not serve")]
    )


def test_what_splits_a_meter_never_changes() -> None:
    """Dimensions are part of what was rolled up, so another set of them is another meter."""
    split = "meters: [{name: seen, unit: ms, attributes: [zone, user], dimensions: [zone]}, "
    meter = PLAIN.replace("meters: [", split)
    assert faults_of(meter, known_after(meter)) == []
    changed = meter.replace("dimensions: [zone]", "dimensions: [user]")
    assert faults_of(changed, known_after(meter)) == [("meters.seen.dimensions", "never changes")]


def test_a_seller_must_be_known() -> None:
    """The first catalogue declares its seller; later ones may leave it out while there is one."""
    without = "\n".join(line for line in PLAIN.splitlines() if not line.startswith("seller"))
    priced = without.replace("  - name: p\n", "  - name: p\n    currency: USD\n")
    assert faults_of(priced, Known()) == [("seller", "is missing")]
    assert faults_of("version: 1\nmeters: [{name: more, unit: x}]\n", known_after(PLAIN)) == []


PRICED = PLAIN.replace("    billing_interval:", "    currencies: [USD, EUR]\n    billing_interval:").replace(
    'amount: "20.00"', "amount: {USD: 20, EUR: 18}"
)


def test_a_plan_in_two_currencies_is_two_definitions() -> None:
    """The first currency has the plan's name; the tenant's currency picks the definition."""
    catalogue = read_catalogue(PRICED, source_name="x")
    assert [
        (plan.name, plan.currency, fee["amount"]) for plan in catalogue.plans for fee in plan_to_json(plan)["fees"]
    ] == [("p", "USD", "20.00"), ("p/EUR", "EUR", "18.00")]
    asked = PRICED.replace("{id: t, plan: p}", "{id: t, plan: p, subscription: {currency: EUR}}")
    faults = Faults()
    changes = compare(read_catalogue(asked, source_name="x"), Known(), now=NOW, faults=faults)
    (added,) = [change.write for change in changes if isinstance(change.write, AddSubscription)]
    assert (added.plan, faults.found) == ("p/EUR", [])
    assert faults_of(asked.replace("currency: EUR}", "currency: GBP}"), Known()) == [
        ("tenants[0].subscription.currency", "the plan 'p' has no prices in it")
    ]


def test_a_tenant_may_have_prices_of_its_own() -> None:
    """Its fees and prices stand instead of the plan's of the same name or meter, in a definition of its own."""
    own = "{id: t, plan: p, fees: [{name: base, amount: 15}], prices: [{meter: tokens, unit_price: 9, per: 1000000}]}"
    faults = Faults()
    catalogue = read_catalogue(PLAIN.replace("{id: t, plan: p}", own), source_name="x")
    changes = compare(catalogue, Known(), now=NOW, faults=faults)
    versions = {one.write.name: one.write for one in changes if isinstance(one.write, AddPlanVersion)}
    definition = json.loads(versions["p@t"].definition)
    assert [(fee["name"], fee["amount"]) for fee in definition["fees"]] == [("base", "15.00")]
    assert [(price["meter"], price["unit_price"]) for price in definition["prices"]] == [("tokens", "9.00")]
    assert definition["limits"] == json.loads(versions["p"].definition)["limits"]
    (added,) = [change.write for change in changes if isinstance(change.write, AddSubscription)]
    assert (added.plan, faults.found) == ("p@t", [])


def test_a_price_in_the_past_is_refused() -> None:
    """New prices never begin in a closed period, nor before now; from then on they may."""
    known = known_after(PLAIN)
    tenant = known.tenants["t"]
    assert tenant.subscription is not None
    closed = replace(tenant.subscription, billed_until=datetime(2025, 5, 1, tzinfo=UTC))
    known = replace(known, tenants={"t": replace(tenant, subscription=closed)})

    def asked(prices_from: str) -> str:
        entry = f"{{id: t, plan: p, plan_version: latest, subscription: {{prices_from: '{prices_from}'}}}}"
        return PLAIN.replace("2.50", "2.60").replace("{id: t, plan: p}", entry)

    field = "tenants[0].subscription.prices_from"
    assert faults_of(asked("2025-04-30T00:00:00Z"), known) == [(field, "sets a price in the past of a closed period")]
    assert faults_of(asked("2025-05-02T00:00:00Z"), known) == [(field, "sets a price in the past")]
    assert faults_of(asked("2025-05-18T00:00:00Z"), known) == []


def test_whoever_was_cancelled_is_not_subscribed_again_by_itself() -> None:
    """A catalogue that is applied again begins no subscription that overlaps one which ended; a later start does."""
    known = known_after(PLAIN)
    over = replace(known.tenants["t"], subscription=None, ended_at=datetime(2025, 5, 10, tzinfo=UTC))
    known = replace(known, tenants={"t": over})

    def actions(start: str) -> list[str]:
        entry = f"{{id: t, plan: p, subscription: {{start: '{start}'}}}}" if start else "{id: t, plan: p}"
        catalogue = read_catalogue(PLAIN.replace("{id: t, plan: p}", entry), source_name="x")
        changes = compare(catalogue, known, now=NOW, faults=Faults())
        return [change.action for change in changes if change.kind == "subscription"]

    assert [
        actions(""), actions("2025-05-09T00:00:00Z"), actions("2025-05-10T00:00:00Z"),
    ] == [["unchanged"], ["unchanged"], ["create"]]  # fmt: skip


def test_a_price_names_dimensions_only() -> None:
    """What is told apart by value must be rolled up by it."""
    split = PLAIN.replace("included: 1000000}", "included: 1000000, group_by: [user]}")
    assert faults_of(split, Known()) == [("plans[0].prices[0].group_by", "names a dimension that does not exist")]
    declared = split.replace("attributes: [user]", "attributes: [user], dimensions: [user]")
    assert faults_of(declared, Known()) == []


HIDING = """
version: 1
seller: {id: s, name: Seller, currency: USD, time_zone: Europe/Berlin}
meters:
  - {name: calls, unit: calls, attributes: [user, zone], dimensions: [user, zone], pseudonymise: [user]}
  - {name: open, unit: calls, attributes: [user, zone], dimensions: [user, zone], pseudonymise: [user]}
plans:
  - name: p
    billing_interval: month
    prices:
      - {meter: open, unit_price: "1", match: [{attribute: zone, exact: a}], group_by: [user]}
"""


@pytest.mark.parametrize("value", ["ann", "p1.AAAAAAAAAAAAAAAAAAAAAA"])
def test_no_price_is_for_a_value_that_is_hidden(value: str) -> None:
    """A price that matches a hidden attribute is refused by line and field, a tenant's own too; `group_by` may name it.

    Usage has pseudonyms there, which turn with the tenant's key: it would be billed by another price, or by none.
    """
    assert faults_of(HIDING, Known()) == []
    problem = "is for a value of an attribute that is hidden"
    price = f"{{meter: calls, unit_price: '1', match: [{{attribute: user, exact: {value}}}]}}"
    matched = f"{HIDING}      - {price}\n"
    faults = Faults()
    compare(read_catalogue(matched, source_name="x"), Known(), now=NOW, faults=faults)
    (fault,) = faults.found
    assert (matched.splitlines().index(f"      - {price}") + 1, "plans[0].prices[1].match", problem, "calls.user") == (
        fault.line, fault.field, fault.problem, fault.value,
    )  # fmt: skip
    own = f"{HIDING}tenants:\n  - {{id: t, plan: p, prices: [{price}]}}\n"
    assert faults_of(own, Known()) == [("tenants[0].prices[0].match", problem)]
    alone = HIDING.partition("meters:")[0] + f"tenants:\n  - {{id: t, plan: p, prices: [{price}]}}\n"
    assert faults_of(alone, known_after(HIDING)) == [("tenants[0].prices[0].match", problem)]


def test_nothing_is_hidden_that_prices_in_force_match() -> None:
    """To hide an attribute is refused where a plan that stays matches it: subscribed, or open to be."""
    plain = HIDING.replace(", pseudonymise: [user]", "").replace("attribute: zone", "attribute: user")
    matched = plain.replace("group_by: [user]", "group_by: [zone]")
    assert faults_of(matched, Known()) == []
    hides = [(f"meters[{place}].pseudonymise", "hides an attribute that prices in force match") for place in range(2)]
    known = known_after(matched)
    meters = HIDING.partition("plans:")[0]
    assert faults_of(meters, known) == hides
    assert faults_of(HIDING, known) == []
    assert faults_of(HIDING, replace(known, matching={"user": frozenset({"p v1"})})) == hides
    assert faults_of(HIDING, replace(known_after(HIDING), matching={"user": frozenset({"p v1"})})) == []


OWN = """version: 1
seller: {id: s, name: Seller, currency: USD}
meters: [{name: tokens, unit: tokens}]
plans:
- {name: p, billing_interval: month, progressive_threshold: "50.00"}
- {name: q, billing_interval: month}
- {name: e, billing_interval: month, currency: EUR}
tenants:
- id: t
  plan: PLAN
  OWN
"""


@pytest.mark.parametrize("term", ["free_events: 2", 'free_total: "5"'])
def test_own_prices_beside_a_threshold_are_refused(term: str) -> None:
    """A tenant's price that depends on the order of records can't be invoiced within the period; others can."""
    own = OWN.replace("OWN", f"prices: [{{meter: tokens, model: percentage, rate_percent: 1, {term}}}]")
    field = f"tenants[0].prices[0].{term.partition(':')[0]}"
    problem = "stands beside the progressive_threshold of the plan 'p'"
    assert faults_of(own.replace("PLAN", "p"), Known()) == [(field, problem)]
    assert faults_of(own.replace("PLAN", "q"), Known()) == []
    plain = OWN.replace("OWN", "prices: [{meter: tokens, model: percentage, rate_percent: 1}]")
    assert faults_of(plain.replace("PLAN", "p"), Known()) == []
    # The plan may have been stored before, without the tenant.
    stored = replace(known_after(own[: own.index("tenants:")]), tenants={})
    later = own[: own.index("plans:")] + own[own.index("tenants:") :]
    assert faults_of(later.replace("PLAN", "p"), stored) == [(field, problem)]


def test_own_fees_are_in_the_currency_that_is_paid() -> None:
    """A fee per currency is read in the plan's where none is named; one without that currency is refused."""
    own = OWN.replace("PLAN", "e").replace("OWN", 'fees: [{name: Extra, amount: {EUR: "5", USD: "6"}}]')
    changes = compare(read_catalogue(own, source_name="x"), Known(), now=NOW, faults=Faults())
    (version,) = [one.write for one in changes if one.kind == "plan" and one.name == "e@t"]
    assert isinstance(version, AddPlanVersion)
    assert [fee["amount"] for fee in json.loads(version.definition)["fees"]] == ["5.00"]
    with pytest.raises(CatalogueInvalidError, match="has no amount in EUR"):
        read_catalogue(own.replace('EUR: "5", ', ""), source_name="x")
