"""The facts of a period as an invoice's inputs keep them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.periods import Period
from tollkeeper_ledger.domain.rating.paid import PaidFee, PaidPeriod, PaidUsage
from tollkeeper_ledger.domain.rating.period import Ahead, PeriodFacts, Stretch
from tollkeeper_ledger.domain.rating.reductions import Coupon, Grant

if TYPE_CHECKING:
    from collections.abc import Iterator

Json: TypeAlias = dict[str, Any]

_INSTANTS_KEPT = 4_096
"""Instants that are kept in both forms: most lines of a run are of one span."""


@lru_cache(maxsize=_INSTANTS_KEPT)
def instant_text(instant: datetime) -> str:
    """Write an instant in UTC with microseconds."""
    return f"{instant.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


@lru_cache(maxsize=_INSTANTS_KEPT)
def instant_of(text: str) -> datetime:
    """Read an instant, in UTC."""
    return datetime.fromisoformat(text).astimezone(UTC)


def period_to_json(period: Period) -> Json:
    """Write a span of time."""
    return {"start": instant_text(period.start), "end": instant_text(period.end)}


def period_from_json(period: Json) -> Period:
    """Read a span of time."""
    return Period(start=instant_of(period["start"]), end=instant_of(period["end"]))


def facts_to_json(facts: PeriodFacts) -> Json:
    """Write what is kept beside period and time zone."""
    return {
        "whole": period_to_json(facts.whole),
        "stretches": [
            {
                "span": period_to_json(stretch.span),
                "plan": stretch.plan,
                "state": stretch.state,
                "quantity": stretch.quantity,
            }
            for stretch in facts.stretches
        ],
        "ahead": None if facts.ahead is None else _ahead_to_json(facts.ahead),
        "advance": None if facts.advance is None else _ahead_to_json(facts.advance),
        "coupons": [
            {
                "coupon_id": coupon.coupon_id,
                "name": coupon.name,
                "percent": None if coupon.percent is None else f"{coupon.percent:f}",
                "amount_minor": coupon.amount_minor,
            }
            for coupon in facts.coupons
        ],
        "grants": [
            {"grant_id": grant.grant_id, "name": grant.name, "meter": grant.meter, "left": grant.left}
            for grant in facts.grants
        ],
        **({"paid_late": [_paid_to_json(one) for one in facts.paid_late]} if facts.paid_late else {}),
        **({"is_cut": True} if facts.is_cut else {}),
    }


def _paid_to_json(period: PaidPeriod) -> Json:
    usage = [
        {"meter": one.meter, "attributes": [list(pair) for pair in one.attributes], "paid": asdict(one.paid)}
        for one in period.usage
    ]
    return {"segment_id": period.segment_id, "is_void": period.is_void, "usage": usage}


def _paid_from_json(period: Json) -> PaidPeriod:
    usage = tuple(
        PaidUsage(
            meter=one["meter"],
            attributes=tuple((name, value) for name, value in one["attributes"]),
            paid=PaidFee(**one["paid"]),
        )
        for one in period["usage"]
    )
    return PaidPeriod(segment_id=period["segment_id"], is_void=period["is_void"], usage=usage)


def facts_from_json(inputs: Json) -> PeriodFacts:
    """Read the facts out of an invoice's inputs."""
    stored = inputs["facts"]
    return PeriodFacts(
        time_zone=inputs["time_zone"],
        period=period_from_json(inputs["period"]),
        whole=period_from_json(stored["whole"]),
        stretches=tuple(
            Stretch(
                span=period_from_json(stretch["span"]),
                plan=stretch["plan"],
                state=stretch["state"],
                quantity=stretch["quantity"],
            )
            for stretch in stored["stretches"]
        ),
        ahead=ahead_from_json(stored["ahead"]),
        advance=ahead_from_json(stored["advance"]),
        coupons=tuple(
            Coupon(
                coupon_id=coupon["coupon_id"],
                name=coupon["name"],
                percent=None if coupon["percent"] is None else Decimal(coupon["percent"]),
                amount_minor=coupon["amount_minor"],
            )
            for coupon in stored["coupons"]
        ),
        grants=tuple(Grant(**grant) for grant in stored["grants"]),
        paid_late=tuple(_paid_from_json(one) for one in stored.get("paid_late", ())),
        is_cut=stored.get("is_cut", False),
    )


def digests_of_facts(facts: Json) -> set[str]:
    """Give the digests of the plan versions that the facts name."""
    return set(_digests(facts))


def _digests(facts: Json) -> Iterator[str]:
    yield from (stretch["plan"] for stretch in facts["stretches"])
    yield from (facts[name]["plan"] for name in ("ahead", "advance") if facts[name] is not None)


def _ahead_to_json(ahead: Ahead) -> Json:
    return {
        "plan": ahead.plan,
        "quantity": ahead.quantity,
        "span": period_to_json(ahead.span),
        "whole": period_to_json(ahead.whole),
        **({"time_zone": ahead.time_zone} if ahead.time_zone else {}),
        **({"paid": [asdict(fee) for fee in ahead.paid]} if ahead.paid else {}),
        **({"is_void": True} if ahead.is_void else {}),
    }


def ahead_from_json(ahead: Json | None) -> Ahead | None:
    """Read what is billed ahead; None for nothing."""
    if ahead is None:
        return None
    return Ahead(
        plan=ahead["plan"],
        quantity=ahead["quantity"],
        span=period_from_json(ahead["span"]),
        whole=period_from_json(ahead["whole"]),
        time_zone=ahead.get("time_zone", ""),
        paid=tuple(PaidFee(**fee) for fee in ahead.get("paid", ())),
        is_void=ahead.get("is_void", False),
    )
