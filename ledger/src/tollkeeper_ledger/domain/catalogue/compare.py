"""Compare a catalogue with what is stored: the changes that it asks for, or why it may not ask for them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from tollkeeper_ledger.domain.catalogue.canonical import canonical_json, digest_of, plan_to_json
from tollkeeper_ledger.domain.catalogue.known import (
    AddFeature,
    AddPlanVersion,
    AddSubscription,
    Change,
    ChangeSubscription,
    Known,
    KnownSubscription,
    KnownTenant,
    PutMeter,
    PutSeller,
    PutTenant,
)
from tollkeeper_ledger.domain.catalogue.limit import limit_to_json
from tollkeeper_ledger.domain.catalogue.model import LIMITED, PRICED
from tollkeeper_ledger.domain.periods import calendar_anchor

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.catalogue.faults import Faults
    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.domain.catalogue.model import Catalogue, Meter, Plan, Seller, Tenant
    from tollkeeper_ledger.domain.periods import Interval

DEPTH_MAX = 4
"""Tenants in one chain of parents, the child itself included."""


def compare(catalogue: Catalogue, known: Known, *, now: datetime, faults: Faults) -> list[Change]:
    """Give the changes in catalogue order. Where `faults` is not empty afterwards, nothing may be written."""
    _check_references(catalogue, known, faults)
    _check_parents(catalogue, known, faults)
    _check_aggregations(catalogue, known, faults)
    _check_unique(catalogue, known, faults)
    seller = catalogue.seller or (next(iter(known.sellers.values())) if len(known.sellers) == 1 else None)
    if seller is None:
        faults.add(1, "seller", "is missing", remedy="add `seller: {id: …, name: …, currency: …}`")
        return []
    changes: list[Change] = []
    if catalogue.seller is not None:
        changes.append(_seller_change(catalogue.seller, known))
    changes.extend(_meter_change(meter, seller, known, faults) for meter in catalogue.meters)
    for name in catalogue.features:
        there = name in known.features
        write = None if there else AddFeature(seller_id=seller.seller_id, name=name)
        changes.append(Change("unchanged" if there else "create", "feature", name, "", write=write))
    versions: dict[str, _Target] = {
        name: _Target(plan.version, plan.interval, plan.currency) for name, plan in known.plans.items()
    }
    for plan in catalogue.plans:
        change = _plan_change(plan, seller, known)
        changes.append(change)
        version = change.write.version if isinstance(change.write, AddPlanVersion) else known.plans[plan.name].version
        versions[plan.name] = _Target(version, plan.billing_interval, plan.currency)
    for place, tenant in enumerate(catalogue.tenants):
        changes.append(_tenant_change(tenant, seller, known))
        if tenant.plan in versions:
            asked = _Asked(tenant=tenant, path=f"tenants[{place}]", target=versions[tenant.plan], seller=seller)
            changes.append(_subscription_change(asked, known.tenants.get(tenant.tenant), now=now, faults=faults))
    return changes


@dataclass(frozen=True, slots=True)
class _Target:
    """The newest version of a plan once the catalogue is applied."""

    version: int
    interval: Interval
    currency: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """A tenant's subscription as the catalogue asks for it."""

    tenant: Tenant
    path: str
    target: _Target
    seller: Seller

    def fault(self, faults: Faults, name: str, problem: str, *, value: str = "", remedy: str = "") -> None:
        faults.add(
            self.tenant.lines.get(name, self.tenant.line), f"{self.path}.{name}", problem, value=value, remedy=remedy
        )


def _check_references(catalogue: Catalogue, known: Known, faults: Faults) -> None:
    names: dict[str, set[str]] = {
        "meter": {meter.name for meter in catalogue.meters} | set(known.meters),
        "feature": set(catalogue.features) | set(known.features),
        "plan": {plan.name for plan in catalogue.plans} | set(known.plans),
        "tenant": {tenant.tenant for tenant in catalogue.tenants} | set(known.tenants),
    }
    for reference in catalogue.references:
        if reference.name not in names[reference.kind]:
            near = get_close_matches(reference.name, names[reference.kind], n=1)
            faults.add(
                reference.line,
                reference.path,
                f"names a {reference.kind} that does not exist",
                value=reference.name,
                remedy=f"did you mean {near[0]!r}?" if near else f"declare it under `{reference.kind}s`",
            )


def _check_unique(catalogue: Catalogue, known: Known, faults: Faults) -> None:
    meters = {**known.meters, **{meter.name: meter for meter in catalogue.meters}}
    unique = {name for name, meter in meters.items() if meter.aggregation == "unique"}
    owners = [(f"plans[{place}]", plan.line, plan.limits) for place, plan in enumerate(catalogue.plans)]
    owners += [(f"tenants[{place}]", tenant.line, tenant.limits) for place, tenant in enumerate(catalogue.tenants)]
    for path, line, limits in owners:
        for place, limit in enumerate(limits):
            if limit.meter in unique and limit.kind != "window":
                faults.add(
                    line, f"{path}.limits[{place}].kind", "is not served for a meter that counts distinct values",
                    value=limit.kind, bound="window", remedy="use kind: window",
                )  # fmt: skip


