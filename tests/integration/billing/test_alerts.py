# ruff: noqa: SIM300 - expected first, then actual
"""Thresholds on use and spend are told of once each, whoever looks, however often, and whatever dies on the way."""

from __future__ import annotations

import asyncio
import email
import email.policy
import uuid
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from alert_support import CATALOGUE, LOG, Look, give_address, opened
from billing_bench import use
from stripe_shop import act_on
from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate
from tollkeeper_ledger.services import alerting
from tollkeeper_ledger.services.alerting import Alerter, check_alerts
from tollkeeper_ledger.services.invoice_run import bill_thresholds
from tollkeeper_ledger.services.mailing import Mailer
from tollkeeper_ledger.services.prepaid import GrantAsked, create_grant
from tollkeeper_ledger.services.profiles import set_profile
from tollkeeper_ledger.services.usage_voids import void_usage
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from datetime import datetime

    from billing_bench import BillingBench

pytestmark = pytest.mark.asyncio

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


async def test_use_and_spend_are_told_of_exactly_at_their_thresholds(bench: BillingBench) -> None:
    """One unit below: nothing; at it: once; several at once: each. Percentages and amounts alike."""
    async with opened(bench) as look:
        await look.use(499)
        assert 0 == await look.alerter.run_all()
        await look.use(1)
        assert 1 == await look.alerter.run_all()
        assert [("meter", "50%", "500")] == await look.fired()
        await look.use(499)
        assert 0 == await look.alerter.run_all()
        await look.use(1)
        assert 2 == await look.alerter.run_all()
        assert [("meter", "50%", "500"), ("meter", "100%", "1000"), ("spend", "75%", "30")] == await look.fired()
        await look.use(2000)
        assert 2 == await look.alerter.run_all()
        assert [("spend", "50", "50"), ("spend", "75%", "30"), ("spend", "100%", "50")] == (await look.fired())[2:]


async def test_spend_is_told_of_whatever_pays_for_it(bench: BillingBench) -> None:
    """1,000 tokens are 10.00 beside 20.00: spend is 30.00, paid with credit, with tax in its prices, or invoiced."""
    declared = CATALOGUE.format(start=bench.start.isoformat())
    within = declared.replace("    prices:", '    progressive_threshold: "5.00"\n    prices:')
    await bench.apply(within)
    look = Look(bench, await bench.new_log())
    async with transaction(bench.billing) as conn:
        tenants, act = await find_tenant_ids(conn, ["code", "own"]), await act_on(conn)
        rule = GrantAsked(
            name="credit", meter="", currency="USD", amount=10_000, priority=0, expires_at=None, recurs=False,
            rollover_max=0,
        )  # fmt: skip
        await create_grant(conn, tenants["code"], rule, act, new_id=uuid.uuid4)
        taxes = BillingProfile(taxes=(TaxRate("VAT", "25"),), tax_mode="inclusive")
        await set_profile(conn, tenants["own"], taxes, act=act)
    await bench.set_now(bench.start + 2 * MINUTE)
    for tenant in tenants:
        await look.use(1_000, tenant=tenant)
    for cuts in (1, 0):
        assert cuts == await bill_thresholds(bench.billing, actor="test")
        spent = {}
        for tenant, tenant_id in tenants.items():
            figures = [figure for figure, _ in await check_alerts(bench.billing, tenant_id, notify=False)]
            spent[tenant] = [figure.value for figure in figures if figure.kind == "spend"]
        assert {"code": [Decimal(30)], "own": [Decimal(24)]} == spent


async def test_each_threshold_is_told_of_once_whoever_looks_how_often(bench: BillingBench) -> None:
    """Eight look at once, again and again, while usage goes on: one row and one mail each."""
    async with opened(bench) as look:
        await give_address(bench)
        alerters = [Alerter(bench.billing, LOG) for _ in range(8)]
        for _ in range(6):
            await asyncio.gather(look.use(500), *(alerter.run_all() for alerter in alerters))
        await asyncio.gather(*(alerter.run_all() for alerter in alerters))
        await look.alerter.run_all()
        assert ["50%", "100%", "50", "75%", "100%"] == [threshold for _, threshold, _ in await look.fired()]
        assert 5 == await _count(bench, "SELECT count(*) FROM mail WHERE kind = 'alert'")
        assert 0 == await _count(bench, "SELECT count(*) FROM alert_due")
        assert 0 == await _count(bench, "SELECT count(*) FROM alert_usage_hint")


