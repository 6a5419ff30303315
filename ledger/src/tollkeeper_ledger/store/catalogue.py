"""Read what is declared, for comparison and for listings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.catalogue.compare import newly_hidden
from tollkeeper_ledger.domain.catalogue.known import Known, KnownPlan, KnownSubscription, KnownTenant
from tollkeeper_ledger.domain.catalogue.model import CostPrice, Meter, Seller
from tollkeeper_ledger.domain.periods import Interval, IntervalUnit
from tollkeeper_ledger.domain.seller_taxes import seller_taxes_from
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.store.pool import Connection, Row

EVERYTHING = 1_000_000
"""Bound of listings that are read whole: meters and plans of an installation."""


def _interval(row: Mapping[str, Any]) -> Interval:
    return Interval(unit=IntervalUnit(row["interval_unit"]), count=row["interval_count"])


async def read_known(conn: Connection, wire_ids: Collection[str], declared: Sequence[Meter]) -> Known:
    """Read all sellers, meters, features, plans, and the named tenants with their ancestors.

    `declared`: the catalogue's meters; where one hides what it did not, the plans in force that match it are read too.
    """
    sellers = [_seller(dict(row)) for row in await conn.fetch(sql("catalogue.sellers"))]
    features = await conn.fetch(sql("catalogue.features"))
    tenants = await conn.fetch(sql("catalogue.tenants_named"), sorted(wire_ids))
    meters = {meter.name: meter for meter in await read_meters(conn, after="", count_max=EVERYTHING)}
    hidden = {name for meter in declared for name in newly_hidden(meter, meters.get(meter.name))}
    return Known(
        sellers={seller.seller_id: seller for seller in sellers},
        meters=meters,
        features=frozenset(row["name"] for row in features),
        plans={row["name"]: _known_plan(row) for row in await read_plans(conn, after="", count_max=EVERYTHING)},
        tenants={row["wire_id"]: _known_tenant(dict(row)) for row in tenants},
        matching=await _plans_matching(conn, hidden) if hidden else {},
    )


async def _plans_matching(conn: Connection, attributes: Collection[str]) -> dict[str, frozenset[str]]:
    """Give the plans in force that have prices by values of these attributes, with their versions, by attribute."""
    rows = await conn.fetch(sql("catalogue.plans_matching"), sorted(attributes))
    return {row["attribute"]: frozenset(row["plans"]) for row in rows}


def _seller(row: Mapping[str, Any]) -> Seller:
    return Seller(**{**row, "address": tuple(row["address"]), "taxes": seller_taxes_from(row["taxes"])})


def _known_plan(row: Mapping[str, Any]) -> KnownPlan:
    return KnownPlan(
        plan_id=row["plan_id"],
        seller_id=row["seller_id"],
        version=row["version"],
        plan_version_id=row["plan_version_id"],
        digest=row["digest"],
        definition=row["definition"],
    )


def _known_tenant(row: Mapping[str, Any]) -> KnownTenant:
    subscription = None
    if row["subscription_id"] is not None:
        subscription = KnownSubscription(
            subscription_id=row["subscription_id"],
            plan=row["plan"],
            version=row["version"],
            plan_version_id=row["plan_version_id"],
            currency=json.loads(row["definition"])["currency"],
            started_at=row["started_at"],
            anchor=row["anchor"],
            time_zone=row["time_zone"],
            interval=_interval(row),
            limits=row["limits"],
            billed_until=row["billed_until"] if row["billed_until"] > row["started_at"] else None,
        )
    return KnownTenant(
        tenant_id=row["tenant_id"],
        display_name=row["display_name"],
        parent=row["parent"],
        billing_tenant=row["billing_tenant"],
        address=tuple(row["address"]),
        tax_id=row["tax_id"],
        country=row["country"],
        region=row["region"],
        features=row["features"],
        subscription=subscription,
        ended_at=row["ended_at"],
        declared=row["declared"],
        alerts=tuple(row["alerts"]),
        has_method=row["has_method"],
    )


async def read_meters(conn: Connection, *, after: str, count_max: int) -> list[Meter]:
    """Read meters in name order."""
    rows = await conn.fetch(sql("catalogue.meters"), after, count_max)
    return [
        Meter(
            name=row["name"],
            unit=row["unit"],
            aggregation=row["aggregation"],
            scale=row["scale"],
            attributes=tuple(row["attributes"]),
            pseudonymised=tuple(row["pseudonymised"]),
            value_attribute=row["value_attribute"],
            dimensions=tuple(row["dimensions"]),
            late_max_s=row["late_max_s"],
            early_max_s=row["early_max_s"],
            cost_price=_cost_price(row),
            line=0,
        )
        for row in rows
    ]


def _cost_price(row: Row) -> CostPrice | None:
    if row["cost_amount"] is None:
        return None
    return CostPrice(amount=row["cost_amount"], per=row["cost_per"], currency=row["cost_currency"])


async def read_plans(conn: Connection, *, after: str, count_max: int) -> Sequence[Mapping[str, Any]]:
    """Read plans with their newest versions in name order."""
    rows = await conn.fetch(sql("catalogue.plans"), after, count_max)
    return [dict(row) for row in rows]


async def read_tenants(
    conn: Connection, *, after: str = "", count_max: int = 1, only: str | None = None
) -> Sequence[Mapping[str, Any]]:
    """Read tenants in wire id order, or the one that is named."""
    rows = await conn.fetch(sql("catalogue.tenants"), after, count_max, only)
    return [dict(row) for row in rows]


async def read_subscriptions(
    conn: Connection, *, after: tuple[str, UUID], count_max: int, only: str | None, state: str | None
) -> Sequence[Mapping[str, Any]]:
    """Read subscriptions in order of wire id."""
    rows = await conn.fetch(sql("catalogue.subscriptions"), *after, count_max, only, state)
    return [dict(row) for row in rows]


async def find_tenant_ids(conn: Connection, wire_ids: Collection[str]) -> dict[str, UUID]:
    """Give the internal ids of the tenants that exist."""
    rows = await conn.fetch(sql("catalogue.tenant_ids"), sorted(wire_ids))
    return {row["wire_id"]: row["tenant_id"] for row in rows}


async def read_override(conn: Connection, tenant_id: UUID, *, name: str) -> JsonObject | None:
    """Read an override's stored entry; None where there is none."""
    entry: JsonObject | None = await conn.fetchval(sql("catalogue.override"), tenant_id, name)
    return entry
