"""What mails say, in the payer's language: as text, and as a page for programs that show HTML."""

from __future__ import annotations

import json
from calendar import monthrange
from dataclasses import dataclass
from datetime import date, datetime
from email.utils import format_datetime as rfc_date
from typing import TYPE_CHECKING, Any, TypeAlias
from zoneinfo import ZoneInfo

from tollkeeper_ledger.services.pdf.figures import day_text, money_text, period_text
from tollkeeper_ledger.services.pdf.mail_html import mail_html
from tollkeeper_ledger.services.pdf.mail_words import SENTENCES, SUBJECTS
from tollkeeper_ledger.services.pdf.words import LANGUAGES

if TYPE_CHECKING:
    from tollkeeper_ledger.services.pdf.words import Words

Json: TypeAlias = dict[str, Any]

WARNINGS = ("card_expires", "dispute")
"""Kinds of mails that come without a PDF."""
LAST_TRY = "last"
"""Ends the stage of a mail about a failed payment after which no other is tried."""
_BRANDS = {"amex": "American Express", "diners": "Diners Club", "jcb": "JCB", "unionpay": "UnionPay"}
"""Brands of cards that don't write themselves as their name at the provider with a capital letter."""


@dataclass(frozen=True, slots=True)
class MailTexts:
    """A mail's parts as text."""

    subject: str
    body: str
    html: str
    date: str
    seller: str
    seller_email: str
    paper: str
    number: str


def mail_texts(
    kind: str, document: bytes, *, due_at: datetime, due_minor: int, pay_url: str, card_url: str = "", stage: str = ""
) -> MailTexts:
    """Give a mail's texts. Pure: depends on what it is given, not on clock or machine locale.

    `stage` of a warning is a card and the last month in which it is good, `visa 4242/2030-12`, or a dispute and where
    it is; of a failed payment its count, `3`, or `4/last` where no other try follows. On `pay_url` the invoice is paid,
    on `card_url` the card is changed; where one is empty, the mail has no link.
    """
    read = json.loads(document)
    # Of disputes the seller hears, not the payer.
    words = LANGUAGES["en" if kind == "dispute" else read["billing"]["locale"]]
    said = SENTENCES[words.locale]
    fields = _fields(kind, read, words, due_at=due_at, due_minor=due_minor, stage=stage)
    sentences = [said[kind], *(said[name] for name in _more(kind, read, due_minor=due_minor, stage=stage))]
    hello = [] if kind == "dispute" else [said["hello"].format(**fields)]
    before = [*hello, " ".join(sentences).format(**fields)]
    asks = due_minor > 0 and kind in ("invoice", "payment_failed")
    does, url = ("change", card_url) if kind == "card_expires" else ("pay", pay_url if asks else "")
    button = (said[does], url) if url else None
    after = [f"{said['bye']}\n{fields['seller']}"]
    link = [] if button is None else [said[f"{does} at"].format(url=url)]
    subject = SUBJECTS[words.locale][kind].format(**fields)
    facts = _facts(kind, fields, words, asks=asks)
    return MailTexts(
        subject=subject,
        body="\n\n".join([*before, *link, *after]) + "\n",
        html=mail_html(
            lang=words.locale,
            title=subject,
            seller=fields["seller"],
            before=before,
            facts=facts,
            button=button,
            after=after,
        ),
        date=rfc_date(datetime.fromisoformat(read["finalised_at"])),
        seller=fields["seller"],
        seller_email=read["seller"]["email"],
        paper=read["billing"]["paper"],
        number=read["number"],
    )


def _fields(kind: str, read: Json, words: Words, *, due_at: datetime, due_minor: int, stage: str) -> dict[str, str]:
    zone = ZoneInfo(read["time_zone"])
    first, _, last = stage.rpartition("/")
    return {
        "number": read["number"],
        "invoice": read.get("invoice", ""),
        "seller": " ".join(read["seller"]["name"].split()),
        "payer": " ".join(read["billing_tenant"]["name"].split()),
        "period": period_text(read["period"], zone, words),
        "total": money_text(read["total_minor"], read["currency"], words),
        "open": money_text(due_minor, read["currency"], words),
        "due": day_text(due_at.astimezone(zone), words),
        "card": _card_text(first),
        "dispute": first,
        "stage": last.replace("_", " "),
        "expires": _last_day(last, words) if kind == "card_expires" else "",
    }


def _more(kind: str, read: Json, *, due_minor: int, stage: str) -> tuple[str, ...]:
    """Name the sentences that say what is to be done."""
    if kind == "payment_failed":
        return (LAST_TRY,) if stage.endswith(f"/{LAST_TRY}") else ("again",)
    if kind != "invoice":
        return ()
    total_minor = read["total_minor"]
    if total_minor <= 0:
        return ("favour" if total_minor else "nothing",)
    if due_minor <= 0:
        return ("settled",)
    return ("open" if due_minor == total_minor else "open of",)


def _facts(kind: str, fields: dict[str, str], words: Words, *, asks: bool) -> list[tuple[str, str]]:
    """Give what a reader looks for first."""
    if kind in WARNINGS:
        return []
    facts = [(words["Credit note" if kind == "credit_note" else "Invoice"], fields["number"])]
    if kind == "credit_note":
        facts.append((words["For invoice"], fields["invoice"]))
    facts += [(words["Billing period"], fields["period"]), (words["Total"], fields["total"])]
    if asks:
        facts += [(words["Amount due"], fields["open"]), (words["Due date"], fields["due"])]
    return facts


def _card_text(label: str) -> str:
    """Give a card as its brand writes itself, and its last digits."""
    brand, _, digits = label.rpartition(" ")
    return f"{_BRANDS.get(brand, brand.replace('_', ' ').title())} \N{BULLET}\N{BULLET}\N{BULLET}\N{BULLET} {digits}"


def _last_day(month: str, words: Words) -> str:
    """Give a month's last day in the payer's language."""
    first = date.fromisoformat(f"{month}-01")
    return day_text(first.replace(day=monthrange(first.year, first.month)[1]), words)
