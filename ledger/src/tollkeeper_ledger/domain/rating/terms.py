"""What rating reads of plans and prices: read once, however many periods they rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import Currency
from tollkeeper_ledger.domain.rating.fees import proration_of
from tollkeeper_ledger.domain.rating.plan_bytes import Definition
from tollkeeper_ledger.domain.rating.plan_models import MODELS_V1, bounds_of, conversion_of, needs_events
from tollkeeper_ledger.domain.rating.progressive import is_at_the_end

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.rating.bounds import Bounds
    from tollkeeper_ledger.domain.rating.charges import PriceJson
    from tollkeeper_ledger.domain.rating.plan_models import Pricing
    from tollkeeper_ledger.domain.rating.quantity import Conversion


@dataclass(frozen=True, slots=True)
class PriceTerms:
    """A price as it is read."""

    price: PriceJson
    meter: str
    name: str
    """Names its lines for people."""
    included: int
    conversion: Conversion | None
    pricing: Pricing | None
    """None: there is no such model."""
    is_per_event: bool
    bounds: Bounds
    unit_price: str
    """Empty where one price doesn't say what a unit costs."""
    price_per: int
    shows_parts: bool
    """Whether a reader needs its parts beside quantity and unit price to come to the amount."""
    is_at_the_end: bool
    """Whether it makes no line before the period's end."""

    @property
    def is_plain(self) -> bool:
        """Whether it takes all usage of its meter, on one line."""
        return "match" not in self.price and "group_by" not in self.price


@dataclass(frozen=True, slots=True)
class PlanTerms:
    """A plan version's fees and prices as they are read."""

    currency: Currency
    arrears: tuple[PriceJson, ...]
    """Fees after their period."""
    advance: tuple[PriceJson, ...]
    """Fees before their period."""
    proration: str
    """How fees are shared out: `day`, `second` or `none`."""
    commitment: str | None
    """The least that a period costs, decimal."""
    prices: tuple[PriceTerms, ...]
    is_plain: bool
    """One price for each meter, on one line."""


def read_price(price: PriceJson) -> PriceTerms:
    """Read a price. Raises what its fields raise; a model that there isn't is found when something is to be rated."""
    model = MODELS_V1.get(price["model"])
    is_one_price = price["model"] == "per_unit"
    unit_price = price["unit_price"] if is_one_price else ""
    conversion = conversion_of(price)
    return PriceTerms(
        price=price,
        meter=price["meter"],
        name=str(price.get("description") or price["meter"]),
        included=int(price["included"]),
        conversion=conversion,
        pricing=None if model is None else model(price),
        is_per_event=needs_events(price),
        bounds=bounds_of(price),
        unit_price=unit_price,
        price_per=int(price["per"]) if is_one_price else 1,
        # One price for another unit than the quantity's explains nothing without what was converted.
        shows_parts=not unit_price or conversion is not None,
        is_at_the_end=is_at_the_end(price),
    )


def terms_of(plan: PriceJson) -> PlanTerms:
    """Give a plan's fees and prices as they are read; of a definition made of bytes the same ones each time."""
    found: PlanTerms | None = plan.terms if isinstance(plan, Definition) else None
    if found is None:
        found = _read_plan(plan)
        if isinstance(plan, Definition):
            plan.terms = found
    return found


def _read_plan(plan: PriceJson) -> PlanTerms:
    prices = tuple(read_price(price) for price in plan["prices"])
    one_each = len({one.meter for one in prices}) == len(prices)
    return PlanTerms(
        currency=Currency.from_code(plan["currency"]),
        arrears=tuple(fee for fee in plan["fees"] if fee["timing"] == "arrears"),
        advance=tuple(fee for fee in plan["fees"] if fee["timing"] == "advance"),
        proration=proration_of(plan),
        commitment=plan.get("commitment"),
        prices=prices,
        is_plain=one_each and all(one.is_plain for one in prices),
    )
