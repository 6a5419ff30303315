# ruff: noqa: SIM300 - expected first, then actual
"""Payments that payers have their banks take back: heard of, booked, told; each only moves forward."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import TYPE_CHECKING

import pytest
from billing_bench import catalogue
from stripe_shop import BY_CARD, GRACE, HOUR, SINCE, act_on, open_shop
from tollkeeper_cli.main import main
from tollkeeper_ledger.app import running
from tollkeeper_ledger.services.invoice_verify import verify_invoice
from tollkeeper_ledger.services.mailing import make_message
from tollkeeper_ledger.services.profiles import set_profile
from tollkeeper_ledger.services.receivables import pay_by_hand
from tollkeeper_ledger.services.reconciling import reconcile
from tollkeeper_ledger.store import mails
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.pool import connection, transaction

if TYPE_CHECKING:
    from billing_bench import BillingBench
    from stripe_shop import Shop
    from tollkeeper_ledger.config import Settings

pytestmark = pytest.mark.asyncio


async def paid(shop: Shop) -> str:
    """Bill an hour's 23.80 and have it paid by card; give the provider's invoice."""
    await shop.bill(1, "code")
    await shop.work()
    (said,) = shop.fake.all("invoices")
    shop.fake.pay_on_page(said["id"])
    await shop.hear()
    assert [("paid", 0)] == await shop.standing()
    return str(said["id"])


async def accounts(bench: BillingBench) -> dict[str, int]:
    """Give every account that holds something; all must sum to zero, and every invoice must verify."""
    sums: dict[str, int] = {}
    for row in await bench.rows("SELECT debit, credit, amount_minor FROM journal"):
        sums[row["debit"]] = sums.get(row["debit"], 0) + row["amount_minor"]
        sums[row["credit"]] = sums.get(row["credit"], 0) - row["amount_minor"]
    assert 0 == sum(sums.values())
    for row in await bench.rows("SELECT invoice_id FROM invoice"):
        async with connection(bench.billing) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            assert [] == [check for check in await verify_invoice(conn, row["invoice_id"]) if not check.ok]
    return {name: amount for name, amount in sums.items() if amount and name in ("cash", "disputed", "receivable")}


@pytest.mark.parametrize(
    ("words", "stage", "standing", "books"),
    [
        (["warning_needs_response"], "warned", ("paid", 0), {"cash": 2380}),
        (["warning_needs_response", "warning_closed"], "warned", ("paid", 0), {"cash": 2380}),
        (["needs_response", "under_review"], "open", ("paid", 0), {"disputed": 2380}),
        (["needs_response", "won"], "won", ("paid", 0), {"cash": 2380}),
        (["warning_needs_response", "needs_response", "lost"], "lost", ("past_due", 2380), {"receivable": 2380}),
        (["lost"], "lost", ("past_due", 2380), {"receivable": 2380}),
    ],
)
async def test_a_dispute_moves_money_as_far_as_the_bank_does(
    bench: BillingBench, words: list[str], stage: str, standing: tuple[str, int], books: dict[str, int]
) -> None:
    """A warning moves nothing, an open one moves cash aside, a won one back, a lost one is due again.

    Events are then heard again, twice over in any order: the books stay.
    """
    async with open_shop(bench) as shop:
        invoice = await paid(shop)
        for word in words:
            shop.fake.dispute(invoice, word)
            await shop.hear()
        for seed in range(2):
            Random(seed).shuffle(shop.fake.events)
            for number, event in enumerate(shop.fake.events):
                event["id"] = f"evt_again_{seed}_{number}"
            await shop.hear()
        (row,) = await bench.rows("SELECT stage, amount_minor FROM dispute")
        assert (stage, 2380) == tuple(row)
        assert [standing] == await shop.standing()
        assert books == await accounts(bench)
        assert (1, []) == await reconcile(bench.billing, shop.stripe, since=SINCE)


async def test_a_lost_dispute_takes_what_was_paid_too_much_out_of_the_balance(bench: BillingBench) -> None:
    """Money for an invoice that was paid already is the payer's balance; it is not when its bank took it back."""
    async with open_shop(bench) as shop:
        invoice = await paid(shop)
        (row,) = await bench.rows("SELECT invoice_id FROM invoice")
        async with transaction(bench.billing) as conn:
            act = await act_on(conn)
            await pay_by_hand(conn, row["invoice_id"], amount_minor=500, reference="twice", act=act)
        shop.fake.objects["invoices"][invoice]["amount_paid"] += 300
        shop.fake.dispute(invoice, "lost")
        await shop.hear()
        assert {"cash": 200, "receivable": 2380} == await accounts(bench)
        (kept,) = await bench.rows("SELECT balance_minor FROM billing_account")
        assert 200 == kept["balance_minor"]


