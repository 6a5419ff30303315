"""Flat fees: so much per period, per seat or not, whole or for the share of a period that they are due for.

A share counts its start day and divides by the whole period; each share rounds by itself.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

from tollkeeper_ledger.domain.money import EXACT, Currency, major, round_minor
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.domain.proration import prorate
from tollkeeper_ledger.domain.rating.charges import Charge

if TYPE_CHECKING:
    from datetime import datetime

    from tollkeeper_ledger.domain.rating.charges import PriceJson

BY_DAY, BY_SECOND, NEVER = "day", "second", "none"
_LINES_KEPT = 1024
"""Lines of fees that are kept; one takes about a kilobyte."""


class Share(NamedTuple):
    """The time that a fee is for, and how much of a period that is."""

    start: datetime
    end: datetime
    part: int = 1
    whole: int = 1
    """Days, or microseconds."""
    by: str = BY_DAY
    quantity: int = 1
    """Seats."""

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole period."""
        return self.part == self.whole

    @property
    def text(self) -> str:
        """Say for people how much it is."""
        if self.by == BY_DAY:
            return f"{self.part} of {self.whole} days"
        second = 1_000_000
        return f"{self.part // second:,} of {self.whole // second:,} s"


def proration_of(plan: PriceJson) -> str:
    """Give how a plan's fees are shared out: as it says, else by day; hourly ones by second."""
    default = BY_SECOND if plan.get("billing_interval", {}).get("unit") == "hour" else BY_DAY
    return str(plan.get("proration", default))


def length(start: datetime, end: datetime, *, by: str, time_zone: str) -> int:
    """Measure a span in days of the zone's calendar, or in microseconds. A day belongs to what it begins with."""
    if by != BY_DAY:
        return to_us(end) - to_us(start)
    zone = ZoneInfo(time_zone)
    return (end.astimezone(zone).date() - start.astimezone(zone).date()).days


def fee_minor(fee: PriceJson, currency: Currency, *, quantity: int) -> int:
    """Give a fee for a whole period, rounded."""
    return _times_minor(fee["amount"], quantity if fee.get("per_seat") else 1, currency.digits)


@lru_cache(maxsize=4096)
def _times_minor(amount: str, count: int, digits: int) -> int:
    """Give so many times an amount, rounded; plans have few fees, and every period reads them again."""
    return round_minor(EXACT.scaleb(EXACT.multiply(Decimal(amount), count), digits))


def share_minor(fee: PriceJson, share: Share, currency: Currency) -> int:
    """Give a fee for a share of a period, rounded."""
    return _share_minor(fee_minor(fee, currency, quantity=share.quantity), share)


def _share_minor(whole_minor: int, share: Share) -> int:
    return whole_minor if share.is_whole else prorate(whole_minor, part=share.part, whole=share.whole)


def fee_line(fee: PriceJson, share: Share, currency: Currency, *, words: str = "", is_credit: bool = False) -> Charge:
    """Give a fee's line; a credit takes it back. `words` stand between its name and the share."""
    seats = share.quantity if fee.get("per_seat") else None
    return _line(_Due(fee["name"], fee["amount"], seats, currency.code), share, words, -1 if is_credit else 1)


class _Due(NamedTuple):
    """A fee for a whole period."""

    name: str
    amount: str
    seats: int | None
    """None: they don't count."""
    code: str


@lru_cache(maxsize=_LINES_KEPT)
def _line(due: _Due, share: Share, words: str, sign: int) -> Charge:
    """Give a fee's line. Most of a plan's tenants owe the same for a period."""
    name, amount, seats, code = due
    currency = Currency.from_code(code)
    of_whole = "" if share.is_whole else share.text
    count = 1 if seats is None else seats
    amount_minor = _share_minor(_times_minor(amount, count, currency.digits), share) * sign
    shown = " ".join(word for word in (words, of_whole) if word)
    return Charge(
        description=", ".join(word for word in (name, shown) if word),
        meter="",
        unit="" if seats is None else "seats",
        scale=0,
        quantity=count,
        included=0,
        charged=count,
        unit_price=amount,
        price_per=1,
        amount_minor=amount_minor,
        explanation=_steps(amount, seats, of_whole, amount_minor, code),
        period_start=share.start,
        period_end=share.end,
        late=False,
        kind="fee",
    )


@lru_cache(maxsize=4096)
def _steps(amount: str, seats: int | None, of_whole: str, amount_minor: int, code: str) -> tuple[str, ...]:
    """Say how a fee came about. Most of a plan's tenants owe the same, for one period or another."""
    currency = Currency.from_code(code)
    steps = [f"flat fee per period: {amount} {code}"]
    if seats is not None:
        whole_minor = _times_minor(amount, seats, currency.digits)
        steps.append(f"x {seats:,} seats = {major(whole_minor, currency)} {code}")
    if of_whole:
        steps.append(f"for {of_whole}")
    steps.append(f"rounded half up: {major(amount_minor, currency)} {code}")
    return tuple(steps)
