"""Compare a catalogue with what is stored: the changes that it asks for, or why it may not ask for them."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.catalogue.canonical import (
    canonical_json,
    digest_of,
    list_plan,
    plan_to_json,
    with_own_prices,
)
from tollkeeper_ledger.domain.catalogue.known import (
    AddFeature,
    AddPlanVersion,
    Change,
    Known,
    KnownTenant,
    PutMeter,
    PutSeller,
    PutTenant,
)
from tollkeeper_ledger.domain.catalogue.model import ADDED_UP, LIMITED, PRICED
from tollkeeper_ledger.domain.catalogue.price import ordered_terms
from tollkeeper_ledger.domain.catalogue.subscribing import Asked, Target, subscription_change, target_from

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from tollkeeper_ledger.domain.catalogue.faults import Faults
    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.domain.catalogue.model import Catalogue, Meter, Seller, Tenant

DEPTH_MAX = 4
"""Tenants in one chain of parents, the child itself included."""


def compare(catalogue: Catalogue, known: Known, *, now: datetime, faults: Faults) -> list[Change]:
    """Give the changes in catalogue order. Where `faults` is not empty afterwards, nothing may be written."""
    _check_references(catalogue, known, faults)
    _check_parents(catalogue, known, faults)
    _check_aggregations(catalogue, known, faults)
    _check_unique(catalogue, known, faults)
    _check_matches(catalogue, known, faults)
    _check_hiding(catalogue, known, faults)
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
    targets = {name: target_from(plan.version, plan.definition) for name, plan in known.plans.items()}
    for plan in catalogue.plans:
        definition = canonical_json(plan_to_json(plan))
        change, targets[plan.name] = _plan_change(plan.name, definition, seller, known)
        changes.append(change)
    _check_fallbacks(catalogue, targets, faults)
    for place, tenant in enumerate(catalogue.tenants):
        changes.append(_tenant_change(tenant, seller, known))
        if tenant.plan not in targets:
            continue
        target = _target_of(tenant, f"tenants[{place}]", targets, faults)
        if tenant.fees or tenant.prices:
            _check_own_prices(tenant, f"tenants[{place}]", target, faults)
            own = with_own_prices(json.loads(target.definition), tenant)
            change, target = _plan_change(own["name"], canonical_json(own), seller, known)
            changes.append(change)
        payer = known.tenants.get(tenant.billing_tenant or tenant.tenant)
        has_method = payer is not None and payer.has_method
        asked = Asked(tenant=tenant, path=f"tenants[{place}]", target=target, seller=seller, has_method=has_method)
        changes.append(subscription_change(asked, known.tenants.get(tenant.tenant), now=now, faults=faults))
    return changes


def _target_of(tenant: Tenant, path: str, targets: Mapping[str, Target], faults: Faults) -> Target:
    """Find the plan in the currency that the tenant pays in."""
    target, currency = targets[tenant.plan], tenant.subscription.currency
    if not currency or currency == target.currency:
        return target
    if f"{tenant.plan}/{currency}" not in targets:
        faults.add(
            tenant.lines["subscription"],
            f"{path}.subscription.currency",
            f"the plan {tenant.plan!r} has no prices in it",
            value=currency,
            remedy=f"add it to the plan's `currencies`, or pay in {target.currency}",
        )
        return target
    return targets[f"{tenant.plan}/{currency}"]


def _check_fallbacks(catalogue: Catalogue, targets: Mapping[str, Target], faults: Faults) -> None:
    """Refuse plans that trials fall back to in another currency or interval: periods would be cut."""
    for place, plan in enumerate(catalogue.plans):
        name = plan.trial.fallback_plan
        found = [targets[one] for one in (name, f"{name}/{plan.currency}") if one in targets]
        if found and not any((one.currency, one.interval) == (plan.currency, plan.billing_interval) for one in found):
            faults.add(
                plan.line,
                f"plans[{place}].trial.fallback_plan",
                "has another currency or billing interval",
                value=name,
                bound=f"{plan.currency}, every {plan.billing_interval.count} {plan.billing_interval.unit.value}",
                remedy="name a plan that has the same",
            )


def _check_own_prices(tenant: Tenant, path: str, target: Target, faults: Faults) -> None:
    """Refuse own prices that depend on the order of records beside a plan that is invoiced within its periods."""
    if "progressive_threshold" not in json.loads(target.definition):
        return
    for place, price in enumerate(tenant.prices):
        for term in ordered_terms(price):
            faults.add(
                price.line,
                f"{path}.prices[{place}].{term}",
                f"stands beside the progressive_threshold of the plan {target.name!r}",
                value=price.meter,
                remedy=f"leave {term} out, or give the tenant a plan without a threshold",
            )


def _meters_after(catalogue: Catalogue, known: Known) -> dict[str, Meter]:
    """Give all meters by name as they are once the catalogue is in force."""
    return {**known.meters, **{meter.name: meter for meter in catalogue.meters}}


def _check_references(catalogue: Catalogue, known: Known, faults: Faults) -> None:
    meters = _meters_after(catalogue, known)
    names: dict[str, set[str]] = {
        "dimension": {f"{name}.{dimension}" for name, meter in meters.items() for dimension in meter.dimensions},
        "meter": set(meters),
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
    meters = _meters_after(catalogue, known)
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
    meters = _meters_after(catalogue, known)
    for reference in catalogue.references:
        if reference.kind == "dimension" and _counts_values(meters, reference.name):
            faults.add(
                reference.line,
                reference.path,
                "splits distinct values, which prices do not serve",
                value=reference.name,
                remedy="price the meter as a whole",
            )
        if reference.kind != "meter" or reference.name not in meters:
            continue
        aggregation = meters[reference.name].aggregation
        served, who = _served(reference.path)
        if aggregation not in served:
            faults.add(
                reference.line,
                reference.path,
                f"names a meter of aggregation {aggregation}, which {who} do not serve",
                value=reference.name,
                bound="meters of aggregation " + ", ".join(served),
                remedy="declare a meter of such an aggregation beside it and record both",
            )


def _check_matches(catalogue: Catalogue, known: Known, faults: Faults) -> None:
    """Refuse prices for a value of an attribute that a meter hides: usage has pseudonyms there, which never match."""
    meters = _meters_after(catalogue, known)
    hidden = {name for meter in meters.values() for name in meter.pseudonymised}
    places = {f"{meter}.{name}" for meter in meters for name in hidden}
    for reference in catalogue.references:
        if reference.kind == "dimension" and reference.path.endswith(".match") and reference.name in places:
            faults.add(
                reference.line,
                reference.path,
                "is for a value of an attribute that is hidden",
                value=reference.name,
                bound="attributes that no meter pseudonymises",
                remedy="match another attribute, or leave it to `group_by`",
            )


def _check_hiding(catalogue: Catalogue, known: Known, faults: Faults) -> None:
    """Refuse to hide an attribute by whose values a plan has prices that stays in force."""
    matching = {name: set(plans) for name, plans in known.matching.items()}
    replaced = {plan.name for plan in catalogue.plans}
    for name, plan in known.plans.items():
        # Nobody is subscribed anew to prices that a tenant has of its own.
        if name not in replaced and list_plan(name) == name:
            for price in json.loads(plan.definition)["prices"]:
                for attribute in price.get("match", ()):
                    matching.setdefault(attribute, set()).add(f"{name} v{plan.version}")
    for place, meter in enumerate(catalogue.meters):
        for attribute in newly_hidden(meter, known.meters.get(meter.name)):
            if attribute in matching:
                faults.add(
                    meter.line,
                    f"meters[{place}].pseudonymise",
                    "hides an attribute that prices in force match",
                    value=attribute,
                    bound="attributes that no price matches; these do: " + ", ".join(sorted(matching[attribute])[:5]),
                    remedy="change these plans and move their subscriptions first, or hide it in a new meter",
                )


def newly_hidden(meter: Meter, before: Meter | None) -> list[str]:
    """Give the attributes that a meter hides and did not before, in order."""
    return sorted(set(meter.pseudonymised) - set(before.pseudonymised if before else ()))


def _served(path: str) -> tuple[tuple[str, ...], str]:
    """Give the aggregations that whoever names a meter may name, and who that is."""
    if ".prices[" in path or ".taxes[" in path:
        return PRICED, "prices"
    return (ADDED_UP, "alerts") if ".alerts[" in path else (LIMITED, "limits")


def _counts_values(meters: Mapping[str, Meter], dimension: str) -> bool:
    return any(meter.aggregation == "unique" and dimension.startswith(f"{name}.") for name, meter in meters.items())


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
    shown = {name: _plain(getattr(seller, name)) for name in seller.__slots__ if name not in {"seller_id", "taxes"}}
    return {**shown, "taxes": seller.taxes.to_json()}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _differences(before: JsonObject, after: JsonObject) -> str:
    names = [name for name in after if before.get(name) != after[name]]
    return ", ".join(f"{name}: {before.get(name)!r} -> {after[name]!r}" for name in names)[:500]


_METER_KEPT = ("unit", "aggregation", "scale", "value_attribute", "dimensions")
"""What of a meter never changes."""


def _meter_json(meter: Meter) -> JsonObject:
    names = (*_METER_KEPT, "attributes", "pseudonymised", "late_max_s", "early_max_s")
    cost = None if meter.cost_price is None else meter.cost_price.to_json()
    return {**{name: _plain(getattr(meter, name)) for name in names}, "cost_price": cost}


def _meter_change(meter: Meter, seller: Seller, known: Known, faults: Faults) -> Change:
    before = known.meters.get(meter.name)
    new = _meter_json(meter)
    write = PutMeter(seller_id=seller.seller_id, meter=meter)
    if before is None:
        return Change("create", "meter", meter.name, f"{meter.aggregation} of {meter.unit}", write=write, after=new)
    old = _meter_json(before)
    for name in _METER_KEPT:
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


def _plan_change(name: str, definition: bytes, seller: Seller, known: Known) -> tuple[Change, Target]:
    """Give the change that a plan's definition asks for, and the version that is the newest then."""
    digest = digest_of(definition)
    before = known.plans.get(name)
    if before is not None and before.digest == digest:
        return Change("unchanged", "plan", name, f"v{before.version}"), target_from(before.version, definition)
    version = 1 if before is None else before.version + 1
    write = AddPlanVersion(seller_id=seller.seller_id, name=name, version=version, definition=definition, digest=digest)
    target = target_from(version, definition)
    after: JsonObject = {"version": version, "digest": digest.hex()}
    if before is None:
        detail = f"v{version} {digest.hex()[:12]}"
        return Change("create", "plan", name, detail, write=write, after=after), target
    detail = f"v{before.version} -> v{version} {digest.hex()[:12]}; running subscriptions keep the version they have"
    old: JsonObject = {"version": before.version, "digest": before.digest.hex()}
    return Change("version", "plan", name, detail, write=write, before=old, after=after), target


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
    names = ("display_name", "parent", "billing_tenant", "address", "tax_id", "country", "region")
    shown = {name: _plain(getattr(tenant, name)) for name in names}
    own: JsonObject = {"alerts": list(tenant.alerts), "features": tenant.features}
    return shown | {name: said for name, said in own.items() if said}
