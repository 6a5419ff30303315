"""Worked cases of money over time: proration, minimums, coupons, taxes, levels over time, progressive billing."""

from __future__ import annotations

from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.money import exact, plain, round_minor
from tollkeeper_ledger.domain.proration import prorate, true_up, upgrade_net
from tollkeeper_ledger.domain.rating.levels import held_units
from tollkeeper_ledger.domain.rating.progressive import progressive_invoices
from tollkeeper_ledger.domain.taxes import Taxable, coupon_shares, tax_of, tax_shares

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tollkeeper_ledger.domain.rating.case_fields import Fields

Answer: TypeAlias = dict[str, Any]

_UNITS_SHOWN = Decimal("1e-10")


def _prorated(amount_minor: int, given: Fields) -> int:
    return prorate(amount_minor, part=given.whole("days"), whole=given.whole("period_days"))


def _rate_prorated(params: Fields, given: Fields) -> Answer:
    return {"amount_cents": str(_prorated(params.whole("flat_cents"), given))}


def _rate_prorated_tax(params: Fields, given: Fields) -> Answer:
    """Prorate a fee, or its unused rest for a credit note, and tax the rounded result."""
    sub_total = _prorated(params.whole("flat_cents"), given)
    tax = tax_of(sub_total, params.decimal("tax_percent"))
    return {"sub_total_cents": str(sub_total), "tax_cents": str(tax), "total_cents": str(sub_total + tax)}


def _rate_minimum(params: Fields, given: Fields) -> Answer:
    missing = true_up(
        params.whole("minimum_cents"),
        charged_minor=given.whole("usage_cents"),
        part=given.whole("days"),
        whole=given.whole("period_days"),
    )
    return {"true_up_cents": str(missing)}


def _rate_commitment(params: Fields, given: Fields) -> Answer:
    """Give what is missing to a prorated commitment beside the prorated fee and other charges of the period."""
    missing = true_up(
        params.whole("commitment_cents"),
        charged_minor=_prorated(params.whole("flat_cents", default=0), given) + given.whole("usage_cents", default=0),
        part=given.whole("days"),
        whole=given.whole("period_days"),
    )
    return {"true_up_cents": str(missing)}


def _rate_upgrade(params: Fields, given: Fields) -> Answer:
    net = upgrade_net(
        params.whole("new_cents"),
        params.whole("old_paid_cents"),
        part=given.whole("days"),
        whole=given.whole("period_days"),
    )
    return {"amount_cents": str(net)}


def _whole(amount: Decimal) -> int:
    if amount != amount.to_integral_value():
        raise ValueError(f"a fee must be whole minor units, not {amount}")
    return int(amount)


def _rate_coupon(params: Fields, given: Fields) -> Answer:
    """Spread a coupon over fees, then tax what is left of each."""
    fees = [Taxable(amount_minor=_whole(amount), tax_percent=rate) for amount, rate in given.rows("fees", 2)]
    shares = coupon_shares(params.whole("coupon_cents"), fees)
    left = [
        Taxable(amount_minor=fee.amount_minor - share, tax_percent=fee.tax_percent)
        for fee, share in zip(fees, shares, strict=True)
    ]
    taxes = tax_shares(left)
    total = sum(fee.amount_minor for fee in left) + sum(taxes)
    return {
        "coupon_shares": [str(share) for share in shares],
        "tax_cents": [str(tax) for tax in taxes],
        "total_cents": str(total),
    }


@exact
def _rate_weighted(params: Fields, given: Fields) -> Answer:
    units = held_units(given.rows("levels", 2), params.decimal("period_days"))
    return {
        "units": plain(units.quantize(_UNITS_SHOWN)),
        "amount_cents_at_1": str(round_minor(units * 100)),
    }


@exact
def _rate_progressive(params: Fields, given: Fields) -> Answer:
    bill = progressive_invoices(
        unit_minor=params.decimal("unit") * 100,
        threshold_minor=params.whole("threshold_cents"),
        steps=given.decimals("usage_steps"),
    )
    flat = prorate(
        params.whole("flat_cents", default=0),
        part=given.whole("flat_days", default=1),
        whole=given.whole("period_days", default=1),
    )
    fees = bill.usage_minor + flat
    return {
        "mid_invoice_cents": str(bill.invoiced_minor),
        "mid_invoices_cents": [str(each) for each in bill.invoices_minor],
        "final_fees_cents": str(fees),
        "progressive_credit_cents": str(bill.invoiced_minor),
        "final_total_cents": str(fees - bill.invoiced_minor),
    }


MONEY_MODELS: Mapping[str, Callable[[Fields, Fields], Answer]] = MappingProxyType(
    {
        "prorated_flat": _rate_prorated,
        "prorated_flat_tax": _rate_prorated_tax,
        "prorated_credit_note_tax": _rate_prorated_tax,
        "minimum_true_up": _rate_minimum,
        "commitment_true_up": _rate_commitment,
        "upgrade_net": _rate_upgrade,
        "coupon_then_tax": _rate_coupon,
        "weighted_sum": _rate_weighted,
        "progressive": _rate_progressive,
    }
)
"""Cases of money over time."""
