"""Tell of use and spend that reach thresholds, once each.

Whoever stores use leaves a note in the same transaction. Looking takes the note, and adds what it finds under a unique
constraint together with its mails, in one transaction: a look that dies leaves the note to the next one, and two that
see the same add it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.alerts import Figure, is_mailed, rules_in_force, spent_minor, thresholds_of
from tollkeeper_ledger.domain.invoice import digests_named, inputs_to_bytes, rate_and_sum
from tollkeeper_ledger.domain.money import Currency, major
from tollkeeper_ledger.domain.rating.plan_bytes import plan_of
from tollkeeper_ledger.services.billing_facts import read_plans_of
from tollkeeper_ledger.services.close_inputs import PeriodAsked, gather
from tollkeeper_ledger.services.mail_queue import queue_alerts
from tollkeeper_ledger.services.webhooks import queue_webhooks
from tollkeeper_ledger.store import alerts as store
from tollkeeper_ledger.store.billing_closes import read_definitions_by_digest
from tollkeeper_ledger.store.billing_segments import read_schedules
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.faults import TIES
from tollkeeper_ledger.store.pool import connection, transaction
from tollkeeper_ledger.store.tenants import load_tenants
from tollkeeper_ledger.store.violations import note_violations

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.domain.alerts import Json
    from tollkeeper_ledger.domain.invoice import CloseInputs
    from tollkeeper_ledger.domain.periods import Period
    from tollkeeper_ledger.store.alerts import Alert, WindowUse
    from tollkeeper_ledger.store.pool import Connection, Pool
    from tollkeeper_ledger.store.tenants import TenantView

NOTES_AT_ONCE = 200
"""Notes that one transaction takes; one stands for a transaction that stored use."""

WINDOWS_MAX = 1_000
"""Windows of a tenant that a check looks at."""

_OPEN_PERIODS = 2


@dataclass(frozen=True, slots=True)
class Alerter:
    """Looks at what rose. Any number may do so at once."""

    pool: Pool
    log: FilteringBoundLogger

    async def run_all(self) -> int:
        """Look at all that rose; give how many alerts were added. What can't be rated is left to its close."""
        count = 0
        while (found := await self._windows()) is not None:
            count += found
        while await self._note_tenants():
            pass
        while (found := await self._due()) is not None:
            count += found
        return count

    async def _windows(self) -> int | None:
        async with transaction(self.pool) as conn:
            window_ids = await store.take_windows(conn, count_max=NOTES_AT_ONCE)
            if not window_ids:
                return None
            uses = await store.read_window_uses(conn, window_ids)
            now = await ledger_now(conn)
            views = await _views_of(conn, uses)
            await _note_violations(conn, [use for use in uses if use.over > 0], views, now=now)
            alerts = await tell(conn, window_figures(uses, views), now=now)
        self._say(alerts)
        return len(alerts)

    async def _note_tenants(self) -> bool:
        async with transaction(self.pool) as conn:
            tenant_ids = await store.take_tenants(conn, count_max=NOTES_AT_ONCE)
            if tenant_ids:
                await store.mark_due(conn, (await _rules_of(conn, tenant_ids)).keys())
        return bool(tenant_ids)

    async def _due(self) -> int | None:
        tenant_id: UUID | None = None
        try:
            async with connection(self.pool) as conn, conn.transaction(isolation="repeatable_read"):
                tenant_id = await store.take_due(conn)
                if tenant_id is None:
                    return None
                now = await ledger_now(conn)
                alerts = await tell(conn, await period_figures(conn, tenant_id, now=now), now=now)
        except TIES:
            # Marked again, or told of, by somebody else in this moment: its mark stands and is taken anew.
            return 0
        except Exception:
            if tenant_id is None:
                raise
            # One tenant's trouble holds up no other: the others come first from now on.
            self.log.exception("alerts of a tenant can't be looked at", tenant=str(tenant_id))
            async with transaction(self.pool) as conn:
                await store.note_failure(conn, tenant_id)
            return None
        self._say(alerts)
        return len(alerts)

    def _say(self, alerts: Sequence[Alert]) -> None:
        for one in alerts:
            figure = one.figure
            self.log.warning(
                "threshold reached",
                alert=str(one.alert_id),
                tenant=str(figure.tenant_id),
                kind=figure.kind,
                subject=figure.subject,
                threshold=one.threshold,
                value=str(figure.value),
                base=str(figure.base),
            )


async def tell(conn: Connection, figures: Sequence[Figure], *, now: datetime) -> list[Alert]:
    """Add alerts on what is reached and queue their mails and webhooks; give those that are new."""
    alerts = await store.add_alerts(conn, figures, now=now)
    mailed = [one for one in alerts if one.figure.is_mailed]
    payers = {row["tenant_id"]: row for row in await store.read_payers(conn, {one.figure.tenant_id for one in mailed})}
    told = [(payers[one.figure.tenant_id], one.alert_id) for one in mailed if one.figure.tenant_id in payers]
    await queue_webhooks(conn, alerts, alert_told)
    await queue_alerts(conn, [(payer["payer_id"], payer["email"], alert_id) for payer, alert_id in told])
    return alerts


async def _views_of(conn: Connection, uses: Sequence[WindowUse]) -> dict[UUID, TenantView]:
    return {view.tenant_id: view for view in await load_tenants(conn, tenant_ids={use.tenant_id for use in uses})}