@pytest.mark.parametrize("point", ["store.mark_due", "store.add_alerts", "queue_alerts"])
async def test_a_look_that_dies_leaves_everything_to_the_next(
    bench: BillingBench, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """It dies after it took its note, before and after it added alerts: the next one tells of all, once."""

    class DiedError(BaseException):
        pass

    async def die(*_: object, **__: object) -> None:
        raise DiedError

    async with opened(bench) as look:
        await give_address(bench)
        await look.use(1000)
        with monkeypatch.context() as patched:
            patched.setattr(f"tollkeeper_ledger.services.alerting.{point}", die)
            with pytest.raises(DiedError):
                await look.alerter.run_all()
        assert [] == await look.fired()
        assert 3 == await Alerter(bench.billing, LOG).run_all()
        assert 3 == await _count(bench, "SELECT count(*) FROM mail")


async def test_usage_that_comes_while_somebody_looks_is_looked_at_again(bench: BillingBench) -> None:
    """A look began with an older view of the usage: what came meanwhile is not lost."""
    async with opened(bench) as look:
        await look.use(499)
        await look.alerter.run_all()
        await look.use(1)
        # Somebody marks the tenant while another one has begun to take its mark.
        rows = await bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'code'")
        await bench.rows("INSERT INTO alert_due (tenant_id) VALUES ($1)", rows[0]["tenant_id"])
        async with bench.billing.acquire() as conn:
            begun = conn.transaction(isolation="repeatable_read")
            await begun.start()
            await conn.fetchval("SELECT count(*) FROM alert_due")
            async with transaction(bench.billing) as other:
                await other.execute("UPDATE alert_due SET marks = marks + 1")
            with pytest.raises(Exception, match="could not serialize"):
                await conn.execute("DELETE FROM alert_due")
            await begun.rollback()
        assert 1 == await look.alerter.run_all()


async def test_what_is_taken_back_and_used_again_is_not_told_of_twice(bench: BillingBench) -> None:
    """A void takes the figure below its threshold, and later use above it again: still one."""
    async with opened(bench) as look:
        name = await look.use(600)
        assert 1 == await look.alerter.run_all()
        async with transaction(bench.ingest_pool) as conn:
            now = await ledger_now(conn)
            done = await void_usage(conn, bench.ingest, uuid.UUID(int=5), tenant="code", ids=[name], now=now)
            assert (1, 0) == done
        assert 0 == await look.alerter.run_all()
        await look.use(600)
        assert 0 == await look.alerter.run_all()
        assert [("meter", "50%", "600")] == await look.fired()


async def test_the_next_period_is_told_of_anew_and_late_use_counts_where_it_belongs(bench: BillingBench) -> None:
    """After the hour: its own rows. A record of the first hour that comes within its grace counts there."""
    async with opened(bench) as look:
        await look.use(500)
        await look.alerter.run_all()
        await bench.set_now(bench.start + HOUR + MINUTE)
        await look.use(500, at=bench.start + HOUR + MINUTE)
        assert 1 == await look.alerter.run_all()
        await look.use(500, at=bench.start + 2 * MINUTE)
        assert 2 == await look.alerter.run_all()
        assert [
            ("meter", "50%", "500"), ("meter", "100%", "1000"), ("spend", "75%", "30"), ("meter", "50%", "500"),
        ] == await look.fired()  # fmt: skip


async def test_a_tenants_own_rules_stand_instead_of_its_plans(bench: BillingBench) -> None:
    """About the same thing its own count; the plan's others go on. A record is one call, a second one two."""
    async with opened(bench) as look:
        now = bench.start + MINUTE
        for number in range(2):
            await bench.send(look.log, use(f"call-{number}", now, tenant="own", calls=7), watermark=now)
        await look.use(3000, tenant="own")
        assert 5 == await look.alerter.run_all()
        rows = await bench.rows("SELECT subject, threshold FROM alert ORDER BY subject, length(threshold), threshold")
        assert [
            ("calls", "75%"), ("calls", "90%"), ("calls", "100%"), ("tokens", "50%"), ("tokens", "100%"),
        ] == [tuple(row) for row in rows]  # fmt: skip


async def test_a_tenant_that_fails_holds_up_no_other(bench: BillingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens when one is looked at: the others are told of, and it is tried again."""
    async with opened(bench) as look:
        tenants = {row["wire_id"]: row["tenant_id"] for row in await bench.rows("SELECT * FROM tenant")}
        first, second = sorted(("code", "own"), key=lambda name: tenants[name])
        real = alerting.period_figures

        async def broken(conn: Any, tenant_id: uuid.UUID, *, now: datetime) -> Any:
            if tenant_id == tenants[first]:
                raise RuntimeError("broken")
            return await real(conn, tenant_id, now=now)

        await look.use(1000, tenant=first)
        await look.use(1000, tenant=second)
        with monkeypatch.context() as patched:
            patched.setattr(alerting, "period_figures", broken)
            assert 0 == await look.alerter.run_all()
            assert 1 <= await look.alerter.run_all()
        assert {tenants[second]} == {row["tenant_id"] for row in await bench.rows("SELECT tenant_id FROM alert")}
        assert 1 <= await look.alerter.run_all()
        assert set(tenants.values()) == {row["tenant_id"] for row in await bench.rows("SELECT tenant_id FROM alert")}


@pytest.mark.parametrize(
    ("locale", "subject", "words"),
    [
        ("en", "code: spend has reached 75%", "$30.00 of $40.00"),
        ("de", "code: Ausgaben, 75% erreicht", "30,00\N{NO-BREAK SPACE}$ von 40,00\N{NO-BREAK SPACE}$"),
        ("fr", "code : dépenses, 75% atteint", "30,00\N{NO-BREAK SPACE}$US sur 40,00\N{NO-BREAK SPACE}$US"),
    ],
)
async def test_a_payer_is_told_by_mail_in_its_language(
    bench: BillingBench, locale: str, subject: str, words: str
) -> None:
    """What reached which threshold, how far it is, of what, and from when to when; sent once."""
    sent: list[bytes] = []

    class Server:
        async def send(self, *, sender: str, recipient: str, mail: bytes, hand_over: Any) -> str:
            assert ("s@example.com", "ap@customer.example") == (sender, recipient)
            await hand_over()
            sent.append(mail)
            return "250 kept"

    async with opened(bench) as look:
        await give_address(bench, locale=locale)
        await look.use(1000)
        await look.alerter.run_all()
        server: Any = Server()
        mailer = Mailer(bench.billing, server, "", lambda: bench.start + timedelta(days=1000), LOG)
        assert 3 == await mailer.run_all()
        assert 0 == await mailer.run_all()
        (mail,) = [one for one in map(_parsed, sent) if "75%" in one["Subject"]]
        assert subject == mail["Subject"]
        assert words in mail.get_content()
        assert "(UTC)." in mail.get_content()


async def test_a_check_tells_how_far_everything_is(bench: BillingBench) -> None:
    """Each rule with base, figure, what is reached and what was told of; with `notify` it tells at once."""
    async with opened(bench) as look:
        await look.use(600)
        ((row),) = await bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'code'")
        found = await check_alerts(bench.billing, row["tenant_id"], notify=False)
        assert [
            ("spend", "USD", Decimal("26.00"), (), set()),
            ("meter", "tokens", Decimal(600), ("50%",), set()),
        ] == [(one.kind, one.subject, one.value, one.reached, fired) for one, fired in found]
        assert [] == await look.fired()
        found = await check_alerts(bench.billing, row["tenant_id"], notify=True)
        assert [set(), {"50%"}] == [fired for _, fired in found]
        assert 0 == await look.alerter.run_all()
        assert [("meter", "50%", "600")] == await look.fired()


async def test_alerts_are_never_changed(bench: BillingBench) -> None:
    """Nobody edits or deletes what was told of, the tables' owner included."""
    async with opened(bench) as look:
        await look.use(600)
        await look.alerter.run_all()
        for statement in ("UPDATE alert SET value = 1", "DELETE FROM alert", "TRUNCATE alert CASCADE"):
            with pytest.raises(Exception, match="append-only"):
                await bench.rows(statement)


async def _count(bench: BillingBench, statement: str) -> int:
    (row,) = await bench.rows(statement)
    return int(row["count"])


def _parsed(mail: bytes) -> Any:
    return email.message_from_bytes(mail, policy=email.policy.default)
