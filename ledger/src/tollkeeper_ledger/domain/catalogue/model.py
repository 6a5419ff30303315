"""What a catalogue declares, as values that are right in themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import plain
from tollkeeper_ledger.domain.seller_taxes import NO_TAXES, SellerTaxes
from tollkeeper_ledger.domain.trials import NO_TRIAL, TrialTerms
from tollkeeper_ledger.domain.usage import EARLINESS_MAX_US, LATENESS_MAX_US, SECOND_US

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from tollkeeper_ledger.domain.catalogue.limit import JsonObject, Limit
    from tollkeeper_ledger.domain.catalogue.price import Price
    from tollkeeper_ledger.domain.catalogue.reader import Reference
    from tollkeeper_ledger.domain.features import FeatureValue
    from tollkeeper_ledger.domain.periods import Interval

FORMAT_VERSION = 1


LIMITED = ("sum", "unique")
"""Aggregations of meters that limits may name."""
ADDED_UP = ("sum", "count")
"""Aggregations of meters that alerts on a billing period may name."""
PRICED = ("sum", "count", "unique")
"""Aggregations of meters that prices may name: what adds up over segments, and what is counted over all of them."""


@dataclass(frozen=True, slots=True)
class Seller:
    """Who sells and invoices."""

    seller_id: str
    name: str
    address: tuple[str, ...]
    tax_id: str
    email: str
    website: str
    tax_note: str
    payment_note: str
    invoice_prefix: str
    currency: str
    time_zone: str
    logo: str = ""
    """SVG; empty: the name alone stands on invoices."""
    taxes: SellerTaxes = NO_TAXES
    """Of payers that have none of their own."""


LATE_MAX_S = LATENESS_MAX_US // SECOND_US
"""How long before its receive time an event may lie at most: ids are kept for so long and 14 days more."""
EARLY_MAX_S = EARLINESS_MAX_US // SECOND_US
"""How long after its receive time an event may lie at most."""


@dataclass(frozen=True, slots=True)
class CostPrice:
    """What usage costs the seller."""

    amount: Decimal
    """In major units, at least 0."""
    per: int
    """For so many whole units."""
    currency: str

    def to_json(self) -> JsonObject:
        """Give it as audit entries and comparisons show it."""
        return {"amount": plain(self.amount), "per": self.per, "currency": self.currency}


@dataclass(frozen=True, slots=True)
class Meter:
    """What is counted."""

    name: str
    unit: str
    aggregation: str
    scale: int
    attributes: tuple[str, ...]
    pseudonymised: tuple[str, ...]
    line: int
    value_attribute: str = ""
    """Aggregation `unique`: the attribute whose distinct values are counted; empty for all others."""
    dimensions: tuple[str, ...] = ()
    """Attributes that split its rollups."""
    late_max_s: int = LATE_MAX_S
    """How long before its receive time an event may lie."""
    early_max_s: int = EARLY_MAX_S
    """How long after its receive time an event may lie."""
    cost_price: CostPrice | None = None
    """None: nobody says what it costs."""


@dataclass(frozen=True, slots=True)
class Fee:
    """A flat amount per period."""

    name: str
    amount: Decimal
    timing: str
    """`arrears`: after the period; `advance`: before it."""
    per_seat: bool = False
    """Multiplied by the subscription's quantity."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Rate card, limits and features together."""

    name: str
    currency: str
    billing_interval: Interval
    grace: tuple[str, int]
    """Unit and count of the time that a period stays open after its end."""
    features: tuple[str, ...]
    fees: tuple[Fee, ...]
    prices: tuple[Price, ...]
    limits: tuple[Limit, ...]
    line: int
    trial: TrialTerms = NO_TRIAL
    proration: str = ""
    """`day`, `second` or `none`; empty = by day, of hourly plans by second."""
    commitment: Decimal | None = None
    """What a period costs at least, in major units."""
    progressive_threshold: Decimal | None = None
    """Usage is invoiced within the period whenever so much of it is not yet invoiced, in major units before tax."""
    alerts: tuple[JsonObject, ...] = ()
    """Rules on use and spend of a billing period."""
    feature_values: dict[str, FeatureValue] = field(default_factory=dict)
    """Of those features that have one."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """When a tenant's subscription begins and how its periods lie; what is left out is None or empty."""

    start: datetime | None
    anchor: str
    """`start`, `calendar` or a date."""
    time_zone: str
    currency: str = ""
    """Empty = the plan's first."""
    quantity: int = 1
    """Seats."""
    prices_from: datetime | None = None
    """When a move to other prices is in force; None = with the next period."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who is limited and billed."""

    tenant: str
    display_name: str
    parent: str
    billing_tenant: str
    address: tuple[str, ...]
    tax_id: str
    plan: str
    move_to_latest: bool
    """`plan_version: latest`: an existing subscription moves to the plan's newest version."""
    subscription: Subscription
    limits: tuple[Limit, ...]
    line: int
    lines: dict[str, int]
    """Lines of the fields that faults are named by later."""
    fees: tuple[Fee, ...] = ()
    """Instead of the plan's of the same name, or beside them."""
    prices: tuple[Price, ...] = ()
    """Instead of the plan's for the same meter and match, or beside them."""
    alerts: tuple[JsonObject, ...] = ()
    """Instead of the plan's about the same, or beside them."""
    country: str = ""
    """Where it is taxed, ISO 3166; empty = where its seller is."""
    region: str = ""
    features: dict[str, FeatureValue] = field(default_factory=dict)
    """Instead of the plan's, or beside them; False = not there."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A whole file, right in itself; names that it refers to may still be missing."""

    seller: Seller | None
    meters: tuple[Meter, ...]
    features: tuple[str, ...]
    plans: tuple[Plan, ...]
    tenants: tuple[Tenant, ...]
    references: tuple[Reference, ...]
