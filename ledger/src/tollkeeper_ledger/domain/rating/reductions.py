"""What makes a period cheaper: coupons, prepaid credit, granted units."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from tollkeeper_ledger.domain.money import exact, major, round_minor
from tollkeeper_ledger.domain.rating.charges import Charge
from tollkeeper_ledger.domain.shares import cut

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tollkeeper_ledger.domain.money import Currency
    from tollkeeper_ledger.domain.periods import Period

_PERCENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Coupon:
    """Something off a period's charges: a percentage, or an amount in minor units."""

    coupon_id: str
    name: str
    percent: Decimal | None
    amount_minor: int | None


@dataclass(frozen=True, slots=True)
class Grant:
    """What is left of a grant: units of a meter, or minor units of the subscription's currency."""

    grant_id: str
    name: str
    meter: str
    """Empty for credit."""
    left: int


@dataclass(frozen=True, slots=True)
class GrantUse:
    """What a period takes of a grant."""

    grant_id: str
    amount: int


def amount_line(
    description: str, amount_minor: int, period: Period, *, kind: str, explanation: tuple[str, ...]
) -> Charge:
    """Give a line that is an amount and nothing else. Credit is not taxed: it pays."""
    return Charge(
        description=description,
        meter="",
        unit="",
        scale=0,
        quantity=1,
        included=0,
        charged=1,
        unit_price="",
        price_per=1,
        amount_minor=amount_minor,
        explanation=explanation,
        period_start=period.start,
        period_end=period.end,
        late=False,
        kind=kind,
        tax_percent="0" if kind == "credit" else "",
    )


@exact
def _off(coupon: Coupon, base_minor: int) -> int:
    if coupon.percent is not None:
        return min(round_minor(base_minor * coupon.percent * _PERCENT), base_minor)
    return min(coupon.amount_minor or 0, base_minor)


class Reduced(NamedTuple):
    """Lines with their shares of coupons."""

    lines: list[Charge]
    coupons_used: tuple[str, ...]
    """Those that took something off."""


def with_coupons(coupons: Sequence[Coupon], lines: Sequence[Charge], currency: Currency) -> Reduced:
    """Take coupons off the lines, one after the other, never more than what is left of the charges.

    Each is spread over the lines above zero in proportion to what is left of them, the largest remainders first. Lines
    that give back what was paid stand apart: what they give back is less what coupons took off then.
    """
    shown = list(lines)
    if not coupons:
        return Reduced(lines=shown, coupons_used=())
    base_minor = max(sum(line.amount_minor for line in lines if line.given_back is None), 0)
    used: list[str] = []
    for coupon in coupons:
        off_minor = _off(coupon, base_minor)
        if not off_minor:
            continue
        base_minor -= off_minor
        used.append(coupon.coupon_id)
        shares = cut(off_minor, [max(line.amount_minor - line.discount_minor, 0) for line in shown])
        shown = [
            line._replace(
                discount_minor=line.discount_minor + share,
                explanation=(*line.explanation, f"coupon {coupon.name}: -{major(share, currency)} {currency.code}"),
            )
            if share
            else line
            for line, share in zip(shown, shares, strict=True)
        ]
    return Reduced(lines=shown, coupons_used=tuple(used))


def pay_with_credit(
    grants: Sequence[Grant], lines: Sequence[Charge], period: Period, currency: Currency
) -> tuple[list[Charge], list[GrantUse]]:
    """Pay charges with credit, grant after grant, never more than there is to pay."""
    if not grants:
        return [], []
    due_minor = max(sum(line.amount_minor - line.discount_minor for line in lines), 0)
    paid: list[Charge] = []
    used: list[GrantUse] = []
    for grant in grants:
        amount_minor = 0 if grant.meter else min(grant.left, due_minor)
        if not amount_minor:
            continue
        due_minor -= amount_minor
        steps = (f"{major(grant.left, currency)} {currency.code} left, {major(amount_minor, currency)} used",)
        paid.append(amount_line(grant.name, -amount_minor, period, kind="credit", explanation=steps))
        used.append(GrantUse(grant_id=grant.grant_id, amount=amount_minor))
    return paid, used


def units_granted(grants: Sequence[Grant]) -> dict[str, int]:
    """Add up granted units by meter."""
    units: dict[str, int] = {}
    for grant in grants:
        if grant.meter:
            units[grant.meter] = units.get(grant.meter, 0) + grant.left
    return units


def units_used(grants: Sequence[Grant], left: Mapping[str, int]) -> list[GrantUse]:
    """Say what each grant gave, in their order, where `left` is what of all of a meter's is left."""
    if not grants:
        return []
    taken = {meter: units - left[meter] for meter, units in units_granted(grants).items()}
    used = []
    for grant in grants:
        amount = min(grant.left, taken.get(grant.meter, 0)) if grant.meter else 0
        if amount:
            taken[grant.meter] -= amount
            used.append(GrantUse(grant_id=grant.grant_id, amount=amount))
    return used
