"""A price list is tried on a closed month's real usage before anybody is on it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from billing_bench import use
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.services.catalogue import CatalogueInvalidError
from tollkeeper_ledger.services.what_if import month_of, what_if
from tollkeeper_ledger.store.pool import connection

if TYPE_CHECKING:
    from billing_bench import BillingBench
    from tollkeeper_ledger.services.what_if import Difference

pytestmark = pytest.mark.asyncio

MARCH = datetime(2031, 3, 1, tzinfo=UTC)
NOW = """
version: 1
seller: {id: default, name: Example AI GmbH, invoice_prefix: TK, currency: USD, time_zone: UTC}
meters:
  - {name: messages, unit: messages, attributes: [channel], dimensions: [channel]}
  - {name: users, unit: users, aggregation: unique, value_attribute: user, attributes: [user]}
plans:
  - name: pro
    billing_interval: month
    fees: [{name: Pro, amount: "20.00"}]
    prices: [{meter: messages, unit_price: "0.01"}]
  - {name: other, billing_interval: month, fees: [{name: Other, amount: "5.00"}]}
tenants:
  - {id: alpha, plan: pro, subscription: {start: "2031-03-01T00:00:00Z"}}
  - {id: beta, plan: pro, subscription: {start: "2031-03-01T00:00:00Z"}}
  - {id: gamma, plan: other, subscription: {start: "2031-03-01T00:00:00Z"}}
"""
# A higher fee, users beyond the first charged, texts dearer and the rest cheaper.
THEN = """
version: 1
plans:
  - name: pro
    currency: USD
    billing_interval: month
    fees: [{name: Pro, amount: "25.00"}]
    prices:
      - {meter: messages, match: [{attribute: channel, exact: sms}], unit_price: "0.05"}
      - {meter: messages, unit_price: "0.005"}
      - {meter: users, unit_price: "1.00", included: 1}
"""


async def differences(bench: BillingBench, yaml: str = THEN, period: str = "2031-03") -> list[Difference]:
    """Ask what a month would have cost."""
    async with connection(bench.billing) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        return [one async for one in what_if(conn, yaml_text=yaml, source_name="plan.yaml", period=period)]


async def test_a_month_is_priced_under_another_plan(bench: BillingBench) -> None:
    """Each tenant of the plan has what it paid and what it would have; others are left out; nothing is stored."""
    await bench.set_now(MARCH)
    await bench.apply(NOW)
    log = await bench.new_log()
    uses = [
        use("a1", MARCH, tenant="alpha", messages=1_000, attributes=(("channel", "sms"),)),
        use("a2", MARCH, tenant="alpha", messages=2_000, attributes=(("channel", "mail"),)),
        *(use(f"u{n}", MARCH, tenant="alpha", users=1, attributes=(("user", name),)) for n, name in enumerate("abba")),
        use("b1", MARCH, tenant="beta", messages=100),
    ]
    end = datetime(2031, 4, 1, tzinfo=UTC)
    await bench.send(log, *uses, watermark=MARCH)
    await bench.set_now(end + timedelta(hours=2))
    await bench.send(log, watermark=end + timedelta(hours=2))
    await bench.run()
    counts = "SELECT (SELECT count(*) FROM plan_version) + (SELECT count(*) FROM invoice) AS stored"
    stored = await bench.rows(counts)
    # alpha paid 20.00 + 30.00; it would pay 25.00 + 50.00 + 10.00 + 1.00. beta paid 20.00 + 1.00, then 25.00 + 0.50.
    assert [(one.tenant, one.plan, one.before_minor, one.after_minor) for one in await differences(bench)] == [
        ("alpha", "pro", 5_000, 8_600),
        ("beta", "pro", 2_100, 2_550),
    ]
    assert stored == await bench.rows(counts)
    assert await differences(bench, period="2031-04") == []
    assert (await bench.documents("alpha"))[0]["total_minor"] == 5_000
    same = await differences(bench, NOW)
    assert len(same) == 3
    assert all(one.before_minor == one.after_minor for one in same)


async def test_own_prices_stay_their_own_under_another_list(bench: BillingBench) -> None:
    """A tenant's own fee goes on and the rest follows the new list, whether or not the file names the tenant."""
    await bench.set_now(MARCH)
    own = "  - {id: beta, plan: pro, fees: [{name: Pro, amount: '8.00'}], "
    await bench.apply(NOW.replace("  - {id: beta, plan: pro, ", own))
    log = await bench.new_log()
    await bench.send(log, use("b1", MARCH, tenant="beta", messages=100), watermark=MARCH)
    end = datetime(2031, 4, 1, 2, tzinfo=UTC)
    await bench.set_now(end)
    await bench.send(log, watermark=end)
    await bench.run()
    found = {(one.tenant, one.plan): (one.before_minor, one.after_minor) for one in await differences(bench)}
    # beta paid 8.00 + 1.00, then 8.00 + 0.50; alpha 20.00, then 25.00.
    assert found == {("alpha", "pro"): (2_000, 2_500), ("beta", "pro@beta"): (900, 850)}
    named = THEN + "tenants: [{id: beta, plan: pro, fees: [{name: Pro, amount: '6.00'}]}]\n"
    (beta,) = [one for one in await differences(bench, named) if one.tenant == "beta"]
    assert (beta.before_minor, beta.after_minor) == (900, 650)


async def test_what_can_not_be_priced_is_named(bench: BillingBench) -> None:
    """A faulty plan is refused as applying it would be; a month is a month."""
    await bench.apply(NOW)
    with pytest.raises(CatalogueInvalidError, match="names a meter that does not exist"):
        await differences(bench, THEN.replace("meter: users", "meter: visitors"))
    with pytest.raises(InvalidFieldError, match="declares no plan"):
        await differences(bench, "version: 1\nfeatures: [{name: f}]\n")
    for wrong in ("2031-13", "2031", "march", "0000-01", "2031-3"):
        with pytest.raises(InvalidFieldError, match="is not a month"):
            month_of(wrong)
