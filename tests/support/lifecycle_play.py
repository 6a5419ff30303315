"""Play a worked lifecycle on a real Postgres: a plan, events at dates, and the lines that accountants expect."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from billing_bench import open_billing_bench, use
from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate
from tollkeeper_ledger.services import prepaid
from tollkeeper_ledger.services import subscription_changes as changes
from tollkeeper_ledger.services.invoice_verify import reproduce_invoice, verify_invoice
from tollkeeper_ledger.services.invoices import void_invoice
from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.services.profiles import set_profile
from tollkeeper_ledger.services.provider_cards import PROVIDER, keep_method
from tollkeeper_ledger.services.subscription_dates import take_back
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import connection, transaction
from tollkeeper_ledger.store.provider_jobs import put_customer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from billing_bench import BillingBench
    from tollkeeper_ledger.store.pool import Connection
    from usage_support import Log


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """One worked case of the table."""

    name: str
    events: Sequence[Mapping[str, Any]]
    """In order of time; each happens `at` a local time of the zone, with those that stand under its `and`."""
    until: str
    """Local time at which the last bills are made."""
    invoices: Sequence[Mapping[str, Any]]
    zone: str = "UTC"


def instant(text: str, zone: str) -> datetime:
    """Read a date or a local time of the zone."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Played:
    """What came of all cases."""

    documents: dict[str, list[dict[str, Any]]]
    """Each case's invoices as the table writes them."""
    doubts: list[str]
    """What `invoice verify` and `invoice reproduce` find wrong."""


@dataclass(slots=True)
class _Player:
    bench: BillingBench
    log: Log
    tenants: Mapping[str, UUID]
    documents: dict[str, list[dict[str, Any]]]

    async def step(self, case: Lifecycle, tenant: str, number: int, event: Mapping[str, Any]) -> None:
        """Move the clock to an event, bill what became due on the way, and let it happen."""
        at = instant(event["at"], case.zone)
        await self.bench.set_now(at)
        await changes.follow_due_phases(self.bench.billing)
        await self.bench.send(self.log, watermark=at, tenants=(tenant,))
        await self.bench.run(only=tenant)
        if "use" in event:
            attributes = tuple(sorted(event.get("attributes", {}).items()))
            happened = instant(event["happened"], case.zone) if "happened" in event else at
            counts = [units if isinstance(units, list) else [units] for units in event["use"].values()]
            uses = [
                use(
                    f"{tenant}-{number}-{meter}-{place}",
                    happened,
                    tenant=tenant,
                    received=at,
                    attributes=attributes,
                    **{meter: units},
                )
                for meter, of_meter in zip(event["use"], counts, strict=True)
                for place, units in enumerate(of_meter)
            ]
            await self.bench.send(self.log, *uses, watermark=at, tenants=(tenant,))
        elif event["do"] == "bill":
            self.documents[case.name] = [shown(one, case.zone) for one in await self.bench.documents(tenant)]
        else:
            async with transaction(self.bench.billing) as conn:
                act = Act(actor="test", request_id=f"{tenant}-{number}", now=await ledger_now(conn))
                for one in (event, *event.get("and", ())):
                    await _act(conn, self.tenants[tenant], tenant, event=one, zone=case.zone, act=act)
            await self.bench.run(only=tenant)


async def play_all(url: str, catalogue: str, cases: Sequence[Lifecycle]) -> Played:
    """Play all cases side by side in order of time; give each one's invoices as the table writes them."""
    names = {f"t{place}": case for place, case in enumerate(cases)}
    tenants = "tenants:\n" + "".join(f"  - {{id: {tenant}}}\n" for tenant in names)
    async with open_billing_bench(url) as bench:
        await bench.apply(f"{catalogue}\n{tenants}")
        async with transaction(bench.billing) as conn:
            ids = await find_tenant_ids(conn, list(names))
        player = _Player(bench=bench, log=await bench.new_log(), tenants=ids, documents={})
        steps = [
            (instant(event["at"], case.zone), tenant, number, case, event)
            for tenant, case in names.items()
            for number, event in enumerate([*case.events, {"at": case.until, "do": "bill"}])
        ]
        for _, tenant, number, case, event in sorted(steps, key=itemgetter(0, 1, 2)):
            await player.step(case, tenant, number, event)
        return Played(documents=player.documents, doubts=await _doubts(bench))


async def _doubts(bench: BillingBench) -> list[str]:
    """Verify every invoice, and make each again from raw records; name what does not hold."""
    found: list[str] = []
    for row in await bench.rows("SELECT invoice_id, number FROM invoice ORDER BY number"):
        async with connection(bench.billing) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            checks = await verify_invoice(conn, row["invoice_id"])
            found.extend(f"{row['number']} {check.name}: {check.detail}" for check in checks if not check.ok)
            made = await reproduce_invoice(conn, row["invoice_id"], from_records=True)
            if made.document != made.stored:
                found.append(f"{row['number']} has other bytes")
    return found


