# ruff: noqa: SIM300 - expected first, then actual
"""A seller's taxes on invoices of payers that nobody gave a profile."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from billing_bench import catalogue, use
from stripe_shop import act_on
from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate
from tollkeeper_ledger.services.catalogue import CatalogueInvalidError
from tollkeeper_ledger.services.invoice_verify import reproduce_invoice, verify_invoice
from tollkeeper_ledger.services.invoices import preview_invoice, void_invoice
from tollkeeper_ledger.services.pdf.texts import invoice_texts
from tollkeeper_ledger.services.profiles import set_profile
from tollkeeper_ledger.store.pool import connection, transaction

if TYPE_CHECKING:
    from typing import Any

    from billing_bench import BillingBench

pytestmark = pytest.mark.asyncio

HOUR = timedelta(hours=1)
TAXES = (
    "country: DE, reverse_charge: eu, taxes: [{name: VAT, percent: '7.0', country: DE, meters: [context_tokens]},"
    " {name: VAT, percent: 19, country: DE}, {name: MVA, percent: 25, country: NO}], "
)
PAYERS = """  - {{id: home, plan: hourly, {since}}}
  - {{id: norway, plan: hourly, country: NO, {since}}}
  - {{id: france, plan: hourly, country: FR, tax_id: FR12345678901, {since}}}
  - {{id: own, plan: hourly, {since}}}
  - {{id: branch, plan: hourly, country: FR, tax_id: FR12345678901, billing_tenant: norway, {since}}}
"""


def declared(bench: BillingBench, taxes: str = TAXES) -> str:
    """Give a catalogue of a seller with taxes, and payers in several countries."""
    since = f'subscription: {{start: "{bench.start.isoformat()}"}}'
    yaml = catalogue(bench.start).replace("tenants:\n", "tenants:\n" + PAYERS.format(since=since))
    return yaml.replace("seller: {id: default, ", "seller: {id: default, " + taxes)


async def billed(bench: BillingBench) -> dict[str, dict[str, Any]]:
    """Use something for an hour, bill it, and give each tenant's invoice."""
    names = ("home", "norway", "france", "own", "branch")
    log = await bench.new_log()
    uses = [use(name, bench.start + HOUR / 2, tenant=name, context_tokens=3_000_000) for name in names]
    await bench.set_now(bench.start + HOUR)
    await bench.send(log, *uses, watermark=bench.start + 2 * HOUR, tenants=names)
    await bench.set_now(bench.start + HOUR + timedelta(minutes=5))
    await bench.run()
    return {name: document for name in names for document in await bench.documents(name)}


async def test_payers_without_a_profile_are_taxed_by_their_seller(bench: BillingBench) -> None:
    """By country and meter, by reverse charge, by a payer's own word; the payer's place counts, not the tenant's.

    20.00 base and 5.00 for two million tokens above the first.
    """
    await bench.apply(declared(bench))
    assert {"unchanged"} == {change.action for change in await bench.apply(declared(bench))}
    async with transaction(bench.billing) as conn:
        (row,) = await bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'own'")
        profile = BillingProfile(taxes=(TaxRate("Levy", "10"),))
        await set_profile(conn, row["tenant_id"], profile, act=await act_on(conn))
    documents = await billed(bench)
    assert {
        "home": ("exclusive", [("VAT", "19", 380), ("VAT", "7", 35)], 2_915),
        "norway": ("exclusive", [("MVA", "25", 625)], 3_125),
        "france": ("reverse_charge", [], 2_500),
        "own": ("exclusive", [("Levy", "10", 250)], 2_750),
        "branch": ("exclusive", [("MVA", "25", 625)], 3_125),
    } == {
        name: (
            one["billing"]["tax_mode"],
            [(tax["name"], tax["percent"], tax["tax_minor"]) for tax in one["taxes"]],
            one["total_minor"],
        )
        for name, one in documents.items()
    }
    said = str(invoice_texts(documents["france"], digest="", paper="a4"))
    assert "Reverse charge: the customer accounts for the tax." in said


async def test_an_invoice_keeps_the_taxes_that_it_was_made_with(bench: BillingBench) -> None:
    """Other taxes change no invoice: it is verified and made again as it was; a preview and a re-issue have the new."""
    await bench.apply(declared(bench))
    before = (await billed(bench))["home"]
    await bench.apply(declared(bench, TAXES.replace("percent: 19", "percent: 20")))
    statement = "SELECT invoice_id, tenant_id FROM invoice JOIN tenant USING (tenant_id) WHERE wire_id = 'home'"
    (row,) = await bench.rows(statement)
    async with connection(bench.billing) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        made = await reproduce_invoice(conn, row["invoice_id"], from_records=True)
        assert made.document == made.stored
        assert [] == [check.name for check in await verify_invoice(conn, row["invoice_id"]) if not check.ok]
        preview = await preview_invoice(conn, row["tenant_id"], wire_id="home")
    assert ("19", "20") == (before["lines"][0]["tax"]["percent"], preview["lines"][0]["tax"]["percent"])
    async with transaction(bench.billing) as conn:
        await void_invoice(conn, UUID(before["invoice_id"]), reissue=True, note="other rate", act=await act_on(conn))
    assert ["19", "20"] == [one["lines"][0]["tax"]["percent"] for one in await bench.documents("home")]


@pytest.mark.parametrize(("taxes", "said"), [
    ("taxes: [{name: VAT, percent: 101}], ", "seller.taxes[0].percent: is out of range"),
    ("taxes: [{name: VAT, percent: 1, country: Germany}], ", "seller.taxes[0].country: is not a country"),
    ("taxes: [{name: VAT, percent: 1, region: NY}], ", "seller.taxes[0].region: needs a country"),
    ("taxes: [{name: VAT, percent: 1, meters: [nothing]}], ", "names a meter that does not exist"),
    ("reverse_charge: eu, country: US, ", "seller.reverse_charge: needs a seller in the EU"),
    (
        "taxes: [{name: VAT, percent: 1, country: FR}, {name: GST, percent: 1, mode: inclusive}], ",
        "are partly in the prices and partly on top",
    ),
])  # fmt: skip
async def test_taxes_that_cant_be_are_refused_by_name(bench: BillingBench, taxes: str, said: str) -> None:
    """A wrong rate, country, region, meter or mode is named with its field, and nothing is stored."""
    with pytest.raises(CatalogueInvalidError) as refused:
        await bench.apply(declared(bench, taxes))
    assert said in str(refused.value)
    assert [0] == [row["count"] for row in await bench.rows("SELECT count(*) FROM seller")]
