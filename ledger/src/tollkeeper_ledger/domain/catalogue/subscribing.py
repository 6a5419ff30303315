"""What a catalogue asks of a tenant's subscription, beside the one that runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from tollkeeper_ledger.domain.catalogue.canonical import list_plan
from tollkeeper_ledger.domain.catalogue.known import AddSubscription, Change, ChangeSubscription
from tollkeeper_ledger.domain.catalogue.limit import limit_to_json
from tollkeeper_ledger.domain.periods import Interval, IntervalUnit, calendar_anchor
from tollkeeper_ledger.domain.trials import NEEDS_METHOD, terms_from

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.catalogue.faults import Faults
    from tollkeeper_ledger.domain.catalogue.known import KnownSubscription, KnownTenant
    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.domain.catalogue.model import Seller, Tenant
    from tollkeeper_ledger.domain.trials import TrialTerms


@dataclass(frozen=True, slots=True)
class Target:
    """The newest version of a plan once the catalogue is applied."""

    name: str
    version: int
    interval: Interval
    currency: str
    trial: TrialTerms
    definition: bytes


def target_from(version: int, definition: bytes) -> Target:
    """Read what subscriptions need to know of a plan version."""
    plan = json.loads(definition)
    interval = plan["billing_interval"]
    return Target(
        name=plan["name"],
        version=version,
        interval=Interval(unit=IntervalUnit(interval["unit"]), count=interval["count"]),
        currency=plan["currency"],
        trial=terms_from(definition),
        definition=definition,
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A tenant's subscription as the catalogue asks for it."""

    tenant: Tenant
    path: str
    target: Target
    seller: Seller
    has_method: bool = False
    """Whether who pays for it has a payment method."""

    def fault(self, faults: Faults, name: str, problem: str, *, value: str = "", remedy: str = "") -> None:
        """Add a fault of the tenant's entry."""
        faults.add(
            self.tenant.lines.get(name, self.tenant.line), f"{self.path}.{name}", problem, value=value, remedy=remedy
        )


def subscription_change(asked: Asked, before: KnownTenant | None, *, now: datetime, faults: Faults) -> Change:
    """Give the change of a tenant's subscription that the catalogue asks for."""
    tenant, target = asked.tenant, asked.target
    limits = [limit_to_json(limit) for limit in tenant.limits]
    if before is not None and before.subscription is None and before.ended_at is not None:
        start = tenant.subscription.start
        if start is None or start < before.ended_at:
            # Else whoever was cancelled would be subscribed again, and billed again, by the next apply.
            detail = f"ended {before.ended_at.isoformat()}; a `start` from then on begins another"
            return Change("unchanged", "subscription", tenant.tenant, detail)
    if before is None or before.subscription is None:
        started_at = tenant.subscription.start or now
        time_zone = tenant.subscription.time_zone or asked.seller.time_zone
        trial_end = trial_end_of(started_at, target.trial.days, time_zone)
        if target.trial.needs_method(trial_end, now=now) and not asked.has_method:
            asked.fault(
                faults,
                "plan",
                NEEDS_METHOD,
                value=tenant.plan,
                remedy="apply the tenant without a plan, have it enter one, then name the plan",
            )
        write = AddSubscription(
            tenant=tenant.tenant,
            plan=target.name,
            started_at=started_at,
            anchor=anchor_of(tenant.subscription.anchor, trial_end or started_at, target.interval, time_zone),
            time_zone=time_zone,
            interval=target.interval,
            limits=limits,
            quantity=tenant.subscription.quantity,
            trial_end=trial_end,
            trial_asks=target.trial.asks,
            trial_notice_at=target.trial.notice_at(trial_end),
            declared=_declared(asked),
        )
        detail = f"{target.name} v{target.version} from {started_at.isoformat()}"
        after: JsonObject = {
            "plan": target.name,
            "version": target.version,
            "started_at": started_at.isoformat(),
            "limits": limits,
        }
        return Change("create", "subscription", tenant.tenant, detail, write=write, after=after)
    return _existing_subscription(asked, before, before.subscription, limits, now=now, faults=faults)


def _existing_subscription(
    asked: Asked,
    known: KnownTenant,
    before: KnownSubscription,
    limits: list[JsonObject],
    *,
    now: datetime,
    faults: Faults,
) -> Change:
    tenant, target = asked.tenant, asked.target
    declared = _declared(asked)
    said = known.declared or {}
    _check_fixed(asked, before, said, faults)
    was_moved = _was_moved(asked, before, said)
    moves = not was_moved and tenant.move_to_latest and (before.plan, before.version) != (target.name, target.version)
    if not was_moved:
        _check_plan(asked, before, moves=moves, now=now, faults=faults)
    prices_from = tenant.subscription.prices_from
    detail: list[str] = []
    if moves:
        since = "the next period on" if prices_from is None else f"{prices_from.isoformat()} on"
        detail.append(
            f"{before.plan} v{before.version} -> {target.name} v{target.version}: limits and features now, prices from "
            f"{since}"
        )
    elif was_moved:
        detail.append(f"stays on {before.plan} v{before.version}, as the ledger was told")
    elif target.version != before.version:
        detail.append(f"stays on v{before.version}; `plan_version: latest` moves it to v{target.version}")
    if limits != before.limits:
        detail.append(f"{len(limits)} limits of its own")
    if not moves and limits == before.limits and declared == known.declared:
        return Change(
            "unchanged", "subscription", tenant.tenant, "; ".join(detail) or f"{before.plan} v{before.version}"
        )
    write = ChangeSubscription(
        tenant=tenant.tenant,
        subscription_id=before.subscription_id,
        plan=target.name if moves else "",
        limits=limits,
        prices_from=prices_from if moves else None,
        declared=declared,
        follows=(before.plan, target.name) if list_plan(before.plan) == list_plan(target.name) else None,
    )
    old: JsonObject = {"plan": before.plan, "version": before.version, "limits": before.limits}
    new: JsonObject = {
        "plan": target.name if moves else before.plan,
        "version": target.version if moves else before.version,
        "limits": limits,
    }
    shown = "; ".join(detail) or f"{before.plan} v{before.version}, named by the catalogue"
    return Change("update", "subscription", tenant.tenant, shown, write=write, before=old, after=new)