async def test_a_late_word_of_a_dispute_changes_nothing(bench: BillingBench) -> None:
    """Over is over: what an older answer says is not booked; money in another currency is told, not booked."""
    async with open_shop(bench) as shop:
        invoice = await paid(shop)
        for word in ("lost", "needs_response", "won", "warning_closed"):
            shop.fake.dispute(invoice, word)
            await shop.hear()
        assert {"receivable": 2380} == await accounts(bench)
        shop.fake.events.clear()
        del shop.fake.objects["disputes"]
        shop.fake.objects["invoices"][invoice]["amount_paid"] = 100
        name = shop.fake.dispute(invoice, "lost", currency="eur")
        shop.fake.objects["disputes"]["du_other"] = {**shop.fake.objects["disputes"].pop(name), "id": "du_other"}
        shop.fake.events[-1]["data"]["object"]["id"] = "du_other"
        await shop.hear()
        assert {"receivable": 2380} == await accounts(bench)
        rows = await bench.rows("SELECT stage, currency FROM dispute ORDER BY currency")
        assert [("warned", "EUR"), ("lost", "USD")] == [tuple(row) for row in rows]


async def test_disputes_are_listed_and_told(
    bench: BillingBench, ledger_settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command names invoice, payer, stage and until when there is something to send; exit 1 while one is open."""
    async with open_shop(bench) as shop:
        shop.fake.dispute(await paid(shop), "needs_response")
        await shop.hear()
    async with running(ledger_settings.model_copy(update={"database_url": bench.url})) as ledger:
        words = ["--ledger", f"127.0.0.1:{ledger.port}", "payment", "disputes", "-o", "json"]
        assert 1 == await asyncio.to_thread(main, words)
    (row,) = json.loads(capfd.readouterr().out)
    assert ("TK-000001", "code", "open", "fraudulent", "23.80 USD", 2380) == tuple(
        row[name] for name in ("invoice", "tenant", "stage", "reason", "amount", "amount_minor")
    )
    assert row["evidence_by"]


async def test_a_disputes_fee_is_booked_and_the_seller_hears_of_each_step(bench: BillingBench) -> None:
    """What the provider keeps leaves `cash` for `fees`, once; what it gives back returns; a mail per step, no PDF."""
    async with open_shop(bench) as shop:
        seller = "address: [Street 1], email: ops@example.com"
        await bench.apply(catalogue(bench.start, "code").replace("address: [Street 1]", seller))
        async with transaction(bench.billing) as conn:
            tenant_id = (await find_tenant_ids(conn, ["code"]))["code"]
            await set_profile(conn, tenant_id, BY_CARD, act=await act_on(conn))
        await bench.set_now(bench.start + HOUR + GRACE)
        await bench.run()
        await shop.work()
        (said,) = shop.fake.all("invoices")
        shop.fake.pay_on_page(said["id"])
        for word, fees, kept in (("needs_response", (1500,), 1500), ("won", (1500, -500), 1000)):
            shop.fake.dispute(said["id"], word, fees=fees)
            for number, event in enumerate(shop.fake.events * 2):
                header, body = shop.fake.signed({**event, "id": f"evt_{word}_{number}"})
                await shop.events.receive(header=header, body=body)
            (books,) = await bench.rows(
                "SELECT coalesce(sum(CASE WHEN debit = 'fees' THEN amount_minor ELSE -amount_minor END), 0) AS kept "
                "FROM journal WHERE 'fees' IN (debit, credit)"
            )
            assert kept == books["kept"]
        assert {"cash": 2380 - 1000} == await accounts(bench)
        told = await bench.rows("SELECT recipient, stage FROM mail WHERE kind = 'dispute' ORDER BY stage")
        assert [("ops@example.com", f"du_{said['id']}/{stage}") for stage in ("open", "won")] == [
            tuple(row) for row in told
        ]
        await bench.rows("DELETE FROM mail WHERE kind <> 'dispute' OR stage LIKE '%/won'")
        async with transaction(bench.billing) as conn:
            mail = await mails.claim_mail(conn, now=shop.clock())
            assert mail is not None
            content = await mails.read_content(conn, mail.invoice_id, credit_note="")
        message = make_message(mail, content, sender="", logo="")
        assert [] == list(message.iter_attachments())
        assert "Disputed payment of invoice TK-000001: open" == message["Subject"]
        body = message.get_body(("plain",))
        assert body is not None
        assert f"the dispute du_{said['id']} is open now" in " ".join(body.get_content().split())