async def _act(
    conn: Connection, tenant_id: UUID, tenant: str, *, event: Mapping[str, Any], zone: str, act: Act
) -> None:
    """Let an operator's event happen."""
    when = event.get("when", changes.NOW)
    if when not in {changes.NOW, changes.PERIOD_END}:
        when = instant(when, zone)
    match event["do"]:
        case "subscribe":
            asked = changes.SubscriptionAsked(
                plan=event["plan"],
                start=None,
                anchor=event.get("anchor", ""),
                time_zone=zone,
                currency=event.get("currency", ""),
                quantity=event.get("seats", 1),
                trial_days=event.get("trial_days"),
            )
            await changes.create_subscription(conn, tenant_id, tenant, asked, act)
        case "change":
            asked_change = changes.ChangeAsked(
                plan=event.get("plan", ""),
                quantity=event.get("seats"),
                anchor=event.get("anchor", ""),
                time_zone=event.get("zone", ""),
                at=when,
            )
            await changes.change_subscription(conn, tenant_id, asked_change, act=act)
        case "activate":
            await changes.activate_subscription(conn, tenant_id, act=act)
        case "pause":
            await changes.pause_subscription(conn, tenant_id, at=when, act=act)
        case "resume":
            await changes.resume_subscription(conn, tenant_id, act=act)
        case "cancel":
            await changes.cancel_subscription(conn, tenant_id, at=when, act=act)
        case "unschedule":
            await take_back(conn, tenant_id, instant(event["of"], zone), act=act)
        case "card" | "uncard" | "agree":
            await _act_on_payment(conn, tenant_id, event=event, act=act)
        case _:
            await _act_on_money(conn, tenant_id, event=event, zone=zone, act=act)


async def _act_on_payment(conn: Connection, tenant_id: UUID, *, event: Mapping[str, Any], act: Act) -> None:
    """Let a payer enter a card, remove it, or agree on something else with its seller."""
    if event["do"] == "agree":
        await set_profile(conn, tenant_id, BillingProfile(pays_by=event["what"]), act=act)
        return
    customer = f"cus_{tenant_id.hex}"
    await set_profile(conn, tenant_id, BillingProfile(provider=PROVIDER), act=act)
    await put_customer(conn, tenant_id, provider=PROVIDER, customer=customer, now=act.now)
    card = {"brand": "visa", "last4": "4242", "exp_year": 2040, "exp_month": 1}
    method = {"id": "pm_1", "card": card} if event["do"] == "card" else {}
    await keep_method(conn, customer, method, now=act.now)


async def _act_on_invoices(conn: Connection, tenant_id: UUID, *, event: Mapping[str, Any], act: Act) -> None:
    """Tax a payer from now on, or void its newest invoice, for good or to issue it again."""
    if event["do"] == "taxes":
        taxes = (TaxRate("VAT", event["percent"]),)
        await set_profile(conn, tenant_id, BillingProfile(taxes=taxes, tax_mode=event["mode"]), act=act)
        return
    newest = "SELECT invoice_id FROM invoice WHERE tenant_id = $1 ORDER BY serial DESC LIMIT 1"
    invoice_id = await conn.fetchval(newest, tenant_id)
    await void_invoice(conn, invoice_id, note="test", reissue=event["do"] == "reissue", act=act)


async def _act_on_money(conn: Connection, tenant_id: UUID, *, event: Mapping[str, Any], zone: str, act: Act) -> None:
    """Let an event of coupons, grants, taxes and void invoices happen."""
    match event["do"]:
        case "taxes" | "void" | "reissue":
            await _act_on_invoices(conn, tenant_id, event=event, act=act)
        case "coupon":
            coupon = prepaid.CouponAsked(
                name=event["name"],
                percent=Decimal(event["percent"]) if "percent" in event else None,
                amount_minor=_cents(event["amount"]) if "amount" in event else None,
                periods=event.get("invoices"),
            )
            await prepaid.add_coupon_to(conn, tenant_id, coupon, act, new_id=uuid.uuid4)
        case "grant":
            await prepaid.create_grant(conn, tenant_id, _grant(event, zone), act, new_id=uuid.uuid4)
        case other:
            raise ValueError(f"nobody can do {other!r}")


def _grant(event: Mapping[str, Any], zone: str) -> prepaid.GrantAsked:
    meter = event.get("meter", "")
    return prepaid.GrantAsked(
        name=event["name"],
        meter=meter,
        currency="" if meter else event.get("currency", "USD"),
        amount=event["units"] if meter else _cents(event["amount"]),
        priority=event.get("priority", 0),
        expires_at=instant(event["expires"], zone) if "expires" in event else None,
        recurs=event.get("monthly", False),
        rollover_max=event.get("rollover", 0),
    )


def _cents(amount: str) -> int:
    return int(Decimal(amount) * 100)


def shown(document: Mapping[str, Any], zone: str) -> dict[str, Any]:
    """Give an invoice as the table writes it: its period in local dates, lines in major units, discounts, total."""
    digits = document["currency_digits"]

    def major(amount_minor: int) -> str:
        return f"{Decimal(amount_minor).scaleb(-digits):.{digits}f}"

    def date(text: str) -> str:
        return f"{datetime.fromisoformat(text).astimezone(ZoneInfo(zone)):%Y-%m-%d}"

    lines = {line["description"]: major(line["amount_minor"]) for line in document["lines"]}
    if len(lines) != len(document["lines"]):
        lines = {
            f"{line['description']} ({date(line['period']['start'])})": major(line["amount_minor"])
            for line in document["lines"]
        }
    answer = {"period": f"{date(document['period']['start'])} to {date(document['period']['end'])}", "lines": lines}
    discount_minor = sum(line["discount_minor"] for line in document["lines"])
    if discount_minor:
        answer["coupons"] = major(-discount_minor)
    if document["tax_minor"]:
        answer["tax"] = major(document["tax_minor"])
    return {**answer, "total": major(document["total_minor"])}
