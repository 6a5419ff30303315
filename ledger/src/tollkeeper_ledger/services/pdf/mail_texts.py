# ruff: noqa: RUF001 - French has typographic apostrophes
"""What mails say, in the payer's language."""

from __future__ import annotations

import json
from calendar import monthrange
from dataclasses import dataclass
from datetime import date, datetime
from email.utils import format_datetime as rfc_date
from types import MappingProxyType
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from babel.dates import format_date

from tollkeeper_ledger.services.pdf.texts import money_text
from tollkeeper_ledger.services.pdf.words import LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tollkeeper_ledger.services.pdf.words import Words


WARNINGS = ("card_expires", "dispute")
"""Kinds of mails that come without a PDF."""


@dataclass(frozen=True, slots=True)
class MailTexts:
    """A mail's parts as text."""

    subject: str
    body: str
    date: str
    seller_email: str
    paper: str
    number: str


_SUBJECTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "en": {
            "invoice": "Invoice {number} from {seller}",
            "credit_note": "Credit note {number} from {seller}",
            "payment_failed": "Payment of invoice {number} failed",
            "card_expires": "Your card expires soon",
            "dispute": "Disputed payment of invoice {number}: {stage}",
        },
        "de": {
            "invoice": "Rechnung {number} von {seller}",
            "credit_note": "Gutschrift {number} von {seller}",
            "payment_failed": "Zahlung der Rechnung {number} fehlgeschlagen",
            "card_expires": "Ihre Karte läuft bald ab",
        },
        "fr": {
            "invoice": "Facture {number} de {seller}",
            "credit_note": "Avoir {number} de {seller}",
            "payment_failed": "Échec du paiement de la facture {number}",
            "card_expires": "Votre carte expire bientôt",
        },
    }
)
_BODIES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "en": {
            "invoice": "Please find attached invoice {number} over {total}, payable by {due}.",
            "credit_note": "Please find attached credit note {number} over {total}.",
            "payment_failed": "We could not collect {open} for invoice {number}. We will try again.",
            "card_expires": "The card {card} that we charge is good until {expires}. Please enter a new one in time.",
            "dispute": "The bank of {payer} disputes a payment of invoice {number}; the dispute {dispute} is {stage} "
            "now. `tollkeeper payment disputes` tells amount, reason, and until when evidence can be sent.",
            "pay": "Pay here: {url}",
        },
        "de": {
            "invoice": "Anbei erhalten Sie die Rechnung {number} über {total}, zahlbar bis {due}.",
            "credit_note": "Anbei erhalten Sie die Gutschrift {number} über {total}.",
            "payment_failed": "Wir konnten {open} für die Rechnung {number} nicht einziehen. Wir versuchen es wieder.",
            "card_expires": "Die Karte {card}, die wir belasten, ist bis {expires} gültig. "
            "Bitte hinterlegen Sie rechtzeitig eine neue.",
            "pay": "Hier bezahlen: {url}",
        },
        "fr": {
            "invoice": "Veuillez trouver ci-joint la facture {number} de {total}, payable au plus tard le {due}.",
            "credit_note": "Veuillez trouver ci-joint l’avoir {number} de {total}.",
            "payment_failed": "Nous n’avons pas pu encaisser {open} pour la facture {number}. Nous réessaierons.",
            "card_expires": "La carte {card} que nous débitons est valable jusqu’au {expires}. "
            "Veuillez en enregistrer une nouvelle à temps.",
            "pay": "Payer ici : {url}",
        },
    }
)


def mail_texts(
    kind: str, document: bytes, *, due_at: datetime, due_minor: int, pay_url: str, stage: str = ""
) -> MailTexts:
    """Give a mail's texts. Pure: depends on what it is given, not on clock or machine locale.

    `stage` of a warning is a card and the last month in which it is good, `visa 4242/2030-12`, or a dispute and where
    it is.
    """
    read = json.loads(document)
    # Of disputes the seller hears, not the payer.
    words = LANGUAGES["en" if kind == "dispute" else read["billing"]["locale"]]
    zone = ZoneInfo(read["time_zone"])
    seller = " ".join(read["seller"]["name"].split())
    fields = {
        "number": read["number"],
        "seller": seller,
        "total": money_text(read["total_minor"], read["currency"], words),
        "open": money_text(due_minor, read["currency"], words),
        "due": format_date(due_at.astimezone(zone), words.day, locale=words.locale),
        "url": pay_url,
        "card": stage.rpartition("/")[0],
        "dispute": stage.rpartition("/")[0],
        "stage": stage.rpartition("/")[2],
        "payer": " ".join(read["billing_tenant"]["name"].split()),
        "expires": _last_day(stage.rpartition("/")[2], words) if kind == "card_expires" else "",
    }
    bodies = _BODIES[words.locale]
    rows = [bodies[kind].format(**fields)]
    if pay_url and kind not in ("credit_note", *WARNINGS):
        rows.append(bodies["pay"].format(**fields))
    rows.append(seller)
    return MailTexts(
        subject=_SUBJECTS[words.locale][kind].format(**fields),
        body="\n\n".join(rows) + "\n",
        date=rfc_date(datetime.fromisoformat(read["finalised_at"])),
        seller_email=read["seller"]["email"],
        paper=read["billing"]["paper"],
        number=read["number"],
    )


def _last_day(month: str, words: Words) -> str:
    """Give a month's last day in the payer's language."""
    first = date.fromisoformat(f"{month}-01")
    return format_date(first.replace(day=monthrange(first.year, first.month)[1]), words.day, locale=words.locale)
