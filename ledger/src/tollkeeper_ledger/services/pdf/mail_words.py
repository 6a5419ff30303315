# ruff: noqa: RUF001 - French has typographic apostrophes
"""The sentences of mails, in the languages that they are written in."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SUBJECTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
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
"""By language and kind of mail."""

SENTENCES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "en": {
            "hello": "Hello {payer},",
            "bye": "Kind regards",
            "invoice": "Please find attached invoice {number} for {period}.",
            "open": "{open} is to be paid by {due}.",
            "open of": "{open} of {total} is to be paid by {due}; the rest is settled.",
            "settled": "It is settled already: nothing is to pay.",
            "nothing": "Nothing is to pay.",
            "favour": "The amount is in your favour; it pays your next invoices.",
            "credit_note": "Please find attached credit note {number} over {total} for invoice {invoice}.",
            "payment_failed": "We could not collect {open} for invoice {number}.",
            "again": "We will try again. Please make sure that your card or account can be charged.",
            "last": "This was our last try: please pay the invoice, or give us another means of payment.",
            "card_expires": "The card {card} that we charge is good until {expires}. Please enter a new one in time.",
            "dispute": "The bank of {payer} disputes a payment of invoice {number}; the dispute {dispute} is {stage} "
            "now. `tollkeeper payment disputes` tells amount, reason, and until when evidence can be sent.",
            "pay": "Pay here",
            "pay at": "Pay here: {url}",
            "change": "Change your card here",
            "change at": "Change your card here: {url}",
        },
        "de": {
            "hello": "Guten Tag {payer},",
            "bye": "Mit freundlichen Grüßen",
            "invoice": "anbei erhalten Sie die Rechnung {number} für {period}.",
            "open": "{open} sind zahlbar bis {due}.",
            "open of": "Von {total} sind noch {open} zahlbar bis {due}; der Rest ist beglichen.",
            "settled": "Sie ist bereits beglichen: Es ist nichts zu zahlen.",
            "nothing": "Es ist nichts zu zahlen.",
            "favour": "Der Betrag ist Ihr Guthaben; er wird mit Ihren nächsten Rechnungen verrechnet.",
            "credit_note": "anbei erhalten Sie die Gutschrift {number} über {total} zur Rechnung {invoice}.",
            "payment_failed": "wir konnten {open} für die Rechnung {number} nicht einziehen.",
            "again": "Wir versuchen es wieder. Bitte sorgen Sie dafür, dass Ihre Karte oder Ihr Konto belastbar ist.",
            "last": "Dies war unser letzter Versuch: Bitte begleichen Sie die Rechnung oder hinterlegen Sie ein "
            "anderes Zahlungsmittel.",
            "card_expires": "die Karte {card}, die wir belasten, ist bis {expires} gültig. "
            "Bitte hinterlegen Sie rechtzeitig eine neue.",
            "pay": "Hier bezahlen",
            "pay at": "Hier bezahlen: {url}",
            "change": "Karte hier ändern",
            "change at": "Karte hier ändern: {url}",
        },
        "fr": {
            "hello": "Bonjour {payer},",
            "bye": "Cordialement",
            "invoice": "Veuillez trouver ci-joint la facture {number} pour la période {period}.",
            "open": "{open} sont à payer au plus tard le {due}.",
            "open of": "Sur {total}, {open} restent à payer au plus tard le {due} ; le reste est réglé.",
            "settled": "Elle est déjà réglée : aucun paiement n’est à effectuer.",
            "nothing": "Aucun paiement n’est à effectuer.",
            "favour": "Ce montant est en votre faveur ; il sera déduit de vos prochaines factures.",
            "credit_note": "Veuillez trouver ci-joint l’avoir {number} de {total} pour la facture {invoice}.",
            "payment_failed": "Nous n’avons pas pu encaisser {open} pour la facture {number}.",
            "again": "Nous réessaierons. Merci de vérifier que votre carte ou votre compte peut être débité.",
            "last": "C’était notre dernière tentative : merci de régler la facture ou de nous indiquer un autre moyen "
            "de paiement.",
            "card_expires": "La carte {card} que nous débitons est valable jusqu’au {expires}. "
            "Veuillez en enregistrer une nouvelle à temps.",
            "pay": "Payer ici",
            "pay at": "Payer ici : {url}",
            "change": "Changer de carte ici",
            "change at": "Changer de carte ici : {url}",
        },
    }
)
"""By language and name."""
