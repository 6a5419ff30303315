"""What mails say: what is to be paid and until when, in three languages, as text and as a page that runs nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from email import message_from_bytes
from email.policy import default
from html.parser import HTMLParser
from typing import Any
from uuid import UUID

import pytest
from tollkeeper_ledger.services.alert_mail import make_alert_message
from tollkeeper_ledger.services.pdf.mail_texts import MailTexts, mail_texts
from tollkeeper_ledger.services.pdf.mail_words import SENTENCES, SUBJECTS
from tollkeeper_ledger.store.mails import Mail

DUE = datetime(2031, 6, 15, tzinfo=UTC)
PAY = "https://pay.example/i?a=1&b=2"
CARDS = "https://cards.example/login?prefilled_email=a%40b.example"


def told(kind: str = "invoice", *, due_minor: int = 2380, stage: str = "", **changes: Any) -> MailTexts:
    """Give a mail about an invoice over 23.80."""
    document = {
        "number": "TK-000001",
        "invoice": "TK-000001",
        "finalised_at": "2031-06-01T00:00:00Z",
        "currency": "EUR",
        "total_minor": 2380,
        "time_zone": "UTC",
        "period": {"start": "2031-05-01T00:00:00Z", "end": "2031-06-01T00:00:00Z"},
        "seller": {"name": "Seller GmbH", "email": "s@example.com"},
        "billing_tenant": {"name": "Payer & Söhne <KG>"},
        "billing": {"locale": "en", "paper": "a4"},
        **changes,
    }
    read = json.dumps(document).encode()
    return mail_texts(kind, read, due_at=DUE, due_minor=due_minor, pay_url=PAY, card_url=CARDS, stage=stage)


@pytest.mark.parametrize(
    ("total_minor", "due_minor", "said", "asks"),
    [
        (2380, 2380, "\N{EURO SIGN}23.80 is to be paid by 15 June 2031.", True),
        (2380, 1000, "\N{EURO SIGN}10.00 of \N{EURO SIGN}23.80 is to be paid by 15 June 2031", True),
        (2380, 0, "It is settled already: nothing is to pay.", False),
        (0, 0, "Nothing is to pay.", False),
        (-500, 0, "The amount is in your favour; it pays your next invoices.", False),
    ],
)
def test_a_mail_asks_for_what_is_open(total_minor: int, due_minor: int, said: str, *, asks: bool) -> None:
    """What a balance or a credit note has settled is not asked for again; where nothing is open no link to pay."""
    mail = told(total_minor=total_minor, due_minor=due_minor)
    assert said in mail.body
    assert (PAY in mail.body, "Pay here" in mail.html) == (asks, asks)


@pytest.mark.parametrize(("stage", "said"), [("3", "We will try again."), ("4/last", "This was our last try")])
def test_no_other_try_is_promised_after_the_last(stage: str, said: str) -> None:
    """Who fails to pay hears whether it is tried again."""
    assert said in told("payment_failed", stage=stage).body


class Page(HTMLParser):
    """Reads a page: its tags, addresses and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag and where it leads."""
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"href", "src", "action"}]

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text += data


@pytest.mark.parametrize("locale", SENTENCES)
@pytest.mark.parametrize("kind", ["invoice", "credit_note", "payment_failed", "card_expires"])
def test_a_page_says_what_the_text_says(kind: str, locale: str) -> None:
    """Each kind of mail in each language: the page holds every paragraph of the text, names are shown as they are.

    It has no image or script, and leads nowhere but to where the invoice is paid or the card is changed.
    """
    stage = "visa 4242/2030-12" if kind == "card_expires" else "1"
    mail = told(kind, stage=stage, billing={"locale": locale, "paper": "a4"})
    page = Page()
    page.feed(mail.html)
    shown = " ".join(page.text.split())
    for paragraph in mail.body.split("\n\n"):
        if PAY not in paragraph and CARDS not in paragraph:
            assert "".join(paragraph.split()) in "".join(shown.split())
    assert "Payer & Söhne <KG>" in shown
    assert mail.subject in shown
    assert not page.tags & {"img", "script", "link", "form", "iframe", "svg"}
    leads_to = {"invoice": [PAY], "payment_failed": [PAY], "card_expires": [CARDS]}.get(kind, [])
    assert page.addresses == leads_to
    assert all(address in mail.body for address in leads_to)


@pytest.mark.parametrize(
    ("label", "shown"), [("visa 4242", "Visa •••• 4242"), ("amex 0005", "American Express •••• 0005")]
)
def test_a_card_is_named_as_its_brand_does(label: str, shown: str) -> None:
    """A payer finds the card among others."""
    assert f"The card {shown} that we charge is good until 31 December 2030." in (
        told("card_expires", stage=f"{label}/2030-12").body
    )


def test_a_page_that_is_centred_has_text_that_is_not() -> None:
    """What a cell centres, programs hand on to the tables in it: the one with the text says where that begins."""
    centred = told().html.partition('<td align="center">')[2]
    assert "text-align:left" in centred[: centred.index("<td")]


def test_every_language_has_every_sentence() -> None:
    """No language lacks a sentence; of disputes the seller hears, in English."""
    for phrases in (SENTENCES, SUBJECTS):
        assert {locale: set(phrases["en"]) - {"dispute"} for locale in phrases} == {
            locale: set(said) - {"dispute"} for locale, said in phrases.items()
        }


def test_values_of_attributes_can_add_no_header() -> None:
    """A key's values are whatever callers said: line ends and marks of direction are shown as what they are."""
    content: Any = {
        "locale": "en",
        "time_zone": "UTC",
        "kind": "limit",
        "threshold": "75%",
        "key_values": ["a\r\nBcc: other@example.com", "\u202etxt"],
        "subject": "daily",
        "display_name": "Acme",
        "value": Decimal(75),
        "base": Decimal(100),
        "starts_at": DUE,
        "ends_at": DUE,
        "seller": "Seller GmbH",
        "seller_email": "s@example.com",
    }
    mail = Mail(UUID(int=1), UUID(int=2), "alert", None, "", "ap@customer.example")
    sent = message_from_bytes(make_alert_message(mail, content, sender="").as_bytes(), policy=default)
    assert sent["Subject"].strip() == "Acme: limit daily (a\\r\\nBcc: other@example.com, \\u202etxt) has reached 75%"
    assert sent["Bcc"] is None
