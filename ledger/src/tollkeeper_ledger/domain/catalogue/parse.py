"""Turn a located tree into a catalogue, and name everything that is wrong with it."""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING, TypeVar

from tollkeeper_ledger.domain.billing_profile import EMAIL_CHARS_MAX, is_email
from tollkeeper_ledger.domain.catalogue.alert import read_rules
from tollkeeper_ledger.domain.catalogue.limit import LIMIT_ALIASES, LIMIT_FIELDS, Limit, read_limit
from tollkeeper_ledger.domain.catalogue.logo import LOGO_BYTES_MAX, logo_fault
from tollkeeper_ledger.domain.catalogue.model import (
    ADDED_UP,
    EARLY_MAX_S,
    FORMAT_VERSION,
    LATE_MAX_S,
    Catalogue,
    CostPrice,
    Fee,
    Meter,
    Plan,
    Seller,
    Subscription,
    Tenant,
)
from tollkeeper_ledger.domain.catalogue.price import PRICE_FIELDS, ordered_terms, read_price
from tollkeeper_ledger.domain.catalogue.reader import Collected, Fields
from tollkeeper_ledger.domain.catalogue.tax import read_country, read_region, read_seller_taxes
from tollkeeper_ledger.domain.money import CURRENCY_DIGITS
from tollkeeper_ledger.domain.periods import Interval, IntervalUnit
from tollkeeper_ledger.domain.trials import (
    CANCEL,
    FALLBACK,
    NOT_ASKED,
    NOTICE_DAYS_DEFAULT,
    NOTICE_DAYS_MAX,
    OTHERWISE,
    PAYMENT_METHOD,
    TrialTerms,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from decimal import Decimal

    from tollkeeper_ledger.domain.catalogue.faults import Faults
    from tollkeeper_ledger.domain.catalogue.price import Price
    from tollkeeper_ledger.domain.catalogue.tree import Node

_ROOT_FIELDS = frozenset({"version", "seller", "meters", "features", "plans", "tenants"})
_ROOT_ALIASES = {"customers": "tenants", "tiers": "plans"}
_SELLER_FIELDS = frozenset({
    "id", "name", "address", "tax_id", "email", "website", "tax_note", "payment_note", "invoice_prefix", "currency",
    "time_zone", "logo", "country", "taxes", "reverse_charge",
})  # fmt: skip
_METER_FIELDS = frozenset(
    {
        "name",
        "unit",
        "aggregation",
        "value_attribute",
        "dimensions",
        "scale",
        "attributes",
        "pseudonymise",
        "late_max_s",
        "early_max_s",
        "cost_price",
    }
)
_COST_PRICE_FIELDS = frozenset({"amount", "per", "currency"})  # fmt: skip
_PLAN_FIELDS = frozenset({
    "name", "currency", "currencies", "billing_interval", "grace", "features", "fees", "prices", "limits",
    "trial_days", "trial", "proration", "commitment", "progressive_threshold", "alerts",
})  # fmt: skip
_TRIAL_FIELDS = frozenset({"days", "payment_method", "otherwise", "fallback_plan", "notice_days"})
_TRIAL_DAYS_MAX = 1000
_FEE_FIELDS = frozenset({"name", "amount", "timing", "per_seat"})
_SUBSCRIPTION_FIELDS = frozenset({"start", "anchor", "time_zone", "currency", "quantity", "prices_from"})
_TENANT_FIELDS = frozenset({
    "id", "name", "parent", "billing_tenant", "address", "tax_id", "plan", "plan_version", "subscription", "limits",
    "fees", "prices", "alerts", "country", "region", "features",
})  # fmt: skip
_AGGREGATIONS = ("sum", "count", "min", "max", "avg", "unique", "latest", "time_weighted", "percentile")
_DIMENSIONS_MAX = 4
_GRACE_MAX = {"minute": 44_640, "hour": 744, "day": 31}
_PREFIX = re.compile(r"[A-Z0-9][A-Z0-9-]{0,15}")

Named = TypeVar("Named")


def parse_catalogue(root: Node, faults: Faults) -> Catalogue:
    """Read a whole catalogue. Where `faults` is not empty afterwards, the result must not be used."""
    collected = Collected(faults=faults)
    fields = Fields(root, "", collected, names=_ROOT_FIELDS, aliases=_ROOT_ALIASES)
    if not fields.has("version"):
        fields.fault("version", "is missing", bound=str(FORMAT_VERSION), remedy=f"add `version: {FORMAT_VERSION}`")
    fields.whole("version", least=FORMAT_VERSION, most=FORMAT_VERSION, default=FORMAT_VERSION)
    seller = _read_seller(fields)
    currency = seller.currency if seller else ""
    time_zone = seller.time_zone if seller else "UTC"
    features = [_read_feature(inner) for inner in fields.tables("features", names=frozenset({"name"}))]
    meters = _unique(
        fields, "meters", _METER_FIELDS, lambda inner: _read_meter(inner, currency), lambda meter: meter.name
    )
    _refuse_hidden(meters, faults)
    plans = _unique(
        fields,
        "plans",
        _PLAN_FIELDS,
        lambda inner: _read_plan_in_currencies(inner, currency=currency, time_zone=time_zone),
        lambda variants: variants[0].name,
        aliases={"quotas": "limits"},
    )
    currencies = {variants[0].name: variants[0].currency for variants in plans}
    tenants = _unique(
        fields,
        "tenants",
        _TENANT_FIELDS,
        lambda inner: _read_tenant(inner, currencies, time_zone=time_zone),
        lambda tenant: tenant.tenant,
        aliases={"tier": "plan", "quotas": "limits"},
    )
    return Catalogue(
        seller=seller,
        meters=meters,
        features=tuple(dict.fromkeys(features)),
        plans=tuple(variant for variants in plans for variant in variants),
        tenants=tenants,
        references=tuple(collected.references),
    )


def _unique(
    fields: Fields,
    section: str,
    names: frozenset[str],
    read: Callable[[Fields], Named],
    name_of: Callable[[Named], str],
    *,
    aliases: dict[str, str] | None = None,
    key: str = "name",
) -> tuple[Named, ...]:
    found: dict[str, Named] = {}
    for inner in fields.tables(section, names=names, aliases=aliases):
        one = read(inner)
        name = name_of(one)
        if name in found:
            inner.fault(
                "id" if section == "tenants" else key, "stands twice in this list", value=name, remedy="keep one"
            )
        elif name:
            found[name] = one
    return tuple(found.values())


def _read_seller(fields: Fields) -> Seller | None:
    inner = fields.table("seller", names=_SELLER_FIELDS)
    if inner is None:
        return None
    prefix = inner.text("invoice_prefix", default="INV", length_max=16)
    if _PREFIX.fullmatch(prefix) is None:
        inner.fault("invoice_prefix", "is malformed", value=prefix, bound="1 to 16 of A-Z 0-9 -")
    return Seller(
        seller_id=inner.name("id"),
        name=inner.text("name", required=True),
        address=inner.texts("address", count_max=8),
        tax_id=inner.text("tax_id", length_max=64),
        email=_read_email(inner),
        website=inner.text("website"),
        tax_note=inner.text("tax_note", length_max=500),
        payment_note=inner.text("payment_note", length_max=500),
        invoice_prefix=prefix,
        currency=_read_currency(inner, default=""),
        time_zone=inner.time_zone("time_zone", default="UTC"),
        logo=_read_logo(inner),
        taxes=read_seller_taxes(inner),
    )


def _read_email(fields: Fields) -> str:
    address = fields.text("email", length_max=EMAIL_CHARS_MAX)
    if address and not is_email(address):
        bound = f"one mailbox like billing@example.com, at most {EMAIL_CHARS_MAX} ASCII characters"
        fields.fault("email", "is no address", value=ascii(address)[1:-1], bound=bound)
        return ""
    return address


def _read_logo(fields: Fields) -> str:
    svg = fields.block("logo")
    fault = logo_fault(svg) if svg else ""
    if fault:
        bound = f"an SVG of up to {LOGO_BYTES_MAX} bytes that refers to nothing outside of itself"
        fields.fault("logo", fault, value=svg[:64], bound=bound)
        return ""
    return svg


def _read_currency(fields: Fields, *, default: str) -> str:
    code = fields.text("currency", required=not default, default=default)
    if code and code not in CURRENCY_DIGITS:
        fields.fault("currency", "is not a currency", value=code, bound="ISO 4217 codes like USD")
    return code


def _read_feature(fields: Fields) -> str:
    return fields.name("name")


def _read_meter(fields: Fields, currency: str) -> Meter:
    attributes = fields.names("attributes", count_max=16)
    pseudonymised = fields.names("pseudonymise", count_max=16)
    for name in pseudonymised:
        if name not in attributes:
            fields.fault("pseudonymise", "names an attribute that is not declared", value=name, remedy="declare it")
    aggregation = fields.choice("aggregation", _AGGREGATIONS, default="sum")
    dimensions = fields.names("dimensions", count_max=_DIMENSIONS_MAX)
    for name in dimensions:
        if name not in attributes:
            fields.fault("dimensions", "names an attribute that is not declared", value=name, remedy="declare it")
    return Meter(
        name=fields.name("name"),
        unit=fields.text("unit", required=True, length_max=32),
        aggregation=aggregation,
        scale=fields.whole("scale", least=0, most=0 if aggregation == "unique" else 9),
        attributes=attributes,
        pseudonymised=pseudonymised,
        line=fields.line,
        value_attribute=_read_value_attribute(fields, aggregation, attributes),
        dimensions=tuple(sorted(dimensions)),
        late_max_s=fields.whole("late_max_s", least=0, most=LATE_MAX_S, default=LATE_MAX_S),
        early_max_s=fields.whole("early_max_s", least=0, most=EARLY_MAX_S, default=EARLY_MAX_S),
        cost_price=_read_cost_price(fields, aggregation, currency),
    )


def _read_cost_price(fields: Fields, aggregation: str, currency: str) -> CostPrice | None:
    """Read what usage costs the seller, in its currency where no other is named."""
    inner = fields.table("cost_price", names=_COST_PRICE_FIELDS)
    if inner is None:
        return None
    if aggregation not in ADDED_UP:
        fields.fault("cost_price", "is of a meter that does not add up", value=aggregation, bound=", ".join(ADDED_UP))
    return CostPrice(
        amount=inner.decimal("amount"),
        per=inner.whole("per", least=1, default=1),
        currency=_read_currency(inner, default=currency),
    )


def _refuse_hidden(meters: Sequence[Meter], faults: Faults) -> None:
    """Add a fault for each meter that counts or splits in the clear by an attribute that another meter hides.

    One value would be counted twice: what one of a record's meters hides is a pseudonym for all of them.
    """
    hidden = {name: meter.name for meter in reversed(meters) for name in meter.pseudonymised}
    for place, meter in enumerate(meters):
        for field, names in (("value_attribute", (meter.value_attribute,)), ("dimensions", meter.dimensions)):
            for name in sorted((hidden.keys() & set(names)) - set(meter.pseudonymised)):
                faults.add(
                    meter.line,
                    f"meters[{place}].{field}",
                    "names an attribute that another meter hides",
                    value=name,
                    bound="attributes that this meter pseudonymises too",
                    remedy=f"put it into `pseudonymise` here, or take it out of meter {hidden[name]!r}",
                )


def _read_value_attribute(fields: Fields, aggregation: str, attributes: tuple[str, ...]) -> str:
    if aggregation != "unique":
        if fields.has("value_attribute"):
            fields.fault("value_attribute", "belongs to aggregation unique only", remedy="remove it")
        return ""
    name = fields.name("value_attribute")
    if name and name not in attributes:
        fields.fault("value_attribute", "names an attribute that is not declared", value=name, remedy="declare it")
    return name


def _read_interval(fields: Fields) -> Interval:
    word = fields.scalar_text("billing_interval")
    units = tuple(unit.value for unit in IntervalUnit)
    if word is not None:
        if word not in units:
            fields.fault("billing_interval", "is not known", value=word, bound=", ".join(units))
            return Interval(unit=IntervalUnit.MONTH, count=1)
        return Interval(unit=IntervalUnit(word), count=1)
    inner = fields.table("billing_interval", names=frozenset({"unit", "count"}), required=True)
    if inner is None:
        return Interval(unit=IntervalUnit.MONTH, count=1)
    unit = IntervalUnit(inner.choice("unit", units, default="month", required=True))
    return Interval(unit=unit, count=inner.whole("count", least=1, most=100, default=1))


def _read_grace(fields: Fields) -> tuple[str, int]:
    inner = fields.table("grace", names=frozenset({"unit", "count"}))
    if inner is None:
        return ("hour", 1)
    unit = inner.choice("unit", tuple(_GRACE_MAX), default="hour", required=True)
    return (unit, inner.whole("count", least=0, most=_GRACE_MAX[unit], required=True))


def _read_plan_in_currencies(fields: Fields, *, currency: str, time_zone: str) -> tuple[Plan, ...]:
    """Give the plan in its first currency under its name, in each other one under `name/CODE`."""
    codes = fields.texts("currencies")
    for code in codes:
        if code not in CURRENCY_DIGITS:
            fields.fault("currencies", "is not a currency", value=code, bound="ISO 4217 codes like USD")
    if codes and fields.has("currency"):
        fields.fault("currency", "stands beside currencies", remedy="keep one of them")
    first = codes[0] if codes else _read_currency(fields, default=currency)
    return tuple(
        _read_plan(fields, currency=code, suffix="" if code == first else f"/{code}", time_zone=time_zone)
        for code in dict.fromkeys((first, *codes))
    )


def _read_plan(fields: Fields, *, currency: str, suffix: str, time_zone: str) -> Plan:
    fields.in_currency(currency)
    interval = _read_interval(fields)
    prices = _unique(fields, "prices", PRICE_FIELDS, read_price, lambda price: price.key, key="meter")
    features = fields.features("features")
    return Plan(
        name=fields.name("name") + suffix,
        currency=currency,
        billing_interval=interval,
        grace=_read_grace(fields),
        features=tuple(sorted(name for name, value in features.items() if value is not False)),
        fees=_unique(fields, "fees", _FEE_FIELDS, _read_fee, lambda fee: fee.name),
        prices=prices,
        limits=_read_limits(fields, time_zone=time_zone),
        line=fields.line,
        trial=_read_trial(fields),
        proration=fields.choice("proration", ("day", "second", "none"), default=""),
        commitment=fields.payable("commitment") if fields.has("commitment") else None,
        progressive_threshold=_read_threshold(fields, prices),
        alerts=read_rules(fields),
        feature_values={name: value for name, value in features.items() if not isinstance(value, bool)},
    )


def _read_trial(fields: Fields) -> TrialTerms:
    """Read a trial: `trial`, or its days alone."""
    days = fields.whole("trial_days", least=0, most=_TRIAL_DAYS_MAX)
    inner = fields.table("trial", names=_TRIAL_FIELDS)
    if inner is None:
        return TrialTerms(days=days)
    if fields.has("trial_days"):
        fields.fault("trial_days", "stands beside trial", remedy="keep `trial: {days: …}`")
    payment_method = inner.choice("payment_method", PAYMENT_METHOD, default=NOT_ASKED)
    otherwise = inner.choice("otherwise", OTHERWISE, default=CANCEL)
    if inner.has("otherwise") and payment_method == NOT_ASKED:
        inner.fault("otherwise", "needs a payment_method that is asked for", value=otherwise, bound="at_end, at_start")
    if inner.has("fallback_plan") != (otherwise == FALLBACK):
        inner.fault("fallback_plan", "goes with `otherwise: fallback`", remedy="add or remove one of them")
    return TrialTerms(
        days=inner.whole("days", least=1, most=_TRIAL_DAYS_MAX, required=True),
        payment_method=payment_method,
        otherwise=otherwise,
        fallback_plan=inner.name("fallback_plan", required=False, refers_to="plan"),
        notice_days=inner.whole("notice_days", least=0, most=NOTICE_DAYS_MAX, default=NOTICE_DAYS_DEFAULT),
    )


def _read_threshold(fields: Fields, prices: Sequence[Price]) -> Decimal | None:
    """Read the amount at which usage is invoiced within its period; prices that depend on records' order have none."""
    if not fields.has("progressive_threshold"):
        return None
    ordered = [price for price in prices if ordered_terms(price)]
    if ordered:
        fields.fault(
            "progressive_threshold",
            "stands beside a price for records in their order",
            value=ordered[0].meter,
            remedy="leave free_events and free_total out, or the threshold",
        )
    threshold = fields.payable("progressive_threshold")
    if not threshold:
        fields.fault("progressive_threshold", "is nothing", value="0", bound="above 0", remedy="leave it out")
    return threshold


def _read_fee(fields: Fields) -> Fee:
    per_seat = fields.flag("per_seat")
    return Fee(
        name=fields.text("name", required=True, length_max=128),
        # Of one seat there may be less than a minor unit.
        amount=fields.decimal("amount") if per_seat else fields.payable("amount"),
        timing=fields.choice("timing", ("arrears", "advance"), default="arrears"),
        per_seat=per_seat,
    )


def _read_limits(fields: Fields, *, time_zone: str) -> tuple[Limit, ...]:
    limits = _unique(
        fields,
        "limits",
        LIMIT_FIELDS,
        lambda inner: read_limit(inner, time_zone=time_zone),
        lambda limit: limit.name,
        aliases=LIMIT_ALIASES,
    )
    return tuple(sorted(limits, key=lambda limit: limit.name))


def _read_tenant(fields: Fields, currencies: Mapping[str, str], *, time_zone: str) -> Tenant:
    """Read a tenant; `currencies` are those of the catalogue's plans: own fees are in them where none is named."""
    tenant = fields.name("id")
    subscription = _read_subscription(fields)
    fields.in_currency(subscription.currency or currencies.get(fields.scalar_text("plan") or "", ""))
    parent = fields.name("parent", required=False, refers_to="tenant")
    if parent and parent == tenant:
        fields.fault("parent", "is the tenant itself", value=parent, remedy="name another tenant, or null")
    version = fields.text("plan_version")
    if version not in {"", "latest"}:
        fields.fault("plan_version", "is not known", value=version, bound="latest", remedy="leave it out to stay")
    plan = fields.name("plan", required=False, refers_to="plan")
    limits = _read_limits(fields, time_zone=time_zone)
    if not plan:
        for name in ("subscription", "limits", "plan_version", "fees", "prices", "alerts", "features"):
            if fields.has(name):
                fields.fault(name, "needs a plan", remedy="add `plan: …`")
    return Tenant(
        tenant=tenant,
        display_name=fields.text("name", default=tenant),
        parent=parent,
        billing_tenant=fields.name("billing_tenant", required=False, refers_to="tenant"),
        address=fields.texts("address", count_max=8),
        tax_id=fields.text("tax_id", length_max=64),
        plan=plan,
        move_to_latest=version == "latest",
        subscription=subscription,
        limits=limits,
        line=fields.line,
        lines={name: fields.line_of(name) for name in ("plan", "parent", "subscription", "billing_tenant")},
        fees=_unique(fields, "fees", _FEE_FIELDS, _read_fee, lambda fee: fee.name),
        prices=_unique(fields, "prices", PRICE_FIELDS, read_price, lambda price: price.key, key="meter"),
        alerts=read_rules(fields),
        country=read_country(fields),
        region=read_region(fields),
        features=fields.features("features"),
    )


def _read_subscription(fields: Fields) -> Subscription:
    inner = fields.table("subscription", names=_SUBSCRIPTION_FIELDS)
    if inner is None:
        return Subscription(start=None, anchor="", time_zone="")
    anchor = inner.text("anchor")
    if anchor not in {"", "start", "calendar"}:
        try:
            date.fromisoformat(anchor)
        except ValueError:
            inner.fault("anchor", "is not known", value=anchor, bound='start, calendar or a date like "2026-01-31"')
    return Subscription(
        start=inner.instant("start"),
        anchor=anchor,
        time_zone=inner.time_zone("time_zone", default=""),
        currency=_read_currency(inner, default="") if inner.has("currency") else "",
        quantity=inner.whole("quantity", least=0, most=1_000_000, default=1),
        prices_from=inner.instant("prices_from"),
    )
