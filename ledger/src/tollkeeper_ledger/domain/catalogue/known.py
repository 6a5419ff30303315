"""What is stored already, as far as a catalogue touches it, and the writes that bring it up to date."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.domain.catalogue.model import Meter, Seller, Tenant
    from tollkeeper_ledger.domain.periods import Interval


@dataclass(frozen=True, slots=True)
class KnownPlan:
    """The newest version of a stored plan."""

    plan_id: UUID
    seller_id: str
    version: int
    plan_version_id: UUID
    digest: bytes
    definition: bytes


@dataclass(frozen=True, slots=True)
class KnownSubscription:
    """A stored subscription that runs."""

    subscription_id: UUID
    plan: str
    version: int
    plan_version_id: UUID
    currency: str
    started_at: datetime
    anchor: datetime
    time_zone: str
    interval: Interval
    limits: list[JsonObject]
    billed_until: datetime | None = None
    """End of the last closed period; None = none is closed."""


@dataclass(frozen=True, slots=True)
class KnownTenant:
    """A stored tenant; names of other tenants are wire ids, empty where there is none."""

    tenant_id: UUID
    display_name: str
    parent: str
    billing_tenant: str
    address: tuple[str, ...]
    tax_id: str
    subscription: KnownSubscription | None
    ended_at: datetime | None = None
    """When the last subscription that is over ended."""
    declared: JsonObject | None = None
    """What the catalogue said last of its subscription; None = no catalogue has named one."""
    alerts: tuple[JsonObject, ...] = ()
    """Rules on use and spend of its own."""
    country: str = ""
    region: str = ""
    features: JsonObject = field(default_factory=dict)
    """Features of its own."""
    has_method: bool = False
    """Whether it has a payment method, as a payer."""


@dataclass(frozen=True, slots=True)
class Known:
    """All that a catalogue is compared with, by name."""

    sellers: Mapping[str, Seller] = field(default_factory=dict)
    meters: Mapping[str, Meter] = field(default_factory=dict)
    features: frozenset[str] = frozenset()
    plans: Mapping[str, KnownPlan] = field(default_factory=dict)
    tenants: Mapping[str, KnownTenant] = field(default_factory=dict)
    """Those that the catalogue names, and their ancestors."""
    matching: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Plans with a version in force that have prices by an attribute's value, by attribute: of those newly hidden."""


@dataclass(frozen=True, slots=True)
class PutSeller:
    """Add or replace a seller."""

    seller: Seller


@dataclass(frozen=True, slots=True)
class PutMeter:
    """Add a meter, or change its attributes."""

    seller_id: str
    meter: Meter


@dataclass(frozen=True, slots=True)
class AddFeature:
    """Add a feature."""

    seller_id: str
    name: str


@dataclass(frozen=True, slots=True)
class AddPlanVersion:
    """Add the next version of a plan; version 1 adds the plan as well."""

    seller_id: str
    name: str
    version: int
    definition: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class PutTenant:
    """Add or replace a tenant's own data."""

    seller_id: str
    tenant: Tenant


@dataclass(frozen=True, slots=True)
class AddSubscription:
    """Subscribe a tenant to the newest version of a plan."""

    tenant: str
    plan: str
    started_at: datetime
    anchor: datetime
    time_zone: str
    interval: Interval
    limits: list[JsonObject]
    quantity: int = 1
    trial_end: datetime | None = None
    """None = without a trial."""
    trial_asks: bool = False
    """The trial's end depends on a payment method."""
    trial_notice_at: datetime | None = None
    """When the trial's end is told of; None = not at all."""
    declared: JsonObject | None = None
    """What the catalogue says of it, to be kept; None = the ledger was told of it."""


@dataclass(frozen=True, slots=True)
class ChangeSubscription:
    """Set a subscription's own limits; move it to the newest version of `plan` where that is named."""

    tenant: str
    subscription_id: UUID
    plan: str
    limits: list[JsonObject]
    prices_from: datetime | None = None
    """None = with the next period."""
    declared: JsonObject | None = None
    """What the catalogue says of it, to be kept."""
    follows: tuple[str, ...] | None = None
    """Plans whose later phases move as well, others stay; None = all move."""


Write: TypeAlias = PutSeller | PutMeter | AddFeature | AddPlanVersion | PutTenant | AddSubscription | ChangeSubscription


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a catalogue changes, or leaves; `write` is None for what stays."""

    action: str
    kind: str
    name: str
    detail: str
    write: Write | None = None
    before: JsonObject | None = None
    after: JsonObject | None = None
