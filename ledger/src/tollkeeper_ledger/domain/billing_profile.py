"""How a payer is billed: address, language, provider, terms, taxes, and what happens when a payment fails."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.money import parse_decimal

if TYPE_CHECKING:
    from collections.abc import Sequence

Json: TypeAlias = dict[str, Any]

LOCALES = ("en", "de", "fr")
PAPERS = ("a4", "letter")
PROVIDERS = ("manual", "stripe")
TAX_MODES = ("exclusive", "inclusive", "reverse_charge", "exempt")
"""Anything but `exclusive` is the payer's own word, as taxes are; `exempt`: not even its seller's taxes."""
DUNNING_POLICIES = ("mark", "suspend", "uncollectible", "fallback")
DUE_DAYS_MAX = 365
DUNNING_DAYS_DEFAULT = (1, 3, 5, 7)
EMAIL_CHARS_MAX = 254
_TAXES_MAX = 16
_NAME_CHARS_MAX = 64
_DUNNING_STEPS_MAX = 10
_PERCENT_MAX = Decimal(100)


@dataclass(frozen=True, slots=True)
class TaxRate:
    """One tax: on lines of these meters, or on every line that no earlier rate names."""

    name: str
    percent: str
    meters: tuple[str, ...] = ()


NO_TAX = TaxRate(name="", percent="0")


@dataclass(frozen=True, slots=True)
class BillingProfile:
    """How a payer is billed; the defaults hold where nobody said anything."""

    email: str = ""
    locale: str = "en"
    paper: str = "a4"
    provider: str = "manual"
    due_days: int = 14
    taxes: tuple[TaxRate, ...] = ()
    tax_mode: str = "exclusive"
    review: bool = False
    dunning_days: tuple[int, ...] = DUNNING_DAYS_DEFAULT
    dunning_policy: str = "mark"
    fallback_plan: str = ""
    """The plan that the policy `fallback` moves to."""
    pays_by: str = ""
    """How a payer of provider `manual` pays, as was agreed with it; empty = nothing was."""

    def frozen(self) -> Json:
        """Give what goes into an invoice's inputs."""
        return {
            "locale": self.locale,
            "paper": self.paper,
            "due_days": self.due_days,
            "tax_mode": self.tax_mode,
            "taxes": taxes_to_json(self.taxes),
        }


def taxes_to_json(taxes: Sequence[TaxRate]) -> list[Json]:
    """Give taxes as they are stored."""
    return [{"name": tax.name, "percent": tax.percent, "meters": list(tax.meters)} for tax in taxes]


def taxes_from_json(taxes: Sequence[Json]) -> tuple[TaxRate, ...]:
    """Read taxes as they are stored."""
    return tuple(TaxRate(name=tax["name"], percent=tax["percent"], meters=tuple(tax["meters"])) for tax in taxes)


def tax_for(taxes: Sequence[TaxRate], meter: str) -> TaxRate:
    """Give the first tax that names the meter, or that names none."""
    return next((tax for tax in taxes if not tax.meters or meter in tax.meters), NO_TAX)


def check_profile(profile: BillingProfile) -> None:
    """Raise InvalidFieldError for the first field that breaks a rule."""
    for field, value, known in (
        ("locale", profile.locale, LOCALES),
        ("paper", profile.paper, PAPERS),
        ("provider", profile.provider, PROVIDERS),
        ("tax_mode", profile.tax_mode, TAX_MODES),
        ("dunning_policy", profile.dunning_policy, DUNNING_POLICIES),
    ):
        if value not in known:
            raise InvalidFieldError(f"profile.{field}", "is not known", value=ascii(value), bound=", ".join(known))
    if profile.dunning_policy == "fallback" and not profile.fallback_plan:
        raise InvalidFieldError(
            "profile.fallback_plan", "is missing", reason="FIELD_REQUIRED", remedy="name the plan to move to"
        )
    if not profile.pays_by.isprintable() or len(profile.pays_by) > _NAME_CHARS_MAX:
        raise InvalidFieldError(
            "profile.pays_by", "is no name", value=ascii(profile.pays_by[:64]), bound="up to 64 printable characters"
        )
    if profile.email:
        check_email(profile.email)
    if profile.due_days > DUE_DAYS_MAX:
        raise InvalidFieldError(
            "profile.due_days", "is too many", reason="FIELD_OUT_OF_RANGE", value=profile.due_days, bound="0 to 365"
        )
    days = profile.dunning_days
    if (
        len(days) > _DUNNING_STEPS_MAX
        or list(days) != sorted(set(days))
        or any(not 1 <= d <= DUE_DAYS_MAX for d in days)
    ):
        raise InvalidFieldError(
            "profile.dunning_days",
            "must rise",
            value=list(days),
            bound=f"at most {_DUNNING_STEPS_MAX} days, each 1 to {DUE_DAYS_MAX}, in rising order",
        )
    _check_taxes(profile.taxes)


def is_email(address: str) -> bool:
    """Whether this is the address of one mailbox."""
    name, at, host = address.rpartition("@")
    is_one_word = address.isprintable() and address.isascii() and not set(address) & set(' ,;:<>()[]"\\')
    return bool(at and name) and "." in host.strip(".") and is_one_word and len(address) <= EMAIL_CHARS_MAX


def check_email(address: str) -> None:
    """Raise InvalidFieldError for what is no address of one mailbox."""
    if not is_email(address):
        raise InvalidFieldError(
            "profile.email",
            "is no address",
            value=ascii(address[:64]),
            bound=f"one mailbox, at most {EMAIL_CHARS_MAX} ASCII characters",
        )


def _check_taxes(taxes: Sequence[TaxRate]) -> None:
    if len(taxes) > _TAXES_MAX:
        raise InvalidFieldError("profile.taxes", "are too many", value=len(taxes), bound=f"at most {_TAXES_MAX}")
    for place, tax in enumerate(taxes):
        field = f"profile.taxes[{place}]"
        if not tax.name or not tax.name.isprintable() or len(tax.name) > _NAME_CHARS_MAX:
            raise InvalidFieldError(
                f"{field}.name", "is no name", value=ascii(tax.name[:64]), bound="1 to 64 printable characters"
            )
        try:
            percent = parse_decimal(tax.percent)
        except ValueError:
            percent = Decimal(-1)
        if not 0 <= percent <= _PERCENT_MAX:
            raise InvalidFieldError(
                f"{field}.percent", "is no percentage", value=ascii(tax.percent[:40]), bound="a decimal from 0 to 100"
            )