def _declared(asked: Asked) -> JsonObject:
    """Give what the catalogue says of a subscription, as it says it."""
    wanted = asked.tenant.subscription
    return {
        "plan": asked.target.name,
        "start": wanted.start.isoformat() if wanted.start is not None else "",
        "anchor": wanted.anchor,
        "time_zone": wanted.time_zone,
    }


def _was_moved(asked: Asked, before: KnownSubscription, said: JsonObject) -> bool:
    """Say whether the ledger was told of another plan since the catalogue named the one that it names now."""
    named = list_plan(asked.target.name)
    return bool(said) and list_plan(said["plan"]) == named != list_plan(before.plan)


def _check_plan(asked: Asked, before: KnownSubscription, *, moves: bool, now: datetime, faults: Faults) -> None:
    """Refuse a move that was not asked for, or that no catalogue makes."""
    tenant, target = asked.tenant, asked.target
    if target.name != before.plan and not tenant.move_to_latest:
        asked.fault(
            faults,
            "plan",
            f"differs from the running subscription's plan {before.plan!r}",
            value=target.name,
            remedy="add `plan_version: latest` to move it, or keep the plan",
        )
    if moves and (before.interval != target.interval or before.currency != target.currency):
        asked.fault(
            faults,
            "plan",
            "has another billing interval or currency than the running subscription",
            value=tenant.plan,
            remedy="`tollkeeper subscription change` moves between intervals; currencies stay",
        )
    if moves and tenant.subscription.prices_from is not None:
        _check_prices_from(asked, before, tenant.subscription.prices_from, now=now, faults=faults)


def _check_fixed(asked: Asked, before: KnownSubscription, said: JsonObject, faults: Faults) -> None:
    """Refuse what a catalogue can't change of a running subscription: its periods were promised.

    What it said before as well is in order: the ledger may have been told otherwise since.
    """
    wanted = asked.tenant.subscription
    started_at = wanted.start or before.started_at
    time_zone = wanted.time_zone or before.time_zone
    anchor = anchor_of(wanted.anchor, started_at, before.interval, time_zone) if wanted.anchor else before.anchor
    declared = _declared(asked)
    pairs = (
        ("start", started_at.isoformat(), before.started_at.isoformat()),
        ("time_zone", time_zone, before.time_zone),
        ("anchor", anchor.isoformat(), before.anchor.isoformat()),
    )
    for name, new, old in pairs:
        if new != old and declared[name] and declared[name] != said.get(name):
            asked.fault(
                faults,
                "subscription",
                f"can't change {name} of a running subscription (it is {old})",
                value=new,
                remedy=f"leave {name} out",
            )


def anchor_of(anchor: str, started_at: datetime, interval: Interval, time_zone: str) -> datetime:
    """Give the wall clock time that periods are counted from; `anchor` is `start`, `calendar` or a date."""
    match anchor:
        case "" | "start":
            return started_at.astimezone(ZoneInfo(time_zone)).replace(tzinfo=None)
        case "calendar":
            return calendar_anchor(started_at, unit=interval.unit, time_zone=time_zone)
        case _:
            return datetime.fromisoformat(anchor).replace(tzinfo=None)


def _check_prices_from(
    asked: Asked, before: KnownSubscription, prices_from: datetime, *, now: datetime, faults: Faults
) -> None:
    """Refuse other prices for what is invoiced already, or used already."""
    if before.billed_until is not None and prices_from < before.billed_until:
        problem, bound = "sets a price in the past of a closed period", before.billed_until
    elif prices_from < now:
        problem, bound = "sets a price in the past", now
    else:
        return
    faults.add(
        asked.tenant.lines["subscription"],
        f"{asked.path}.subscription.prices_from",
        problem,
        value=prices_from.isoformat(),
        bound=f"from {bound.isoformat()} on",
        remedy="leave it out: the new prices begin with the next period",
    )


def trial_end_of(started_at: datetime, days: int, time_zone: str) -> datetime | None:
    """Give the end of a trial of so many days on the wall clock; None without a trial."""
    if not days:
        return None
    zone = ZoneInfo(time_zone)
    return (started_at.astimezone(zone) + timedelta(days=days)).astimezone(UTC)