def _check_aggregations(catalogue: Catalogue, known: Known, faults: Faults) -> None:
    """Refuse limits and prices on meters whose figure is no running sum."""
    meters = {**known.meters, **{meter.name: meter for meter in catalogue.meters}}
    for reference in catalogue.references:
        if reference.kind != "meter" or reference.name not in meters:
            continue
        aggregation = meters[reference.name].aggregation
        served, who = (PRICED, "prices") if ".prices[" in reference.path else (LIMITED, "limits")
        if aggregation not in served:
            faults.add(
                reference.line,
                reference.path,
                f"names a meter of aggregation {aggregation}, which {who} do not serve",
                value=reference.name,
                bound="meters of aggregation " + ", ".join(served),
                remedy="declare a meter of such an aggregation beside it and record both",
            )


def _check_parents(catalogue: Catalogue, known: Known, faults: Faults) -> None:
    parents = {name: tenant.parent for name, tenant in known.tenants.items()}
    parents.update({tenant.tenant: tenant.parent for tenant in catalogue.tenants})
    for place, tenant in enumerate(catalogue.tenants):
        chain = [tenant.tenant]
        while (parent := parents.get(chain[-1], "")) and parent not in chain and len(chain) <= DEPTH_MAX:
            chain.append(parent)
        path = f"tenants[{place}].parent"
        if parent in chain:
            faults.add(tenant.lines["parent"], path, "makes a circle", value=" > ".join([*chain, parent]))
        elif len(chain) > DEPTH_MAX:
            faults.add(
                tenant.lines["parent"],
                path,
                "makes too long a chain",
                value=" > ".join(chain),
                bound=f"up to {DEPTH_MAX} tenants",
            )


def _seller_change(seller: Seller, known: Known) -> Change:
    before = known.sellers.get(seller.seller_id)
    if before == seller:
        return Change("unchanged", "seller", seller.seller_id, "")
    write = PutSeller(seller=seller)
    if before is None:
        return Change("create", "seller", seller.seller_id, seller.name, write=write, after=_seller_json(seller))
    old, new = _seller_json(before), _seller_json(seller)
    return Change("update", "seller", seller.seller_id, _differences(old, new), write=write, before=old, after=new)


def _seller_json(seller: Seller) -> JsonObject:
    return {name: _plain(getattr(seller, name)) for name in seller.__slots__ if name != "seller_id"}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _differences(before: JsonObject, after: JsonObject) -> str:
    names = [name for name in after if before.get(name) != after[name]]
    return ", ".join(f"{name}: {before.get(name)!r} -> {after[name]!r}" for name in names)[:500]


def _meter_json(meter: Meter) -> JsonObject:
    names = ("unit", "aggregation", "scale", "attributes", "pseudonymised", "value_attribute", "dimensions")
    return {name: _plain(getattr(meter, name)) for name in names}


def _meter_change(meter: Meter, seller: Seller, known: Known, faults: Faults) -> Change:
    before = known.meters.get(meter.name)
    new = _meter_json(meter)
    write = PutMeter(seller_id=seller.seller_id, meter=meter)
    if before is None:
        return Change("create", "meter", meter.name, f"{meter.aggregation} of {meter.unit}", write=write, after=new)
    old = _meter_json(before)
    for name in ("unit", "aggregation", "scale", "value_attribute", "dimensions"):
        if old[name] != new[name]:
            faults.add(
                meter.line,
                f"meters.{meter.name}.{name}",
                "never changes",
                value=str(new[name]),
                bound=str(old[name]),
                remedy="declare a meter with a new name",
            )
    if old == new:
        return Change("unchanged", "meter", meter.name, "")
    return Change("update", "meter", meter.name, _differences(old, new), write=write, before=old, after=new)


def _plan_change(plan: Plan, seller: Seller, known: Known) -> Change:
    definition = canonical_json(plan_to_json(plan))
    digest = digest_of(definition)
    before = known.plans.get(plan.name)
    if before is not None and before.digest == digest:
        return Change("unchanged", "plan", plan.name, f"v{before.version}")
    version = 1 if before is None else before.version + 1
    write = AddPlanVersion(
        seller_id=seller.seller_id, name=plan.name, version=version, definition=definition, digest=digest
    )
    after: JsonObject = {"version": version, "digest": digest.hex()}
    if before is None:
        return Change("create", "plan", plan.name, f"v{version} {digest.hex()[:12]}", write=write, after=after)
    detail = f"v{before.version} -> v{version} {digest.hex()[:12]}; running subscriptions keep the version they have"
    old: JsonObject = {"version": before.version, "digest": before.digest.hex()}
    return Change("version", "plan", plan.name, detail, write=write, before=old, after=after)


