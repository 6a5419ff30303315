"""Write what a catalogue or an operator changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.logos import keep_logo
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.catalogue.known import AddPlanVersion, AddSubscription, PutTenant
    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.domain.catalogue.model import Meter, Seller
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One administrative act for the audit log."""

    subject: str
    tenant_id: UUID | None
    before: JsonObject | None
    after: JsonObject | None


async def lock_catalogue(conn: Connection) -> None:
    """Wait until no other catalogue is being applied; ends with the transaction."""
    await conn.execute(sql("catalogue.lock_catalogue"))


async def put_seller(conn: Connection, seller: Seller) -> None:
    """Add or replace a seller."""
    await conn.execute(
        sql("catalogue.put_seller"),
        seller.seller_id,
        seller.name,
        seller.address,
        seller.tax_id,
        seller.email,
        seller.website,
        seller.tax_note,
        seller.payment_note,
        seller.invoice_prefix,
        seller.currency,
        seller.time_zone,
        seller.logo,
        seller.taxes.to_json(),
    )
    if seller.logo:
        await keep_logo(conn, seller.logo)


async def put_meter(conn: Connection, seller_id: str, meter: Meter, *, now: datetime) -> None:
    """Add a meter, or change its attributes, how late and early its records may be, and what it costs from now on."""
    await conn.execute(
        sql("catalogue.put_meter"),
        seller_id,
        meter.name,
        meter.unit,
        meter.aggregation,
        meter.scale,
        meter.attributes,
        meter.pseudonymised,
        meter.value_attribute,
        meter.dimensions,
        meter.late_max_s,
        meter.early_max_s,
    )
    cost = meter.cost_price
    said = (None, None, None) if cost is None else (cost.amount, cost.per, cost.currency)
    await conn.execute(sql("catalogue.put_cost_price"), meter.name, now, *said)


async def add_feature(conn: Connection, seller_id: str, name: str) -> None:
    """Add a feature."""
    await conn.execute(sql("catalogue.add_feature"), seller_id, name)


async def add_plan_version(
    conn: Connection, added: AddPlanVersion, *, plan_id: UUID, plan_version_id: UUID, now: datetime
) -> None:
    """Add the next version of a plan; version 1 adds the plan under `plan_id` as well."""
    if added.version == 1:
        await conn.execute(sql("catalogue.add_plan"), plan_id, added.seller_id, added.name)
    await conn.execute(
        sql("catalogue.add_plan_version"),
        plan_version_id,
        added.name,
        added.version,
        added.definition,
        added.digest,
        now,
    )


async def put_tenants(conn: Connection, puts: Sequence[tuple[UUID, PutTenant]], *, now: datetime) -> None:
    """Add tenants under these ids, or change the data of those that exist; parents and payers must exist after it."""
    if not puts:
        return
    tenants = [put.tenant for _, put in puts]
    await conn.execute(
        sql("catalogue.put_tenants"),
        [tenant_id for tenant_id, _ in puts],
        puts[0][1].seller_id,
        [tenant.tenant for tenant in tenants],
        [tenant.display_name for tenant in tenants],
        [tenant.tax_id for tenant in tenants],
        now,
    )
    await conn.executemany(
        sql("catalogue.relate_tenant"),
        [
            (
                tenant.tenant,
                tenant.address,
                tenant.parent,
                tenant.billing_tenant,
                list(tenant.alerts),
                tenant.country,
                tenant.region,
                tenant.features,
            )
            for tenant in tenants
        ],
    )


async def add_subscriptions(conn: Connection, added: Sequence[tuple[UUID, AddSubscription]]) -> None:
    """Subscribe tenants to the newest versions of plans."""
    await conn.executemany(
        sql("catalogue.add_subscription"),
        [
            (
                subscription_id,
                one.tenant,
                one.plan,
                one.started_at,
                one.anchor,
                one.time_zone,
                one.interval.unit.value,
                one.interval.count,
                one.limits,
                one.quantity,
                one.trial_end,
                one.trial_notice_at,
            )
            for subscription_id, one in added
        ],
    )


async def set_subscription_limits(conn: Connection, subscription_id: UUID, limits: list[JsonObject]) -> None:
    """Set a subscription's own limits."""
    await conn.execute(sql("catalogue.set_subscription_limits"), subscription_id, limits)


async def last_segment_end(conn: Connection, tenant_id: UUID, subscription_id: UUID) -> datetime | None:
    """Give the latest end of any period that usage was stamped with."""
    end: datetime | None = await conn.fetchval(sql("catalogue.last_segment_end"), tenant_id, subscription_id)
    return end


async def declare_subscriptions(conn: Connection, said: Mapping[str, JsonObject]) -> None:
    """Keep what a catalogue says of tenants' subscriptions, by wire id."""
    if said:
        await conn.execute(sql("catalogue.declare_subscriptions"), list(said), list(said.values()))


async def move_subscription(
    conn: Connection,
    tenant_id: UUID,
    subscription_id: UUID,
    *,
    plan: str,
    prices_from: datetime,
    follows: Sequence[str] | None,
) -> None:
    """Move a subscription to a plan's newest version: limits now, prices of what is used from then on.

    Later phases move as well, where `follows` is given only those of these plans.
    """
    await conn.execute(sql("catalogue.move_subscription"), subscription_id, tenant_id, plan, prices_from, follows)


async def set_tenant_state(conn: Connection, tenant_id: UUID, state: str) -> str:
    """Set a tenant's state and give the one before."""
    before: str = await conn.fetchval(sql("catalogue.set_tenant_state"), tenant_id, state)
    return before


async def put_override(
    conn: Connection, tenant_id: UUID, *, name: str, rule: JsonObject, note: str, now: datetime
) -> None:
    """Set or replace an override."""
    await conn.execute(sql("catalogue.put_override"), tenant_id, name, rule, note, now)


async def delete_override(conn: Connection, tenant_id: UUID, *, name: str) -> JsonObject | None:
    """Remove an override and give its rule; None where there was none."""
    rule: JsonObject | None = await conn.fetchval(sql("catalogue.delete_override"), tenant_id, name)
    return rule


async def add_audit(
    conn: Connection, entries: Sequence[AuditEntry], *, now: datetime, actor: str, action: str, request_id: str
) -> None:
    """Add entries to the audit log."""
    await conn.execute(
        sql("catalogue.add_audit"),
        now,
        actor,
        action,
        request_id,
        [entry.tenant_id for entry in entries],
        [entry.subject for entry in entries],
        [entry.before for entry in entries],
        [entry.after for entry in entries],
    )