async def _note_violations(
    conn: Connection, uses: Sequence[WindowUse], views: Mapping[UUID, TenantView], *, now: datetime
) -> None:
    limits = [views[use.tenant_id].limit(use.limit) for use in uses]
    enforcements = ["" if limit is None else limit.rule.enforcement.value for limit in limits]
    await note_violations(conn, list(zip(uses, enforcements, strict=True)), now=now)


def window_figures(uses: Sequence[WindowUse], views: Mapping[UUID, TenantView]) -> list[Figure]:
    """Give how far windows are, of limits that are still in force and have thresholds. `views`: their tenants."""
    figures = []
    for use in uses:
        limit = views[use.tenant_id].limit(use.limit, use.start_us)
        at = () if limit is None else thresholds_of(limit.rule)
        if limit is not None and at:
            figures.append(store.window_figure(use, at, is_mailed=is_mailed(limit.rule)))
    return figures


async def _rules_of(conn: Connection, tenant_ids: Collection[UUID]) -> dict[UUID, list[Json]]:
    """Give the rules in force of those tenants that have some. Most have none, and cost nothing beyond their ids."""
    plans = {
        row["plan_version_id"]: plan_of(row["definition"]).get("alerts", ())
        for row in await store.read_running_plans(conn, tenant_ids)
    }
    telling = [plan_version_id for plan_version_id, rules in plans.items() if rules]
    found = {
        row["tenant_id"]: rules_in_force(plans.get(row["plan_version_id"], ()), row["alerts"])
        for row in await store.read_rules(conn, tenant_ids, telling)
    }
    return {tenant_id: rules for tenant_id, rules in found.items() if rules}


async def period_figures(conn: Connection, tenant_id: UUID, *, now: datetime) -> list[Figure]:
    """Give how far use and spend of a tenant's open billing periods are, the newest two; changes nothing.

    `conn` is in a REPEATABLE READ transaction. A period that can't be rated has no figures: its close names why.
    """
    rules = (await _rules_of(conn, [tenant_id])).get(tenant_id)
    schedules = [one for one in await read_schedules(conn, [tenant_id]) if one.is_open]
    if not rules or not schedules:
        return []
    schedule = schedules[-1]
    found = (await read_plans_of(conn, [schedule]))[schedule.subscription_id]
    begun: list[Period] = []
    for period in schedule.open_periods():
        if period.start > now:
            break
        begun = [*begun, period][-_OPEN_PERIODS:]
    figures: list[Figure] = []
    for period in begun:
        gathered = (await gather(conn, [PeriodAsked(found, period)], at=now))[schedule.subscription_id]
        if isinstance(gathered, ValueError):
            continue
        currency = Currency.from_code(found.terms_at(period.start)["currency"])
        for rule in rules:
            is_spend = rule["kind"] == "spend"
            value = await _spend(conn, gathered.inputs, currency) if is_spend else _use(gathered.inputs, rule["meter"])
            if value is not None:
                figure = Figure(
                    tenant_id=tenant_id,
                    kind=rule["kind"],
                    subject=currency.code if is_spend else rule["meter"],
                    span=f"{schedule.subscription_id}/{period.start.isoformat()}",
                    starts_at=period.start,
                    ends_at=period.end,
                    base=Decimal(rule["amount"]),
                    value=value,
                    at=tuple(rule["at"]),
                )
                figures.append(figure)
    return figures


def _use(inputs: CloseInputs, meter: str) -> Decimal:
    """Give a meter's units in a period; what came too late for an earlier one is not of it."""
    totals = [total for segment in inputs.segments for total in segment.totals]
    return Decimal(sum(total.units for total in totals if total.meter == meter))


async def _spend(conn: Connection, inputs: CloseInputs, currency: Currency) -> Decimal | None:
    """Give what a period costs by now, before credit and tax, invoiced or not; None where it can't be rated."""
    stored = inputs_to_bytes(inputs)
    try:
        sums = rate_and_sum(stored, await read_definitions_by_digest(conn, digests_named(stored))).sums
    except ValueError:
        return None
    return Decimal(major(spent_minor(sums["lines"], is_contained=inputs.billing["tax_mode"] == "inclusive"), currency))


async def check_alerts(pool: Pool, tenant_id: UUID, *, notify: bool) -> list[tuple[Figure, set[str]]]:
    """Give how far a tenant's windows and billing periods are, each with the thresholds that were told of.

    `notify` tells first of what is reached.
    """
    async with connection(pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        now = await ledger_now(conn)
        window_ids = await store.read_open_windows(conn, tenant_id, now=now, count_max=WINDOWS_MAX)
        uses = await store.read_window_uses(conn, window_ids)
        figures = window_figures(uses, await _views_of(conn, uses))
        figures.sort(key=lambda one: (one.subject, one.key_values, one.starts_at))
        figures += await period_figures(conn, tenant_id, now=now)
    async with transaction(pool) as conn:
        if notify:
            await tell(conn, figures, now=now)
        fired = await store.read_fired(conn, figures)
    return [
        (one, {threshold for *name, threshold in fired if tuple(name) == (one.kind, one.subject, one.span)})
        for one in figures
    ]


def alert_told(wire_id: str, alert: Alert) -> Json:
    """Give what is told of an alert, to be written as canonical JSON."""
    figure = alert.figure
    return {
        "id": str(alert.alert_id),
        "tenant": wire_id,
        "kind": figure.kind,
        "subject": figure.subject,
        "key_values": list(figure.key_values),
        "threshold": alert.threshold,
        "base": f"{figure.base:f}",
        "value": f"{figure.value:f}",
        "starts_at": figure.starts_at.isoformat(),
        "ends_at": figure.ends_at.isoformat(),
        "fired_at": alert.fired_at.isoformat(),
    }