def _tenant_change(tenant: Tenant, seller: Seller, known: Known) -> Change:
    before = known.tenants.get(tenant.tenant)
    write = PutTenant(seller_id=seller.seller_id, tenant=tenant)
    new = _tenant_json(tenant)
    if before is None:
        return Change("create", "tenant", tenant.tenant, tenant.display_name, write=write, after=new)
    old = _tenant_json(before)
    if old == new:
        return Change("unchanged", "tenant", tenant.tenant, "")
    return Change("update", "tenant", tenant.tenant, _differences(old, new), write=write, before=old, after=new)


def _tenant_json(tenant: Tenant | KnownTenant) -> JsonObject:
    names = ("display_name", "parent", "billing_tenant", "address", "tax_id")
    return {name: _plain(getattr(tenant, name)) for name in names}


def _subscription_change(asked: _Asked, before: KnownTenant | None, *, now: datetime, faults: Faults) -> Change:
    tenant, target = asked.tenant, asked.target
    limits = [limit_to_json(limit) for limit in tenant.limits]
    if before is None or before.subscription is None:
        started_at = tenant.subscription.start or now
        time_zone = tenant.subscription.time_zone or asked.seller.time_zone
        write = AddSubscription(
            tenant=tenant.tenant,
            plan=tenant.plan,
            started_at=started_at,
            anchor=_anchor(tenant.subscription.anchor, started_at, target.interval, time_zone),
            time_zone=time_zone,
            interval=target.interval,
            limits=limits,
        )
        detail = f"{tenant.plan} v{target.version} from {started_at.isoformat()}"
        after: JsonObject = {
            "plan": tenant.plan,
            "version": target.version,
            "started_at": started_at.isoformat(),
            "limits": limits,
        }
        return Change("create", "subscription", tenant.tenant, detail, write=write, after=after)
    return _existing_subscription(asked, before.subscription, limits, faults)


def _existing_subscription(
    asked: _Asked, before: KnownSubscription, limits: list[JsonObject], faults: Faults
) -> Change:
    tenant, target = asked.tenant, asked.target
    _check_fixed(asked, before, faults)
    moves = (before.plan, before.version) != (tenant.plan, target.version) and tenant.move_to_latest
    if tenant.plan != before.plan and not tenant.move_to_latest:
        asked.fault(
            faults,
            "plan",
            f"differs from the running subscription's plan {before.plan!r}",
            value=tenant.plan,
            remedy="add `plan_version: latest` to move it, or keep the plan",
        )
    if moves and (before.interval != target.interval or before.currency != target.currency):
        asked.fault(
            faults,
            "plan",
            "has another billing interval or currency than the running subscription",
            value=tenant.plan,
            remedy="moves between intervals and currencies are not served yet",
        )
    detail: list[str] = []
    if moves:
        detail.append(
            f"{before.plan} v{before.version} -> {tenant.plan} v{target.version}: limits and features now, prices from "
            "the next period on"
        )
    elif target.version != before.version:
        detail.append(f"stays on v{before.version}; `plan_version: latest` moves it to v{target.version}")
    if limits != before.limits:
        detail.append(f"{len(limits)} limits of its own")
    if not moves and limits == before.limits:
        return Change(
            "unchanged", "subscription", tenant.tenant, "; ".join(detail) or f"{before.plan} v{before.version}"
        )
    write = ChangeSubscription(
        tenant=tenant.tenant,
        subscription_id=before.subscription_id,
        plan=tenant.plan if moves else "",
        limits=limits,
    )
    old: JsonObject = {"plan": before.plan, "version": before.version, "limits": before.limits}
    new: JsonObject = {"plan": tenant.plan, "version": target.version if moves else before.version, "limits": limits}
    return Change("update", "subscription", tenant.tenant, "; ".join(detail), write=write, before=old, after=new)


def _check_fixed(asked: _Asked, before: KnownSubscription, faults: Faults) -> None:
    """Refuse what a running subscription can't change: its periods were promised."""
    wanted = asked.tenant.subscription
    started_at = wanted.start or before.started_at
    time_zone = wanted.time_zone or before.time_zone
    anchor = _anchor(wanted.anchor, started_at, before.interval, time_zone) if wanted.anchor else before.anchor
    pairs = (
        ("start", started_at.isoformat(), before.started_at.isoformat()),
        ("time_zone", time_zone, before.time_zone),
        ("anchor", anchor.isoformat(), before.anchor.isoformat()),
    )
    for name, new, old in pairs:
        if new != old:
            asked.fault(
                faults,
                "subscription",
                f"can't change {name} of a running subscription (it is {old})",
                value=new,
                remedy=f"leave {name} out",
            )


def _anchor(anchor: str, started_at: datetime, interval: Interval, time_zone: str) -> datetime:
    match anchor:
        case "" | "start":
            return started_at.astimezone(ZoneInfo(time_zone)).replace(tzinfo=None)
        case "calendar":
            return calendar_anchor(started_at, unit=interval.unit, time_zone=time_zone)
        case _:
            return datetime.fromisoformat(anchor).replace(tzinfo=None)
