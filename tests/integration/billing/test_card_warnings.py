# ruff: noqa: SIM300 - expected first, then actual
"""Payers are warned by mail of cards that expire, and runners of jobs do so by the clock."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import structlog
from stripe_shop import BY_CARD, open_shop
from tollkeeper_ledger.jobs.runner import running_jobs
from tollkeeper_ledger.services.card_warnings import warn_of_cards
from tollkeeper_ledger.services.mailing import make_message
from tollkeeper_ledger.services.reconciling import Nightly
from tollkeeper_ledger.store import mails
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from billing_bench import BillingBench

pytestmark = pytest.mark.asyncio

LOG = structlog.wrap_logger(structlog.ReturnLogger())


@pytest.mark.parametrize(
    ("locale", "words"),
    [
        ("en", "The card Visa •••• 4242 that we charge is good until 31 December 2030."),
        ("de", "Die Karte Visa •••• 4242, die wir belasten, ist bis 31. Dezember 2030 gültig."),
        ("fr", "La carte Visa •••• 4242 que nous débitons est valable jusqu’au 31 décembre 2030."),  # noqa: RUF001 - French
    ],
)
async def test_who_has_a_card_that_expires_is_warned_once(bench: BillingBench, locale: str, words: str) -> None:
    """30 days before its last month ends, in the payer's language, without a PDF; once, whatever is billed after it.

    The mail leads to where the card is changed, where the operator says where that is.
    """
    async with open_shop(bench) as shop:
        await shop.bill(1, "code", profile=replace(BY_CARD, locale=locale))
        await shop.work()
        (customer,) = shop.fake.all("customers")
        shop.fake.give_card(customer["id"])
        await shop.hear()
        await bench.rows("DELETE FROM mail")
        assert 0 == await warn_of_cards(bench.billing, now=datetime(2030, 12, 1, tzinfo=UTC))
        assert 1 == await warn_of_cards(bench.billing, now=datetime(2030, 12, 2, tzinfo=UTC))
        await shop.bill(2, "code", profile=replace(BY_CARD, locale=locale))
        assert 1 == await warn_of_cards(bench.billing, now=datetime(2031, 1, 3, tzinfo=UTC))
        rows = await bench.rows("SELECT kind, stage, recipient FROM mail WHERE kind = 'card_expires'")
        assert [("card_expires", "visa 4242/2030-12", "a@example.com")] == [tuple(row) for row in rows]
        await bench.rows("DELETE FROM mail WHERE kind <> 'card_expires'")
        async with transaction(bench.billing) as conn:
            mail = await mails.claim_mail(conn, now=datetime(2031, 1, 3, tzinfo=UTC))
            assert mail is not None
            content = await mails.read_content(conn, mail.invoice_id, credit_note="")
        login = "https://billing.stripe.com/p/login/abc"
        message = make_message(mail, content, sender="billing@example.com", logo="", cards_at=login)
        assert not list(message.iter_attachments())
        body = message.get_body(("plain",))
        assert body is not None
        assert words.lower() in body.get_content().replace("\r\n", "\n").lower()
        assert f": {login}?prefilled_email=a%40example.com\n" in body.get_content().replace("\r\n", "\n")
        unlinked = make_message(mail, content, sender="billing@example.com", logo="").get_body(("plain",))
        assert unlinked is not None
        assert "https://" not in unlinked.get_content()


async def test_runners_of_jobs_do_the_duties_of_money(bench: BillingBench) -> None:
    """Two runners compare with the provider once, when they start."""
    async with open_shop(bench) as shop:
        money = {"reconcile": Nightly(bench.billing, shop.stripe, shop.clock, LOG).reconcile}
        schedules = {"reconcile": "23 3 * * *"}
        async with (
            running_jobs(bench.ingest_pool, LOG, money=money, schedules=schedules),
            running_jobs(bench.ingest_pool, LOG, money=money, schedules=schedules),
        ):
            rows = await bench.rows("SELECT problem FROM reconciliation")
    assert [""] == [row["problem"] for row in rows]
