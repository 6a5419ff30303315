# ruff: noqa: RUF001 - French has typographic apostrophes
"""What an invoice says, in the languages that it is written in."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Words:
    """One language: phrases by their English names, and how dates and money are written."""

    locale: str
    day: str
    """Pattern of a date that stands alone."""
    short_day: str
    """Pattern of a date in a span."""
    money: str
    """Pattern of an amount; `0` stands for the minor digits."""
    phrases: Mapping[str, str]

    def __getitem__(self, phrase: str) -> str:
        """Give a phrase; English ones stand for themselves. Raises KeyError for one that has no translation."""
        return phrase if self.locale == "en" else self.phrases[phrase]


_NO_BREAK = "\N{NO-BREAK SPACE}"

_GERMAN = {
    "Invoice": "Rechnung",
    "Credit note": "Gutschrift",
    "Preview": "Vorschau",
    "Bill to": "Rechnung an",
    "Credit to": "Gutschrift an",
    "Tax ID": "USt-IdNr.",
    "Nothing was used in this period.": "In diesem Zeitraum wurde nichts verbraucht.",
    "Description": "Beschreibung",
    "Quantity": "Menge",
    "Included": "Enthalten",
    "Unit price": "Einzelpreis",
    "Amount": "Betrag",
    "Subtotal": "Zwischensumme",
    "Discount": "Rabatt",
    "Net": "Netto",
    "Tax": "Steuer",
    "Total": "Gesamtbetrag",
    "Credited": "Gutgeschrieben",
    "Invoice date": "Rechnungsdatum",
    "Date": "Datum",
    "For invoice": "Zur Rechnung",
    "Billing period": "Abrechnungszeitraum",
    "Plan": "Tarif",
    "version": "Version",
    "Tenant": "Mandant",
    "Usage records": "Verbrauchssätze",
    "Adjustment for": "Berichtigung für",
    "per": "je",
    "by tier": "nach Staffel",
    "Payment": "Zahlung",
    "Due date": "Fällig am",
    "Amount due": "Offener Betrag",
    "Payable by": "Zahlbar bis",
    "Nothing is to pay.": "Es ist nichts zu zahlen.",
    "This amount is in your favour; it pays your next invoices.":
        "Dieser Betrag ist Ihr Guthaben; er wird mit Ihren nächsten Rechnungen verrechnet.",
    "Void": "Storniert",
    "Replaces invoice": "Ersetzt Rechnung",
    "Carried forward": "Übertrag",
    "Brought forward": "Übertrag",
    "none": "ohne",
    "on": "auf",
    "in advance": "im Voraus",
    "unused": "nicht genutzt",
    "days of a share": "Tagen",
    "seat": "Platz",
    "seats": "Plätze",
    "Minimum commitment": "Mindestumsatz",
    "tier": "Staffel",
    "flat": "Grundbetrag",
    "blocks": "Blöcke",
    "packages": "Pakete",
    "percentage": "Prozentsatz",
    "per event": "je Vorgang",
    "event": "Vorgang",
    "records": "Vorgängen",
    "carried amounts": "übermittelte Beträge",
    "converted": "umgerechnet",
    "maximum": "Höchstbetrag",
    "minimum": "Mindestbetrag",
    "with what is due per record": "mit dem Anteil je Vorgang",
    "No tax has been charged on this invoice.": "Auf dieser Rechnung ist keine Steuer ausgewiesen.",
    "Reverse charge: the customer accounts for the tax.": "Steuerschuldnerschaft des Leistungsempfängers.",
    "Adjustments": "Berichtigungen",
    "Usage that arrived after its period had been closed is rated with the prices of that period.":
        "Verbrauch, der nach dem Abschluss seines Zeitraums eintraf, ist mit dessen Preisen bewertet.",
    "Already invoiced": "Bereits berechnet",
    "Usage so far; what comes until the period's end is invoiced later, less this invoice.":
        "Verbrauch bis jetzt; was bis zum Ende des Zeitraums folgt, wird später berechnet, abzüglich dieser Rechnung.",
    "Page": "Seite",
    "of": "von",
}  # fmt: skip

_FRENCH = {
    "Invoice": "Facture",
    "Credit note": "Avoir",
    "Preview": "Aperçu",
    "Bill to": "Facturé à",
    "Credit to": "Crédité à",
    "Tax ID": "N° TVA",
    "Nothing was used in this period.": "Rien n’a été consommé pendant cette période.",
    "Description": "Désignation",
    "Quantity": "Quantité",
    "Included": "Inclus",
    "Unit price": "Prix unitaire",
    "Amount": "Montant",
    "Subtotal": "Sous-total",
    "Discount": "Remise",
    "Net": "Total HT",
    "Tax": "Taxe",
    "Total": "Total",
    "Credited": "Montant crédité",
    "Invoice date": "Date de facture",
    "Date": "Date",
    "For invoice": "Pour la facture",
    "Billing period": "Période facturée",
    "Plan": "Formule",
    "version": "version",
    "Tenant": "Client",
    "Usage records": "Relevés d’usage",
    "Adjustment for": "Régularisation pour",
    "per": "par",
    "by tier": "par palier",
    "Payment": "Paiement",
    "Due date": "Échéance",
    "Amount due": "Montant dû",
    "Payable by": "Payable au plus tard le",
    "Nothing is to pay.": "Aucun paiement n’est à effectuer.",
    "This amount is in your favour; it pays your next invoices.":
        "Ce montant est en votre faveur ; il sera déduit de vos prochaines factures.",
    "Void": "Annulée",
    "Replaces invoice": "Remplace la facture",
    "Carried forward": "À reporter",
    "Brought forward": "Report",
    "none": "sans",
    "on": "sur",
    "in advance": "d’avance",
    "unused": "non utilisé",
    "days of a share": "jours",
    "seat": "poste",
    "seats": "postes",
    "Minimum commitment": "Engagement minimum",
    "tier": "palier",
    "flat": "forfait",
    "blocks": "blocs",
    "packages": "lots",
    "percentage": "pourcentage",
    "per event": "par opération",
    "event": "opération",
    "records": "opérations",
    "carried amounts": "montants transmis",
    "converted": "converti",
    "maximum": "maximum",
    "minimum": "minimum",
    "with what is due per record": "avec la part par opération",
    "No tax has been charged on this invoice.": "Aucune taxe n’est appliquée sur cette facture.",
    "Reverse charge: the customer accounts for the tax.": "Autoliquidation de la taxe par le preneur.",
    "Adjustments": "Régularisations",
    "Usage that arrived after its period had been closed is rated with the prices of that period.":
        "L’usage reçu après la clôture de sa période est facturé aux prix de cette période.",
    "Already invoiced": "Déjà facturé",
    "Usage so far; what comes until the period's end is invoiced later, less this invoice.":
        "Usage à ce jour ; le reste de la période sera facturé plus tard, déduction faite de cette facture.",
    "Page": "Page",
    "of": "sur",
}  # fmt: skip

LANGUAGES: Mapping[str, Words] = MappingProxyType(
    {
        "en": Words("en", "d MMMM y", "d MMM y", "\N{CURRENCY SIGN}#,##0", MappingProxyType({})),
        "de": Words("de", "d. MMMM y", "d. MMM y", f"#,##0{_NO_BREAK}\N{CURRENCY SIGN}", MappingProxyType(_GERMAN)),
        "fr": Words("fr", "d MMMM y", "d MMM y", f"#,##0{_NO_BREAK}\N{CURRENCY SIGN}", MappingProxyType(_FRENCH)),
    }
)
"""Languages by locale."""
