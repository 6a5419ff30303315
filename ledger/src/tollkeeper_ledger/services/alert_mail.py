# ruff: noqa: RUF001 - French has typographic apostrophes
"""Mails that tell payers of thresholds, in their language."""

from __future__ import annotations

from decimal import Decimal
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime as rfc_date
from types import MappingProxyType
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from babel.dates import format_datetime
from babel.numbers import format_decimal

from tollkeeper_ledger.domain.money import Currency, round_line
from tollkeeper_ledger.domain.telling import telling
from tollkeeper_ledger.services.pdf.figures import money_text
from tollkeeper_ledger.services.pdf.words import LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tollkeeper_ledger.services.pdf.words import Words
    from tollkeeper_ledger.store.mails import Mail
    from tollkeeper_ledger.store.pool import Row

_TEXTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "en": {
            "limit": "limit {subject}",
            "meter": "use of {subject}",
            "spend": "spend",
            "subject": "{tenant}: {what} has reached {threshold}",
            "body": "{what} of {tenant} has reached {threshold}: {value} of {base}.",
            "span": "This counts from {start} to {end}.",
            "trial": "{tenant}: the trial of {plan} ends on {end}",
            "bill": "It goes on from then on and is charged. To avoid that, cancel it before.",
            "cancel": "There is no payment method for it: it ends then. Enter one before, and it goes on.",
            "pause": "There is no payment method for it: it is paused then. Enter one before, and it goes on.",
            "fallback": "There is no payment method for it: it becomes {other} then. Enter one before, and it stays.",
        },
        "de": {
            "limit": "Limit {subject}",
            "meter": "Nutzung von {subject}",
            "spend": "Ausgaben",
            "subject": "{tenant}: {what}, {threshold} erreicht",
            "body": "{what} von {tenant}: {threshold} erreicht, {value} von {base}.",
            "span": "Das zählt vom {start} bis zum {end}.",
            "trial": "{tenant}: Die Probezeit von {plan} endet am {end}",
            "bill": "Danach läuft es weiter und wird berechnet. Wer das nicht möchte, kündigt vorher.",
            "cancel": "Es ist kein Zahlungsmittel hinterlegt: Es endet dann. Mit einem Zahlungsmittel läuft es weiter.",
            "pause": "Es ist kein Zahlungsmittel hinterlegt: Es ruht dann. Mit einem Zahlungsmittel läuft es weiter.",
            "fallback": "Es ist kein Zahlungsmittel hinterlegt: Es wird dann zu {other}. Mit einem bleibt es {plan}.",
        },
        "fr": {
            "limit": "limite {subject}",
            "meter": "utilisation de {subject}",
            "spend": "dépenses",
            "subject": "{tenant} : {what}, {threshold} atteint",
            "body": "{what} de {tenant} : {threshold} atteint, {value} sur {base}.",
            "span": "Compté du {start} au {end}.",
            "trial": "{tenant} : l’essai de {plan} se termine le {end}",
            "bill": "Il continue ensuite et est facturé. Pour l’éviter, résiliez avant.",
            "cancel": "Aucun moyen de paiement n’est enregistré : il prend fin alors. Avec un moyen, il continue.",
            "pause": "Aucun moyen de paiement n’est enregistré : il est suspendu alors. Avec un moyen, il continue.",
            "fallback": "Aucun moyen de paiement enregistré : il devient {other}. Avec un moyen, il reste {plan}.",
        },
    }
)


def make_alert_message(mail: Mail, content: Row, *, sender: str) -> EmailMessage:
    """Give a mail about an alert: the same bytes on every try, one Message-ID."""
    words = LANGUAGES[content["locale"]]
    texts = _TEXTS[words.locale]
    zone = ZoneInfo(content["time_zone"])
    kind, threshold = content["kind"], content["threshold"]
    other = content["key_values"][1:] if kind == "trial" else ()
    # Values of attributes are anybody's: a line's end in them would be another header.
    keys = ", ".join(telling(value) for value in content["key_values"])
    subject = f"{content['subject']} ({keys})" if keys else content["subject"]
    fields = {
        "tenant": " ".join(content["display_name"].split()),
        "what": "" if kind == "trial" else texts[kind].format(subject=subject),
        "plan": content["subject"],
        "other": "".join(other),
        "threshold": _threshold(threshold, content, words),
        "value": _figure(content["value"], content, words),
        "base": _figure(content["base"], content, words),
        "start": format_datetime(content["starts_at"], "medium", tzinfo=zone, locale=words.locale),
        "end": f"{format_datetime(content['ends_at'], 'medium', tzinfo=zone, locale=words.locale)} ({zone.key})",
    }
    seller = " ".join(content["seller"].split())
    title, said = _said(texts, content, fields)
    body = "\n\n".join([*said, seller]) + "\n"
    address = sender or content["seller_email"]
    message = EmailMessage(policy=SMTP)
    message["From"] = Address(display_name=seller, addr_spec=address)
    if content["seller_email"] and content["seller_email"] != address:
        message["Reply-To"] = content["seller_email"]
    message["To"] = mail.recipient
    message["Subject"] = title
    message["Message-ID"] = f"<{mail.mail_id}@{address.rpartition('@')[2] or 'localhost'}>"
    if mail.queued_at is not None:
        message["Date"] = rfc_date(mail.queued_at)
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(body)
    return message


def _said(texts: Mapping[str, str], content: Row, fields: Mapping[str, str]) -> tuple[str, list[str]]:
    """Give a mail's subject and its paragraphs."""
    if content["kind"] == "trial":
        title = texts["trial"].format(**fields)
        return title, [f"{title}.", texts[content["key_values"][0]].format(**fields)]
    first = texts["body"].format(**fields)
    return texts["subject"].format(**fields), [first[:1].upper() + first[1:], texts["span"].format(**fields)]


def _threshold(threshold: str, content: Row, words: Words) -> str:
    if threshold.endswith("%"):
        return threshold
    return _figure(Decimal(threshold), content, words)


def _figure(value: Decimal, content: Row, words: Words) -> str:
    if content["kind"] != "spend":
        return str(format_decimal(value, locale=words.locale))
    currency = Currency.from_code(content["subject"])
    return money_text(round_line(value, currency), currency.code, words)
